"""One `up`: every part brought to health, a thread a part, each waiting for those it needs.

Owns what is true of this run alone: which parts it started, and the event that tells all threads to give up when one
fails or the user presses Ctrl-C. What it started is undone by the stack, which knows how.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path

from penstock.infra.local import ports as ports_module
from penstock.infra.local.errors import Cancelled, PartFailed, StackError
from penstock.infra.local.flink import GONE, FlinkUnreachable, JobRecord, SubmitFailed
from penstock.infra.local.health import Health, Probe
from penstock.infra.local.parts import Kind, Part
from penstock.infra.local.supervise import Supervisor

POLL = 0.1  # seconds between looks at a part that is coming up
PATIENCE = 20.0  # seconds for a living part that lost its health to regain it before it is started anew
LOG_LINES = 12

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Actions:
    """What a bring-up may do beside watching: given by the stack, replaced by tests."""

    prepare: Callable[[str], None]  # before a process starts: format Kafka's storage
    create_topics: Callable[[], list[str]]  # returns differences, for people
    submit: Callable[[str, threading.Event], None]  # a job, from its newest checkpoint
    log_tail: Callable[[str], str]
    log_path: Callable[[str], Path]


@dataclass(slots=True)
class BringUp:
    """`started` and `cancelled` are the run's own state; threads only add to the one and read the other."""

    parts: tuple[Part, ...]
    supervisor: Supervisor
    probe: Probe
    record: JobRecord
    ports: Mapping[str, int]
    actions: Actions
    progress: Progress
    started: list[str] = field(default_factory=list)
    cancelled: threading.Event = field(default_factory=threading.Event)
    _healthy: dict[str, threading.Event] = field(default_factory=dict)
    _speak: threading.Lock = field(default_factory=threading.Lock)

    def run(self) -> None:
        """Returns when all are healthy. Raises the first failure; on any exception all threads have ended."""
        self._healthy = {part.name: threading.Event() for part in self.parts}
        with futures.ThreadPoolExecutor(len(self.parts), thread_name_prefix="up") as pool:
            running = [pool.submit(self._bring, part) for part in self.parts]
            try:
                # Short waits, so that Ctrl-C is heard.
                while futures.wait(running, timeout=0.2).not_done and not self.cancelled.is_set():
                    pass
            except BaseException:
                self.cancelled.set()
                raise
        errors = [error for future in running if (error := future.exception()) is not None]
        for error in sorted(errors, key=lambda e: isinstance(e, Cancelled)):  # the cause before those it cancelled
            raise error

    def _bring(self, part: Part) -> None:
        try:
            for needed in part.after:
                while not self._healthy[needed].wait(POLL):
                    self._go_on()
            began = time.monotonic()
            health = self.probe.check(part)
            already = health.ok
            if not already:
                health = {Kind.PROCESS: self._process, Kind.STEP: self._topics, Kind.JOB: self._job}[part.kind](part)
            self._say(part, "already up" if already else "healthy", time.monotonic() - began, health.detail)
            self._healthy[part.name].set()
        except BaseException:
            self.cancelled.set()  # at once: the others need not wait for the main thread's look
            raise

    # --- the three kinds -----------------------------------------------------------------------------------------

    def _process(self, part: Part) -> Health:
        began = time.monotonic()
        deadline = began + part.deadline
        mine = False
        while True:
            info = self.supervisor.process(part.name)
            if mine and not info.alive:
                how = info.error or f"ended with status {info.exit_status}"
                raise self._failed(part, f"{how} while starting")
            if not mine and not info.going:
                self._start(part)
                mine = True
            elif not mine and min(time.time() - info.started, time.monotonic() - began) > PATIENCE:
                self._say(part, "hangs, starting it anew", time.monotonic() - began)
                self.supervisor.stop_process(part.name)
                continue
            health = self.probe.check(part)
            if health.ok:
                return health
            if time.monotonic() > deadline:
                raise self._failed(part, f"not healthy after {part.deadline:.0f} s: {health.detail}")
            self._wait()

    def _start(self, part: Part) -> None:
        self._go_on()
        for listener in _LISTENERS.get(part.name, ()):
            ports_module.require_free(listener, self.ports[listener])
        self.actions.prepare(part.name)
        self._go_on()
        self.started.append(part.name)
        self.supervisor.start_process(part.name)

    def _topics(self, part: Part) -> Health:
        for difference in self.actions.create_topics():
            self._say(part, f"as found: {difference}", 0.0)
        return self._until(part, lambda health: None)

    def _job(self, part: Part) -> Health:
        submitted = False

        def look(health: Health) -> None:
            nonlocal submitted
            ids = self.record.ids(part.name)
            try:
                state = self.probe.rest.job(ids[-1]).state if ids else "ABSENT"
            except FlinkUnreachable:
                return
            if state not in GONE:
                return  # runs, or Flink is restarting it: never submit a second one
            if submitted:
                raise self._failed(part, f"the job is {health.detail}")
            self._go_on()
            self.started.append(part.name)
            try:
                self.actions.submit(part.name, self.cancelled)
            except SubmitFailed as error:
                self._go_on()
                raise self._failed(part, str(error)) from error
            submitted = True

        return self._until(part, look)

    def _until(self, part: Part, look: Callable[[Health], None]) -> Health:
        deadline = time.monotonic() + part.deadline
        while not (health := self.probe.check(part)).ok:
            look(health)
            if time.monotonic() > deadline:
                raise self._failed(part, f"not healthy after {part.deadline:.0f} s: {health.detail}")
            self._wait()
        return health

    # --- small things --------------------------------------------------------------------------------------------

    def _go_on(self) -> None:
        if self.cancelled.is_set():
            raise Cancelled("interrupted")

    def _wait(self) -> None:
        self.cancelled.wait(POLL)
        self._go_on()

    def _say(self, part: Part, state: str, seconds: float, detail: str = "") -> None:
        with self._speak:
            self.progress(f"{part.name:<12} {state:<11} {seconds:5.1f} s  {detail}".rstrip())

    def _failed(self, part: Part, reason: str) -> StackError:
        tail = self.actions.log_tail(part.name)
        return PartFailed(part.name, reason, tail, remedy(tail, self.actions.log_path(part.name)))


_LISTENERS: dict[str, tuple[str, ...]] = {
    "kafka": ("kafka", "kafka_controller"),
    "redis": ("redis",),
    "jobmanager": ("flink_rest", "flink_rpc"),
    "models": ("models",),
    "enrich": ("enrich",),
    "retrieval": ("retrieval",),
    "ranker": ("ranker",),
    "gateway": ("gateway",),
}


def remedy(log_tail: str, log: Path) -> str:
    """What to do about a part that failed, from what its log says."""
    memory = "Memory ran out: end other programs (8 GB free are needed), then `penstock up` again."
    known = {
        "No space left on device": "The disk is full: free some space, then `penstock up` again.",
        "Address already in use": "Its port is in use: stop what listens there, then `penstock up` again.",
        "OutOfMemoryError": memory,
        "Cannot allocate memory": memory,
        "UnsupportedClassVersionError": "This Java is too old: Java 17 is needed (`penstock doctor`).",
    }
    for sign, what in known.items():
        if sign in log_tail:
            return what
    return f"Its whole log: {log}. `penstock doctor` checks the machine; `penstock up` tries again."
