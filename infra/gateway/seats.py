"""How many alert streams may be open at once."""

from __future__ import annotations

from penstock.infra.gateway import metrics
from penstock.infra.gateway.errors import away

RETRY_S = 5


class Seats:
    """Owned by the event loop."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.taken = 0

    def take(self) -> None:
        """Raises Problem (503) when all are taken."""
        if self.taken >= self._most:
            metrics.STREAMS_CUT.labels("refused").inc()
            raise away(f"all {self._most} alert streams of this gateway are taken (gateway.max_streams)", RETRY_S)
        self.taken += 1
        metrics.STREAMS.set(self.taken)

    def leave(self) -> None:
        self.taken -= 1
        metrics.STREAMS.set(self.taken)
