"""The local stack: a real Kafka, Flink and Redis and our roles, in one data directory, as one thing to start and stop.

    stack = Stack(Path(".penstock"))
    stack.up(print)      # brings every part to health; again: heals what died; harmless when all is well
    stack.status()       # what each part is doing
    stack.down(print)    # stops all of it, keeps its state; the next `up` goes on from there

Invariants: one `up` or `down` at a time (a lock file); `up` ends with everything healthy, or, when it fails or is
interrupted, with everything it started stopped again; after `down` no process of this stack is left. Kafka's log,
Redis's append-only file, checkpoints and snapshots stay in the data directory.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from penstock.infra import settings as settings_module
from penstock.infra import topics_admin
from penstock.infra.local import config, flink, jars, processes, programs, provision, scrape
from penstock.infra.local import scorer as scorers
from penstock.infra.local.bringup import LOG_LINES, Actions, BringUp, Progress
from penstock.infra.local.errors import StackError
from penstock.infra.local.health import Probe
from penstock.infra.local.layout import Layout
from penstock.infra.local.parts import PARTS, Kind, Part, find, stop_order
from penstock.infra.local.supervise import Supervisor
from penstock.infra.scorers import Choice, Running, running_at
from penstock.infra.settings import Settings

DISK_NEEDED = 500_000_000  # bytes free in the data directory
SUBMISSION = "submission"  # what `flink run` is marked as: it is no part
LAST_CHECKPOINT = 10.0  # seconds that `down` waits for a job's last checkpoint


@dataclass(frozen=True, slots=True)
class PartStatus:
    """One part now. `rss_bytes`: resident memory of it and its children; `uptime_s` in seconds."""

    name: str
    what: str
    state: str  # healthy, starting, unhealthy, restarting, given up, stopped
    pid: int | None = None
    port: int | None = None
    uptime_s: float | None = None
    rss_bytes: int | None = None
    detail: str = ""

    @property
    def healthy(self) -> bool:
        return self.state == "healthy"

    @property
    def running(self) -> bool:
        return self.state != "stopped"


class Stack:
    """The stack whose state is in `data_dir`. Owns that directory; holds no process itself."""

    parts: tuple[Part, ...] = PARTS

    def __init__(self, data_dir: Path) -> None:
        self.layout = Layout.at(data_dir)
        self._record = flink.JobRecord(self.layout.jobs)

    # --- what it is ----------------------------------------------------------------------------------------------

    def running(self) -> bool:
        """Whether this stack's process manager is there."""
        return self.supervisor_pid() is not None

    def supervisor_pid(self) -> int | None:
        """The process manager's process, if it is there."""
        return self._supervisor().pid() if self.layout.supervisor_conf.is_file() else None

    def settings(self) -> Settings:
        """The settings in force for this stack. Raises SettingsError."""
        return settings_module.load_at(self.layout.root)

    def ports(self) -> dict[str, int]:
        """Listener -> port; empty before the first `up`."""
        return provision.read_ports(self.layout).all

    def status(self) -> list[PartStatus]:
        """Every part, from real work done now (a second or two when something does not answer)."""
        if not self.running():
            return [PartStatus(part.name, part.what, "stopped") for part in self.parts]
        supervisor, chosen = self._supervisor(), self.ports()
        probe = Probe(self.settings(), chosen, self._record, supervisor.started)
        infos = supervisor.processes()
        memory = self._memory()

        def look(part: Part) -> PartStatus:
            health = probe.check(part)
            out = PartStatus(part.name, part.what, "healthy" if health.ok else "unhealthy", detail=health.detail)
            if part.kind is not Kind.PROCESS:
                return out
            info = infos[part.name]
            listener = "flink_rest" if part.name == "jobmanager" else part.name
            out = replace(out, port=chosen.get(listener), rss_bytes=memory.get(part.name))
            if info.alive:
                state = "starting" if not health.ok and info.state == "STARTING" else out.state
                return replace(out, state=state, pid=info.pid, uptime_s=max(0.0, time.time() - info.started))
            state = {"BACKOFF": "restarting", "STOPPED": "stopped", "STOPPING": "stopping"}.get(info.state, "given up")
            return replace(out, state=state, detail=info.error or health.detail)

        with ThreadPoolExecutor(len(self.parts)) as pool:
            return list(pool.map(look, self.parts))

    def memory_bytes(self) -> int:
        """Resident memory of every process of this stack (pages that processes share count for each)."""
        return sum(self._memory().values())

    def logs(self, part: str, lines: int = LOG_LINES) -> list[str]:
        """The last lines of a part's log; KeyError lists the parts."""
        path = self.log_path(part)
        if not path.is_file():
            return []
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 400 * max(lines, 1) - 4_096))
            return file.read().decode(errors="replace").splitlines()[-lines:]

    def log_path(self, part: str) -> Path:
        """Where a part's log is; KeyError lists the parts."""
        return self.layout.log(part if part == "supervisord" else find(self.parts, part).name)

    # --- up ------------------------------------------------------------------------------------------------------

    def up(self, progress: Progress | None = None, scorer: Choice | None = None) -> None:
        """Bring every part to health, healing what died. Raises StackError (or SettingsError, JarsError).

        On failure or Ctrl-C what this call started is stopped again; what was healthy before is left alone. A `scorer`
        is kept for this stack until another is named; a ranker that runs another one is started anew.
        """
        say = progress or (lambda line: None)
        with self._disk_full_explained():
            self.layout.root.mkdir(parents=True, exist_ok=True)
            with self._locked(say), scorers.remembered(self.layout, scorer) as changed:
                fresh = not self.running()
                if scorer is not None:
                    self._switch(scorer, changed, say)
                try:
                    run = self._prepare(fresh, say)
                except BaseException:
                    if fresh:
                        self._stop_everything()
                    raise
                try:
                    run.run()
                except BaseException:
                    with _undisturbed():
                        self._undo(run, fresh, say)
                    raise
                if scorer is not None:
                    scorers.require_running(self.scorer(), scorer)
                for name in self._jobs():
                    flink.prune(self.layout.checkpoints, self._record, name)

    def scorer(self) -> Running | None:
        """What the ranker says that it runs; None while it does not answer."""
        port = self.ports().get("ranker")
        return None if port is None else running_at(f"127.0.0.1:{port}")

    def _switch(self, scorer: Choice, changed: bool, say: Progress) -> None:
        """Stop a ranker that was started with another scorer: it comes back with this one. Raises StackError."""
        scorers.require_in_force(self.layout, self.settings(), scorer)
        if not self.running() or not self._supervisor().process("ranker").going:
            return
        running = self.scorer()
        if changed or running is None or not running.is_(scorer):
            say(f"{'ranker':<12} stopping it, to start it with --scorer {scorer.scorer}")
            self._supervisor().stop_process("ranker")

    def _prepare(self, fresh: bool, say: Progress) -> BringUp:
        """Ports, files and process manager, ready for the parts."""
        settings = self.settings()
        scorers.require_fit(self.layout, settings)
        if fresh:
            self._check_room()
            if not jars.present():
                say("fetching Kafka's jars by Maven, once")
            jars.ensure()
            java_path = programs.java()
            if swept := processes.sweep(self.layout.root):
                say(f"ended {len(swept)} processes that an earlier stack here had left")
            self.layout.make()
            chosen = provision.choose_ports(self.layout, settings).all
            settings = self.settings()
            provision.write_files(self.layout, settings, chosen, java_path)
            config.write(self.layout.run / "targets.json", scrape.targets(settings, chosen))
            self._supervisor().start(programs.environment(self.layout))
        else:
            chosen = provision.unchanged_ports(self.layout, settings)
            java_path = programs.java()
        return BringUp(
            self.parts,
            self._supervisor(),
            Probe(settings, chosen, self._record, self._supervisor().started),
            self._record,
            chosen,
            Actions(
                prepare=lambda part: self._before(part, java_path),
                create_topics=lambda: list(topics_admin.ensure_topics(settings.kafka).differences),
                submit=flink.Together(functools.partial(self._submit, settings, java_path)).submit,
                log_tail=self._log_tail,
                log_path=self.log_path,
            ),
            say,
        )

    def _log_tail(self, part: str) -> str:
        """The last lines that say something: Java's stack frames do not."""
        said = [line for line in self.logs(part, 300) if line.strip() and not line.startswith(("\tat ", "\t... "))]
        return "\n".join(line[:300] for line in said[-LOG_LINES:])

    def _before(self, part: str, java_path: str) -> None:
        """What a process needs done before its start."""
        if part == "kafka":
            provision.format_kafka(self.layout, java_path)

    def _submit(self, settings: Settings, java_path: str, jobs: Sequence[str], cancelled: threading.Event) -> None:
        processes.sweep(self.layout.root, SUBMISSION)  # a `flink run` that an interrupted `up` left
        submissions = flink.submissions(self.layout.checkpoints, self._record, jobs)
        arguments = flink.run_arguments(programs.submit_script(), settings.flink.parallelism, *map(str, submissions))
        environment = {
            **programs.environment(self.layout),
            **programs.flink_environment(self.layout, java_path),
            processes.PART: SUBMISSION,
        }
        flink.submit(
            programs.flink_command(arguments),
            environment,
            [self.log_path(job) for job in jobs],
            cancelled,
            max(find(self.parts, job).deadline for job in jobs),
        )

    def _undo(self, run: BringUp, fresh: bool, say: Progress) -> None:
        """Stop what a failed `up` started."""
        if fresh:
            say("stopping what was started")
            self._stop_everything()
            return
        kinds = {part.name: part.kind for part in self.parts}
        for name in reversed(run.started):
            if kinds[name] is Kind.PROCESS:
                run.supervisor.stop_process(name)
            elif ids := self._record.ids(name):
                with contextlib.suppress(flink.FlinkUnreachable):  # no JobManager: no job either
                    run.probe.rest.cancel(ids[-1])

    # --- down ----------------------------------------------------------------------------------------------------

    def down(self, progress: Progress | None = None, *, erase: bool = False) -> None:
        """Stop all of it, users before what they use, each asked first and killed later. Harmless when it is down.

        Jobs take a last checkpoint, from which the next `up` goes on. `erase` removes the data directory's content.
        """
        say = progress or (lambda line: None)
        if not self.layout.root.is_dir():
            return
        with self._locked(say), _undisturbed():
            if self.running():
                self._last_checkpoints(say)
            self._stop_everything(say)
            if erase:
                self._erase()
                say(f"erased {self.layout.root}")

    def _last_checkpoints(self, say: Progress) -> None:
        jobs = self._jobs()
        if not jobs:
            return
        rest = flink.Rest(f"127.0.0.1:{self.ports()['flink_rest']}")

        def take(job: str) -> None:
            ids = self._record.ids(job)
            try:
                if not ids or not rest.job(ids[-1]).healthy:
                    return
                done = rest.checkpoint(ids[-1], LAST_CHECKPOINT)
            except flink.FlinkUnreachable as error:
                say(f"{job:<12} no last checkpoint ({error}): the next start replays from the one before")
                return
            outcome = "last checkpoint taken" if done else "no last checkpoint in time: the next start replays a little"
            say(f"{job:<12} {outcome}")

        with ThreadPoolExecutor(len(jobs)) as pool:
            list(pool.map(take, jobs))

    def _stop_everything(self, say: Progress = lambda line: None) -> None:
        """Whatever state it is in: afterwards no process of this stack is left."""
        supervisor = self._supervisor() if self.layout.supervisor_conf.is_file() else None
        if supervisor is not None and supervisor.pid() is not None:
            for wave in stop_order(self.parts):

                def stop(part: Part) -> None:
                    began = time.monotonic()
                    alive = supervisor.process(part.name).alive
                    supervisor.stop_process(part.name)
                    processes.sweep(self.layout.root, part.name)  # its children that outlived it
                    if alive:
                        say(f"{part.name:<12} stopped     {time.monotonic() - began:5.1f} s")

                with ThreadPoolExecutor(len(wave)) as pool:
                    list(pool.map(stop, wave))
            supervisor.shutdown()
        processes.sweep(self.layout.root)

    def _erase(self) -> None:
        """Only what looks like a stack's directory, and never one that is more than that."""
        root = self.layout.root
        if not self.layout.run.is_dir():
            raise StackError(f"{root} does not look like a stack's data directory (no run/ in it): not erased")
        if root in (Path.home(), Path("/"), Path.cwd()) or (root / ".git").exists():
            raise StackError(f"{root} holds more than a stack's data: not erased; remove it by hand")
        for child in root.iterdir():
            if child.is_dir() and not child.is_symlink():
                shutil.rmtree(child)
            elif child != self.layout.lock:
                child.unlink()

    # --- small things --------------------------------------------------------------------------------------------

    def _jobs(self) -> list[str]:
        return [part.name for part in self.parts if part.kind is Kind.JOB]

    def _supervisor(self) -> Supervisor:
        layout = self.layout
        return Supervisor(layout.root, layout.supervisor_conf, layout.supervisor_socket(), layout.log("supervisord"))

    def _memory(self) -> dict[str, int]:
        """Resident bytes by part, by the mark that every process of the stack carries."""
        out: dict[str, int] = {}
        for process in processes.members(self.layout.root):
            try:
                part = processes.part_of(process, self.layout.root) or "supervisord"
                out[part] = out.get(part, 0) + process.memory_info().rss
            except (psutil.Error, OSError):
                continue  # ended meanwhile
        return out

    def _check_room(self) -> None:
        free = shutil.disk_usage(self.layout.root).free
        if free < DISK_NEEDED:
            raise StackError(
                f"the disk that holds {self.layout.root} has {free / 1e6:.0f} MB free, {DISK_NEEDED / 1e6:.0f} MB are"
                " needed: free some space, or set PENSTOCK_DATA_DIR to a folder on another disk"
            )

    @contextlib.contextmanager
    def _disk_full_explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise StackError(
                f"the disk that holds {self.layout.root} is full: free some space, or set PENSTOCK_DATA_DIR to a"
                " folder on another disk"
            ) from error

    @contextlib.contextmanager
    def _locked(self, say: Progress) -> Iterator[None]:
        """One `up` or `down` at a time. The kernel lets go of the lock when its holder dies."""
        with self.layout.lock.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say("waiting for another `penstock up` or `down` of this stack to end")
                fcntl.flock(file, fcntl.LOCK_EX)
            yield


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Clearing up is not interrupted: a second Ctrl-C would leave the processes that the first wants gone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
