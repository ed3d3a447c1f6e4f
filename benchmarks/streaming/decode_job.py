"""A Flink job that is the postings job's first steps alone: decode, validate, key, into nothing.

Submitted by `decode.py`, in process mode, over what jobs.posting.v1 holds when it starts. The operator writes down what
CPU time its whole Python worker (Beam's threads, the coders and the key's operator with it) took from its first record
to its last, when it is closed.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyflink.common import Types
from pyflink.common.serialization import ByteArraySchema
from pyflink.common.watermark_strategy import WatermarkStrategy
from pyflink.datastream import StreamExecutionEnvironment
from pyflink.datastream.connectors.base import Sink
from pyflink.datastream.connectors.kafka import KafkaOffsetsInitializer, KafkaSource
from pyflink.datastream.functions import ProcessFunction
from pyflink.java_gateway import get_gateway

from penstock.infra.settings import Settings, load
from penstock.jobs.operators.environment import job_environment
from penstock.jobs.operators.intake import DEAD_LETTERS, Intake, check_posting
from penstock.jobs.operators.kafka import BYTES, java_properties
from penstock.schemas.topics import POSTINGS

OUT = "PENSTOCK_BENCHMARK_OUT"
WARM = 2_000  # records before the clock starts: imports, caches, the first bundles


class Measured(Intake):
    """Intake, with the CPU time of its process."""

    def __init__(self, settings: Settings, out: str) -> None:
        super().__init__(POSTINGS, check_posting, settings)
        self._out = out
        self._seen = 0
        self._cpu = self._wall = 0.0

    def process_element(self, value: bytes, ctx: ProcessFunction.Context) -> Iterator[Any]:
        self._seen += 1
        if self._seen == WARM:
            self._cpu, self._wall = time.process_time(), time.monotonic()
        yield from super().process_element(value, ctx)

    def close(self) -> None:
        counted = max(0, self._seen - WARM)
        cpu, wall = time.process_time() - self._cpu, time.monotonic() - self._wall
        Path(self._out).write_text(json.dumps({"records": counted, "cpu_s": cpu, "wall_s": wall}), encoding="utf-8")


def build(env: StreamExecutionEnvironment, settings: Settings, out: str) -> None:
    source = (
        KafkaSource.builder()
        .set_bootstrap_servers(settings.kafka.bootstrap_servers)
        .set_topics(POSTINGS.name)
        .set_group_id(f"{settings.kafka.group_prefix}-benchmark-decode")
        .set_starting_offsets(KafkaOffsetsInitializer.earliest())
        .set_bounded(KafkaOffsetsInitializer.latest())
        .set_value_only_deserializer(ByteArraySchema())
        .set_properties(java_properties(settings.kafka))
        .build()
    )
    decoded = env.from_source(source, WatermarkStrategy.no_watermarks(), "read", type_info=BYTES).process(
        Measured(settings, out), output_type=Types.PICKLED_BYTE_ARRAY()
    )
    decoded.key_by(lambda arrival: arrival.posting.posting_id, key_type=Types.STRING()).sink_to(_nothing())
    decoded.get_side_output(DEAD_LETTERS).sink_to(_nothing())


def _nothing() -> Sink:
    return Sink(get_gateway().jvm.org.apache.flink.streaming.api.functions.sink.v2.DiscardingSink())


def main() -> None:
    settings = load()
    env = job_environment(settings, {"$internal.pipeline.job-id": sys.argv[1]})
    build(env, settings, os.environ[OUT])
    env.execute("penstock benchmark: decode")


if __name__ == "__main__":
    main()
