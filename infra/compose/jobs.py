"""Keeps the jobs in a cluster without high availability: submits each one that its JobManager does not know.

A job goes on from its newest retained checkpoint, whichever of its earlier lives made it. Ids are recorded before they
are used, beside the checkpoints, so that no restart of this process submits a job twice. A job that somebody cancelled
or stopped is left alone: an operator meant it.
`healthy` exists while every job runs with all its tasks; it is what the container's health check looks for.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from penstock.infra.local import flink, programs
from penstock.infra.local.layout import Layout
from penstock.infra.local.parts import PARTS, Kind
from penstock.infra.settings import Settings

JOBS: tuple[str, ...] = tuple(part.name for part in PARTS if part.kind is Kind.JOB)
LOOK = 1.0  # seconds between looks
PATIENCE = 300.0  # seconds that `flink run` may take on a busy machine
LOST = ("ABSENT", "FAILED", "SUSPENDED")  # nobody wanted these ends


class Keeper:
    """Owns the record of job ids: there is one keeper a cluster."""

    def __init__(self, layout: Layout, settings: Settings, environment: Mapping[str, str], stop: threading.Event):
        self._layout, self._settings, self._environment, self._stop = layout, settings, environment, stop
        self._rest = flink.Rest(settings.flink.rest)
        self.record = flink.JobRecord(layout.checkpoints / "jobs.json")

    def look(self) -> bool:
        """Submit what is lost; whether every job is healthy. Raises FlinkUnreachable, SubmitFailed."""
        if int(self._rest.overview()["slots-total"]) < 1:
            return False  # a job without a TaskManager would only fail and wait
        states = {name: self._rest.job(ids[-1]) if (ids := self.record.ids(name)) else None for name in JOBS}
        if lost := [name for name, state in states.items() if state is None or state.state in LOST]:
            self._submit(lost)
        for name in JOBS:
            flink.prune(self._layout.checkpoints, self.record, name)
        return all(state is not None and state.healthy for state in states.values())

    def _submit(self, names: Sequence[str]) -> None:
        submissions = flink.submissions(self._layout.checkpoints, self.record, names)
        for each in submissions:
            say(f"submitting {each.job} as {each.job_id}, from {each.checkpoint or 'the offsets of its group'}")
        parallelism = self._settings.flink.parallelism
        arguments = flink.run_arguments(programs.submit_script(), parallelism, *map(str, submissions))
        logs = [self._layout.log(name) for name in names]
        try:
            flink.submit(programs.flink_command(arguments), self._environment, logs, self._stop, PATIENCE)
        except flink.SubmitFailed:
            say("".join(logs[0].read_text(errors="replace").splitlines(keepends=True)[-30:]))
            raise


def keep(layout: Layout, settings: Settings, environment: Mapping[str, str], healthy: Path) -> None:
    """Look until SIGTERM."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    keeper = Keeper(layout, settings, environment, stop)
    said = ""
    while not stop.wait(LOOK):
        try:
            well, trouble = keeper.look(), ""
        except (flink.FlinkUnreachable, flink.SubmitFailed) as error:
            well, trouble = False, str(error)
        if trouble and trouble != said:
            say(trouble)
        said = trouble
        if well:
            healthy.touch()
        else:
            healthy.unlink(missing_ok=True)


def say(text: str) -> None:
    """To the container's log."""
    print(text, file=sys.stderr, flush=True)
