"""Runs this process only when nobody else wants the processor, as far as the machine lets it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

LOWEST_NICE = 19


def go_idle(schedule: Callable[[], None] | None = None, nice: Callable[[int], int] = os.nice) -> tuple[str, str]:
    """What was reached ("SCHED_IDLE", "nice 19", "normal"), and why no better; empty when it is the best.

    Threads that are started later inherit it.
    """
    try:
        (schedule or _sched_idle)()
        return "SCHED_IDLE", ""
    except (OSError, AttributeError) as error:  # not Linux, or a container that forbids it
        reason = f"SCHED_IDLE: {type(error).__name__}: {error}"
    try:
        reached = nice(LOWEST_NICE)
    except OSError as error:
        return "normal", f"{reason}; nice: {error}"
    return f"nice {reached}", reason


def _sched_idle() -> None:
    for thread in Path("/proc/self/task").iterdir():  # Linux schedules threads, not processes
        os.sched_setscheduler(int(thread.name), os.SCHED_IDLE, os.sched_param(0))
