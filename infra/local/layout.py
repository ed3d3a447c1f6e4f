"""Where a local stack keeps what: every path of it, under one data directory."""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

# A Unix socket's path holds at most 108 bytes, and supervisord binds `<path>.<pid>` first.
_SOCKET_PATH_BYTES = 108 - len(".4194304") - 1


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths of the stack in `root`, an absolute path. It owns everything below `root`."""

    root: Path

    @classmethod
    def at(cls, data_dir: Path) -> Layout:
        return cls(data_dir.resolve())

    @property
    def settings(self) -> Path:
        return self.root / "penstock.toml"

    @property
    def lock(self) -> Path:
        return self.root / "stack.lock"

    @property
    def run(self) -> Path:
        """What this run of the stack is: chosen ports, generated configuration, job ids."""
        return self.root / "run"

    @property
    def ports(self) -> Path:
        return self.run / "ports.json"

    @property
    def jobs(self) -> Path:
        return self.run / "jobs.json"

    @property
    def supervisor_conf(self) -> Path:
        return self.run / "supervisord.conf"

    @property
    def launch(self) -> Path:
        """One JSON file a process: its arguments and environment."""
        return self.run / "launch"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def kafka(self) -> Path:
        return self.root / "kafka"

    @property
    def redis(self) -> Path:
        return self.root / "redis"

    @property
    def flink(self) -> Path:
        return self.root / "flink"

    @property
    def flink_conf(self) -> Path:
        return self.flink / "conf"

    @property
    def flink_lib(self) -> Path:
        """Links to the wheel's jars and to the Kafka connector: the cluster's class path."""
        return self.flink / "lib"

    @property
    def flink_python(self) -> Path:
        """What the Python inside the TaskManager's JVM reads first."""
        return self.flink / "python"

    @property
    def checkpoints(self) -> Path:
        return self.flink / "checkpoints"

    def log(self, part: str) -> Path:
        return self.logs / f"{part}.log"

    def make(self) -> None:
        """Create the folders. Raises OSError."""
        for folder in (
            self.launch,
            self.logs,
            self.kafka,
            self.redis,
            self.flink_conf,
            self.flink_lib,
            self.flink_python,
        ):
            folder.mkdir(parents=True, exist_ok=True)
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        (self.flink / "tmp").mkdir(exist_ok=True)

    def supervisor_socket(self) -> Path:
        """The process manager's socket: in the data directory, or, where that path is too long, in a short one."""
        here = self.run / "supervisor.sock"
        if len(os.fsencode(here)) <= _SOCKET_PATH_BYTES:
            return here
        base = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
        name = hashlib.sha256(os.fsencode(self.root)).hexdigest()[:16]
        folder = base / f"penstock-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_uid != os.getuid() or folder.stat().st_mode & 0o077:
            raise PermissionError(f"{folder} must belong to this user alone: remove it, or set XDG_RUNTIME_DIR")
        return folder / f"{name}.sock"
