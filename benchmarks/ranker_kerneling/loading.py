"""Load on the real engine: as much as it takes, and arrivals that wait for nobody.

saturate    a fixed number of requests are always in it: items a second
arrivals    Poisson, open loop: a request's time runs from when it was due, whoever was late
Watch       when the device had a forward to compute: around each launch two events of its own stream
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from penstock.ranker.engine.engine import Engine
from penstock.ranker.engine.plan import Request
from penstock.ranker.engine.turns import Pending

OUTSTANDING = 8  # requests that are always in a saturated engine: as many as are ranked at once


def saturate(engine: Engine, requests: Sequence[Request], seconds: float) -> float:
    """Items a second over `seconds`, from when the first OUTSTANDING are in to when the last is out."""
    room = threading.Semaphore(OUTSTANDING)
    taken: list[Pending] = []
    began = time.monotonic()
    while not taken or time.monotonic() - began < seconds:
        room.acquire()
        one = engine.submit(requests[len(taken) % len(requests)])
        one.future.add_done_callback(lambda _: room.release())
        taken.append(one)
    items = sum(len(one.future.result().logits) for one in taken)  # raises what a forward raised
    return items / (time.monotonic() - began)


def arrivals(engine: Engine, requests: Sequence[Request], rate: float, seconds: float, seed: int = 0) -> list[float]:
    """Milliseconds of each request, at `rate` requests a second. Raises what the engine answers with, or refuses by."""
    chance = np.random.default_rng(seed)
    due = np.cumsum(chance.exponential(1 / rate, max(1, round(rate * seconds)))).tolist()
    spent: list[float] = []
    taken: list[Pending] = []
    began = time.monotonic()
    for number, at in enumerate(due):
        if (wait := began + at - time.monotonic()) > 0:
            time.sleep(wait)
        one = engine.submit(requests[number % len(requests)])
        one.future.add_done_callback(lambda _, at=at: spent.append((time.monotonic() - began - at) * 1e3))
        taken.append(one)
    for one in taken:
        one.future.result()
    return spent


@dataclass(slots=True)
class Watch:
    """A `capture` for DeviceBackend that makes graphs by another one, and knows when each forward began and ended.

    Between forwards are the copies in and out, and whatever the host was late with: `gap_share` counts both.
    """

    capture: Callable[[Callable[[], None]], Callable[[], None]]
    device: torch.device
    spans: list[tuple[Any, Any]] = field(default_factory=list)

    def __call__(self, launch: Callable[[], None]) -> Callable[[], None]:
        replay = self.capture(launch)

        def watched() -> None:
            begin = self._now()
            replay()
            self.spans.append((begin, self._now()))

        return watched

    def gap_share(self) -> float:
        """Of the time from the first forward's begin to the last one's end, what lay between forwards."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        whole = self._between(self.spans[0][0], self.spans[-1][1])
        gaps = sum(self._between(end, begin) for (_, end), (begin, _) in zip(self.spans, self.spans[1:], strict=False))
        return gaps / whole

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch's
        event.record()
        return event

    @staticmethod
    def _between(begin: Any, end: Any) -> float:
        return float(end - begin if isinstance(begin, float) else begin.elapsed_time(end))
