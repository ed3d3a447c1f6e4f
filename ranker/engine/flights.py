"""Forwards in flight: landed in the order in which they were launched. Owned by the engine's forward thread.

Invariant: what was launched is landed once or abandoned, and with it the items that it holds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from prometheus_client import Counter, Histogram

from penstock.ranker.engine.backend import Backend, Launched
from penstock.ranker.engine.plan import Forward
from penstock.ranker.engine.turns import Part

FORWARD_TOKENS = Histogram(
    "penstock_engine_forward_tokens", "Tokens a forward", buckets=(64, 256, 1_024, 2_048, 4_096, 8_192, 16_384, 65_536)
)
BUSY = Counter("penstock_engine_busy_seconds_total", "How long the engine's backend had a forward to compute")


@dataclass(frozen=True, slots=True, eq=False)
class Flight:
    parts: Sequence[Part]  # by the numbers of the forward's requests; none of a known answer
    forward: Forward
    launched_s: float
    scores: Launched


class Flights:
    """`hung_s` and `landed` may be read by any thread."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.landed = 0  # since the start
        self._clock = clock
        self._flying: deque[Flight] = deque()
        self._since_s: float | None = None  # since when the oldest has the backend for itself

    def __len__(self) -> int:
        return len(self._flying)

    @property
    def tokens(self) -> int:
        return sum(len(flight.forward) for flight in self._flying)

    @property
    def alone(self) -> bool:
        """Whether one is in flight that shares its flight with none, so that what fails is known to be its."""
        return any(part.of.alone for flight in self._flying for part in flight.parts)

    def hung_s(self, now: float) -> float:
        """How long the backend has been at the oldest, 0 when it owes nothing."""
        since = self._since_s
        return 0.0 if since is None else now - since

    def launch(self, backend: Backend, forward: Forward, parts: Sequence[Part] = ()) -> None:
        """Raises what the backend raises; what was in flight before still is."""
        now = self._clock()
        if not self._flying:
            self._since_s = now
        try:
            scores = backend.launch(forward)
        except BaseException:
            if not self._flying:
                self._since_s = None
            raise
        self._flying.append(Flight(parts, forward, now, scores))

    def land(self) -> tuple[Flight, NDArray[np.float64]]:
        """The oldest and its logits. Raises what the backend raises, then it is still in flight: see `abandon`."""
        flight = self._flying[0]
        logits = flight.scores.wait()
        if logits.shape != flight.forward.last.shape:
            raise ValueError(f"the backend gave logits of shape {logits.shape} for {len(flight.forward.last)} items")
        self._flying.popleft()
        self._ended(self._clock())
        self.landed += 1
        FORWARD_TOKENS.observe(len(flight.forward))
        return flight, logits

    def abandon(self) -> list[Part]:
        """Expect nothing more of what is in flight: its parts, the last launched first."""
        parts = [part for flight in reversed(self._flying) for part in flight.parts]
        self._flying.clear()
        self._ended(self._clock())
        return parts

    def _ended(self, now: float) -> None:
        """The oldest is no longer in flight: the next has the backend for itself."""
        if self._since_s is not None:
            BUSY.inc(max(0.0, now - self._since_s))
        self._since_s = now if self._flying else None
