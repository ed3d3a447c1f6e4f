"""The embedded stack as a `Machinery`: what `penstock up` starts, broken by signals and healed by `penstock up`."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from penstock.infra.local.stack import Stack
from penstock.infra.settings import Settings


class EmbeddedStack:
    def __init__(self, data_dir: Path) -> None:
        self.stack = Stack(data_dir)

    def settings(self) -> Settings:
        return self.stack.settings()

    def pids(self, victim: str) -> list[int]:
        """The processes of a part; "workers" are the TaskManager's Python ones, "supervisord" keeps all the others."""
        if victim == "supervisord":
            found = self.stack.supervisor_pid()
            return [found] if found is not None else []
        part = "taskmanager" if victim == "workers" else victim
        [pid] = [status.pid for status in self.stack.status() if status.name == part]
        if pid is None:
            return []
        if victim != "workers":
            return [pid]
        children = psutil.Process(pid).children(recursive=True)
        return [child.pid for child in children if any("beam_boot" in word for word in child.cmdline())]

    def kill(self, victim: str) -> None:
        pids = self.pids(victim)
        assert pids, f"{victim} has no process"
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        _, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=10)
        assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]

    @contextmanager
    def stopped(self, part: str) -> Iterator[None]:
        """Holds a part's process still (SIGSTOP): it is there and answers nobody."""
        pids = self.pids(part)
        assert pids, f"{part} has no process"
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                if psutil.pid_exists(pid):
                    os.kill(pid, signal.SIGCONT)

    def heal(self) -> None:
        self.stack.up()
