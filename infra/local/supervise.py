"""The process manager of one stack: a supervisord of its own, spoken to over a Unix socket.

Owns nothing but the connection; supervisord owns the processes. A proxy is made for each call, so an instance may be
shared between threads.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from supervisor.xmlrpc import Faults, SupervisorTransport

from penstock.infra.local.errors import StackError
from penstock.infra.local.processes import MARK

_UNREACHABLE = (OSError, xmlrpc.client.ProtocolError)


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """What supervisord says of one process. `pid` 0: none. Times in epoch seconds."""

    name: str
    state: str
    pid: int
    started: int
    exit_status: int
    error: str

    @property
    def alive(self) -> bool:
        return self.state in ("STARTING", "RUNNING") and self.pid > 0

    @property
    def going(self) -> bool:
        """Alive, or about to be started again by itself."""
        return self.alive or self.state in ("BACKOFF", "STOPPING")


class Supervisor:
    """The supervisord behind `socket`, configured by `conf`, of the stack in `root`."""

    def __init__(self, root: Path, conf: Path, socket: Path, log: Path) -> None:
        self._root, self._conf, self._socket, self._log = root, conf, socket, log

    def pid(self) -> int | None:
        """Its process id while it answers, else None."""
        try:
            return int(self._call("getPID"))
        except (*_UNREACHABLE, xmlrpc.client.Fault):
            return None

    def start(self, environment: Mapping[str, str], timeout: float = 15.0) -> None:
        """Start it, in a session of its own so that Ctrl-C at a terminal is not its business. Raises StackError."""
        self._socket.unlink(missing_ok=True)
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "supervisor.supervisord", "-c", str(self._conf)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._root,
                env={**environment, MARK: str(self._root)},
                start_new_session=True,
            )
        deadline = time.monotonic() + timeout
        while self.pid() != process.pid:
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                process.wait()
                tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-5:])
                raise StackError(f"supervisord did not start; the end of {self._log}:\n{tail}")
            time.sleep(0.05)

    def processes(self) -> dict[str, ProcessInfo]:
        """Every process by name; empty when supervisord is not there."""
        try:
            infos = self._call("getAllProcessInfo")
        except _UNREACHABLE:
            return {}
        return {
            info["name"]: ProcessInfo(
                info["name"], info["statename"], info["pid"], info["start"], info["exitstatus"], info["spawnerr"]
            )
            for info in infos
        }

    def process(self, name: str) -> ProcessInfo:
        """One of them. A dead supervisord has stopped processes only."""
        return self.processes().get(name) or ProcessInfo(name, "STOPPED", 0, 0, 0, "supervisord is gone")

    def started(self, name: str) -> float | None:
        """When the present process of that name began, epoch seconds; None while there is none."""
        info = self.process(name)
        return float(info.started) if info.alive else None

    def start_process(self, name: str) -> None:
        """Ask for a start; health is the caller's to watch. Harmless when it runs."""
        try:
            self._call("startProcess", name, False)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode != Faults.ALREADY_STARTED:
                raise StackError(f"supervisord cannot start {name}: {fault.faultString}") from fault
        except _UNREACHABLE as error:
            raise StackError(f"supervisord went away while {name} was starting: {error}") from error

    def stop_process(self, name: str) -> None:
        """Ask it to end, wait until it has (killed after its stop_wait). Harmless when it does not run."""
        try:
            self._call("stopProcess", name, False)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode not in (Faults.NOT_RUNNING, Faults.BAD_NAME):
                raise StackError(f"supervisord cannot stop {name}: {fault.faultString}") from fault
        except _UNREACHABLE:
            return  # gone, and its children with it
        while self.process(name).going:  # ends: supervisord kills what does not go
            time.sleep(0.05)

    def shutdown(self, timeout: float = 15.0) -> None:
        """End it and whatever it still runs. Harmless when it is not there."""
        pid = self.pid()
        if pid is None:
            return
        try:
            self._call("shutdown")
        except (*_UNREACHABLE, xmlrpc.client.Fault):
            return  # it was going already; the sweep that follows looks
        deadline = time.monotonic() + timeout
        while psutil.pid_exists(pid) and time.monotonic() < deadline:
            if _reaped(pid):
                return
            time.sleep(0.05)

    def _call(self, method: str, *arguments: Any) -> Any:
        transport = SupervisorTransport(None, None, serverurl=f"unix://{self._socket}")
        with xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport) as proxy:
            return getattr(proxy.supervisor, method)(*arguments)


def _reaped(pid: int) -> bool:
    """Take note of a child's end, when it is ours (the process that ran `up` may also run `down`)."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return False
