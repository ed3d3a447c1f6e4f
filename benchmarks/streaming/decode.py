"""How many postings a second one core decodes, validates and keys, in a Python process of Flink's."""

from __future__ import annotations

import json
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from benchmarks.streaming import decode_job
from penstock.infra.local import flink, processes, programs
from penstock.infra.local.layout import Layout
from penstock.infra.settings import Settings

DEADLINE_S = 300.0
PART = "benchmark-decode"


class DecodeFailed(Exception):
    """The job did not finish, or measured nothing."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """`per_s_core`: records by second of CPU of the whole Python worker."""

    records: int
    cpu_s: float
    wall_s: float

    @property
    def per_s_core(self) -> float:
        return self.records / self.cpu_s


def measure(stack: Path, settings: Settings) -> Decoded:
    """Runs `decode_job` on the stack's own Flink, which needs a free slot. Raises DecodeFailed, SubmitFailed."""
    layout, java_path = Layout.at(stack), programs.java()
    out = layout.run / f"decode-{uuid.uuid4().hex}.json"
    job_id = uuid.uuid4().hex
    environment = {
        **programs.environment(layout),
        **programs.flink_environment(layout, java_path),
        processes.PART: PART,
        decode_job.OUT: str(out),
    }
    command = programs.flink_command(flink.run_arguments(Path(decode_job.__file__), 1, job_id))
    flink.submit(command, environment, [layout.log(PART)], threading.Event(), DEADLINE_S)
    rest = flink.Rest(settings.flink.rest)
    deadline = time.monotonic() + DEADLINE_S
    while (state := rest.job(job_id).state) != "FINISHED":
        if state in flink.GONE or time.monotonic() > deadline:
            if state not in flink.GONE:
                rest.cancel(job_id)
            raise DecodeFailed(f"the decode job is {state}: {rest.failure(job_id)}; see {layout.log(PART)}")
        time.sleep(0.2)
    if not out.is_file():
        raise DecodeFailed(f"the decode job left no figures at {out}")
    found = json.loads(out.read_text(encoding="utf-8"))
    if not found["records"]:
        raise DecodeFailed(f"fewer than {decode_job.WARM} records in the topic: run a phase that publishes before")
    return Decoded(found["records"], found["cpu_s"], found["wall_s"])
