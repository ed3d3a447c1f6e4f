"""Contenders timed in turn, over and over, so that what else the machine does falls on all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

PAUSE_S = 0.005  # after each: pools of threads spin for a while
SLOW = 6.0  # times slower than the first contender: two runs are enough to know


@dataclass(frozen=True, slots=True)
class Timed:
    """Medians, and CPU time of all threads, in milliseconds."""

    wall_ms: float
    cpu_ms: float
    runs: int


def interleaved(contenders: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, Timed]:
    """Each contender's median of `repeats` runs after one that does not count. The first one is what SLOW refers to."""
    wall: dict[str, list[float]] = {name: [] for name in contenders}
    cpu: dict[str, list[float]] = {name: [] for name in contenders}
    first = next(iter(contenders))
    for run in range(repeats + 1):
        for name, contender in contenders.items():
            if len(wall[name]) >= 2 and statistics.median(wall[name]) > SLOW * statistics.median(wall[first]):
                continue
            spent, begin = time.process_time(), time.perf_counter()
            contender()
            took, used = time.perf_counter() - begin, time.process_time() - spent
            if run:
                wall[name].append(took)
                cpu[name].append(used)
            time.sleep(PAUSE_S)
    return {
        name: Timed(statistics.median(wall[name]) * 1e3, statistics.median(cpu[name]) * 1e3, len(wall[name]))
        for name in contenders
    }
