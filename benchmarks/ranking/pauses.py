"""What the garbage collector costs a process: how often it ran, and for how long everybody stood still.

The collector holds the interpreter's lock from its beginning to its end, so the processor time of the thread it runs on
is how long every other thread waits for it. That is the pause counted here: the clock on the wall would add what other
programs of a busy machine took meanwhile, and what other threads did before the thread could read it. It stands beside.
"""

from __future__ import annotations

import gc
import math
import time
from typing import Any

GENERATIONS = 3
_LEAST_MS = 1e-3
_STEP = 1.02  # each bucket is that much longer than the one before
_BUCKETS = 1_000  # so the last begins at 400 s


class Durations:
    """How many took how long. Its size never changes, so that counting does not show in the memory it stands beside."""

    def __init__(self) -> None:
        self._counts = [0] * _BUCKETS
        self.total_ms = 0.0
        self.max_ms = 0.0

    def add(self, ms: float) -> None:
        self._counts[_bucket(ms)] += 1
        self.total_ms += ms
        self.max_ms = max(self.max_ms, ms)

    def percentile(self, share: float) -> float:
        """At most 2% more than the real one; 0 of none."""
        wanted = math.ceil(share * sum(self._counts))
        seen = 0
        for bucket, count in enumerate(self._counts):
            seen += count
            if count and seen >= wanted:
                return self.max_ms if bucket == _BUCKETS - 1 else min(_LEAST_MS * _STEP**bucket, self.max_ms)
        return 0.0


class Pauses:
    """Counts collections while it is in gc.callbacks. `clear` forgets what was."""

    def __init__(self) -> None:
        self.clear()
        self._began_s = self._wall_s = 0.0

    def clear(self) -> None:
        self.collections = [0] * GENERATIONS
        self.pauses = Durations()
        self.wall = Durations()

    def __call__(self, phase: str, info: dict[str, Any]) -> None:
        """One collection at a time, both calls on its thread."""
        if phase == "start":
            self._began_s, self._wall_s = time.thread_time(), time.perf_counter()
            return
        took_s, wall_s = time.thread_time() - self._began_s, time.perf_counter() - self._wall_s
        self.collections[info["generation"]] += 1
        self.pauses.add(took_s * 1e3)
        self.wall.add(wall_s * 1e3)

    def __enter__(self) -> Pauses:
        gc.callbacks.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        gc.callbacks.remove(self)

    def told(self) -> dict[str, Any]:
        return {
            "collections": list(self.collections),
            "p99_ms": self.pauses.percentile(0.99),
            "max_ms": self.pauses.max_ms,
            "total_ms": self.pauses.total_ms,
            "wall_p99_ms": self.wall.percentile(0.99),
            "wall_max_ms": self.wall.max_ms,
        }


def _bucket(ms: float) -> int:
    """The first whose upper end is at least `ms`."""
    if ms <= _LEAST_MS:
        return 0
    return min(_BUCKETS - 1, math.ceil(math.log(ms / _LEAST_MS) / math.log(_STEP)))
