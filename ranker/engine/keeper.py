"""The keeper of the engine's backend: makes it, warms it up, sees whether it still scores as it did, makes it anew.

The known answer is a request whose probability was taken at the start. A backend that gives another, or fails, is not
believed until it gives that one again; where it does not, it is made anew until it does. Nothing else may be in flight
while it is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from prometheus_client import Counter

from penstock.infra.telemetry import DEGRADED
from penstock.ranker.backends.scorer import probability
from penstock.ranker.engine.backend import Backend
from penstock.ranker.engine.errors import EngineClosed
from penstock.ranker.engine.flights import Flights
from penstock.ranker.engine.plan import Request, plan
from penstock.ranker.errors import NonFiniteScore

if TYPE_CHECKING:
    from penstock.ranker.engine.engine import Limits

TOLERANCE = 1e-3  # of the known answer's probability
BACK_OFF_S = (0.1, 0.5, 1.0, 5.0)  # between attempts to make a backend, the last again and again

RESTARTS = Counter("penstock_engine_restarts_total", "Backends made anew after a failure")


class Keeper:
    """Owns the backend. The forward thread alone calls it once `begin` is done; others may read what is public."""

    def __init__(
        self,
        make: Callable[[], Backend],
        known: Request,
        limits: Limits,
        flights: Flights,
        back_off_s: Sequence[float],
        clock: Callable[[], float],
    ) -> None:
        self.trouble = ""  # why no score can be believed; empty when they can
        self.restarts = 0  # backends made anew
        self.checked_s = 0.0  # of the clock: when the known answer last came out right
        self._make = make
        self._known = known
        self._limits = limits
        self._flights = flights
        self._back_off_s = back_off_s
        self._clock = clock
        self._backend: Backend | None = None
        self._expected: NDArray[np.float64] = np.empty(0)

    @property
    def backend(self) -> Backend:
        if self._backend is None:  # the engine stopped while it was made
            raise EngineClosed
        return self._backend

    @property
    def in_flight(self) -> int:
        return 1 if self._backend is None else self._backend.in_flight

    def begin(self) -> None:
        """Make the backend, warm it up, take the known answer. Raises what the backend raises, and NonFiniteScore."""
        self._backend = self._make()
        for request in self._warm_up():
            self._logits_of(request)
        self._expected = probability(self._logits_of(self._known))
        self.checked_s = self._clock()

    def check(self) -> None:
        """Ask the known answer. Raises what the backend raises, and NonFiniteScore when it answers otherwise."""
        p = probability(self._logits_of(self._known))
        if not np.allclose(p, self._expected, rtol=0, atol=TOLERANCE):
            raise NonFiniteScore(f"a known request scores {p.tolist()}, at the start {self._expected.tolist()}")
        self.checked_s = self._clock()

    def revive(self, cause: BaseException, rest: Callable[[float], bool]) -> None:
        """In trouble until the known answer comes: of the backend there is, or of one made anew, tried until it does.

        `rest` waits so many seconds, and is false when the engine stops: then there is no backend.
        """
        DEGRADED.labels("ranker", "engine").inc()
        self.trouble = f"a forward failed: {type(cause).__name__}: {cause}"
        attempt = 0
        while True:
            try:
                if self._backend is None:
                    self._backend = self._make()
                    self.restarts += 1
                    RESTARTS.inc()
                self.check()
                break
            except BaseException as error:
                self._flights.abandon()
                self._backend = None  # its memory is needed for the next
                self.trouble = f"making the backend anew: {type(error).__name__}: {error}"
                if attempt and not rest(self._back_off_s[min(attempt, len(self._back_off_s)) - 1]):
                    return
                attempt += 1
        self.trouble = ""

    def _warm_up(self) -> list[Request]:
        """Requests of one item and of as many as the forwards may hold, as warm as the first real ones need it."""
        known = self._known
        made = [known]
        for kind, room in ((True, self._limits.interactive), (False, self._limits.budget)):
            item = known.items[0]
            number = max(1, (room - len(known.prefix)) // len(item))
            made.append(Request(known.prefix, (item,) * number, kind))
        return made

    def _logits_of(self, request: Request) -> NDArray[np.float64]:
        """Of a known request, forward by forward."""
        logits = np.full(len(request.items), np.nan)
        for forward in plan([request], self._limits.budget, self._limits.interactive):
            self._flights.launch(self.backend, forward)
            logits[forward.scores_of[:, 1]] = self._flights.land()[1]
        if not np.isfinite(logits).all():
            raise NonFiniteScore(f"a known request has logits {logits.tolist()}: the weights are damaged")
        return logits
