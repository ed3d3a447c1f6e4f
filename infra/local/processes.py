"""Processes of a stack, known by the mark in their environment, which every descendant inherits.

The mark, and not parentage, is what finds PyFlink's Python workers after their TaskManager was killed. It holds the
data directory's path, so one stack's sweep never touches another's. Redis writes its title over its environment: it
is known by its working directory.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import psutil

MARK = "PENSTOCK_STACK"
PART = "PENSTOCK_PART"


def members(root: Path, part: str | None = None) -> list[psutil.Process]:
    """Live processes of the stack in `root` (of one part, if named), without the caller and its ancestors."""
    own = {os.getpid(), *(process.pid for process in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter():
        if process.pid in own:
            continue
        try:
            belongs = part_of(process, root)
            if belongs is not None and part in (None, belongs) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue  # ended meanwhile, or another user's: not ours
    return found


def part_of(process: psutil.Process, root: Path) -> str | None:
    """The part of the stack in `root` that a process belongs to, or None when it is not of that stack.

    Raises psutil.Error or OSError for processes that may not be looked at.
    """
    environment: dict[str, str] = process.environ()
    if environment.get(MARK) == str(root):
        return environment.get(PART, "supervisord")
    if process.name() == "redis-server" and process.cwd() == str(root / "redis"):
        return "redis"
    return None


def sweep(root: Path, part: str | None = None, *, grace: float = 0.0) -> list[int]:
    """End every process of the stack (or part): SIGTERM and `grace` seconds, then SIGKILL. Returns their pids."""
    swept: set[int] = set()
    for _ in range(5):  # again, for one may have forked while we looked; not for ever, for one may be unkillable
        leftovers = members(root, part)
        if not leftovers:
            break
        swept.update(process.pid for process in leftovers)
        if grace > 0:
            _signal(leftovers, kill=False)
            _, leftovers = psutil.wait_procs(leftovers, timeout=grace)
            grace = 0.0
        _signal(leftovers, kill=True)
        psutil.wait_procs(leftovers, timeout=5)
    return sorted(swept)


def _signal(processes: Iterable[psutil.Process], *, kill: bool) -> None:
    for process in processes:
        try:
            if kill:
                process.kill()
            else:
                process.terminate()
        except psutil.NoSuchProcess:
            continue  # it went by itself
