"""The demo with a fault in the middle of it, and the verdict that every installation is held to."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, KafkaException, TopicPartition
from system import System, eventually

from penstock.schemas.topics import POSTINGS

SECONDS = 8
RATE = 40
PATIENCE_S = 180  # without progress: a crowded machine takes a minute or two to start three jobs anew
END_S = 400  # for the rest of the demo, once the fault is mended
PENSTOCK = str(Path(sys.executable).parent / "penstock")
ENDS = ("live", "deleted", "expired", "rejected", "dead_lettered")


def survives(
    fault: Callable[[], None], system: System, environment: Mapping[str, str], folder: Path, *options: str
) -> None:
    """Run the demo with `options`, call `fault` when a third is published: nothing may be lost, nothing wrong.

    Its log and report go to `folder`. `fault` breaks something and brings it back.
    """
    report, log = folder / "report.json", folder / "demo.log"
    command = [PENSTOCK, "demo", "--seconds", str(SECONDS), "--rate", str(RATE), "--report", str(report)]
    command += ["--cold", "--patience", str(PATIENCE_S), *options]
    watch = Consumer(system.settings.kafka.properties() | {"group.id": "watch"})
    before = _published(watch)
    with log.open("w") as out:
        demo = subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT)
    try:
        eventually(lambda: _published(watch) >= before + SECONDS * RATE // 3, "a third of the demo is published")
        watch.close()  # what follows is the broker's trouble too
        assert demo.poll() is None, log.read_text()
        fault()
        code = demo.wait(END_S)
    finally:
        demo.kill()
        demo.wait()
    said = log.read_text()
    assert code == 0, said
    _judge(json.loads(report.read_text()), said)


def _judge(outcome: Mapping[str, Any], said: str) -> None:
    assert (outcome["lost"], outcome["wrong"]) == (0, 0), said
    assert outcome["published"] >= SECONDS * RATE * 0.9, said
    for end in ENDS:
        assert outcome[end] > 0, f"{end}: the run had nothing of it to get wrong"
    alerts = outcome["alerts"]
    assert alerts["expected"] > 0, "there were no alerts to lose"
    assert (alerts["lost"], alerts["wrong"]) == (0, 0), said
    queries = outcome["queries"]
    assert queries["answered"] == queries["published"] > 0, f"every query has its answer: {queries}"


def _published(watch: Consumer) -> int:
    """How many records the postings topic has ever had; -1 while the broker does not say."""
    try:
        partitions = watch.list_topics(POSTINGS.name, timeout=5).topics[POSTINGS.name].partitions
        return sum(watch.get_watermark_offsets(TopicPartition(POSTINGS.name, p), timeout=5)[1] for p in partitions)
    except KafkaException:
        return -1
