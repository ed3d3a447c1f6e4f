"""The embedded stack as a `Machinery`: what `penstock up` starts, broken by signals and healed by `penstock up`."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil

from penstock.infra.local.stack import Stack
from penstock.infra.settings import Settings


class EmbeddedStack:
    def __init__(self, data_dir: Path) -> None:
        self.stack = Stack(data_dir)

    def settings(self) -> Settings:
        return self.stack.settings()

    def pid(self, part: str) -> int:
        [found] = [status.pid for status in self.stack.status() if status.name == part]
        assert found is not None, f"{part} has no process"
        return found

    def kill(self, part: str) -> None:
        process = psutil.Process(self.pid(part))
        os.kill(process.pid, signal.SIGKILL)
        process.wait(10)

    def heal(self) -> None:
        self.stack.up()
