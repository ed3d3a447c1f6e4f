"""What was decided since the start, and what waits: the state that metrics and `penstock top` show.

Owner: one shaper, which counts here and nowhere else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from penstock.ranker.shaping.schedule import LATE, LEVELS, Lane
from penstock.ranker.shaping.work import State, Waiting, Why
from penstock.schemas.events import RankClass


class Tally:
    def __init__(self) -> None:
        self.admitted: Counter[RankClass] = Counter()
        self.deferred: Counter[RankClass] = Counter()
        self.refused: Counter[Why] = Counter()
        self.expired: Counter[RankClass] = Counter()

    def state(
        self,
        now_s: float,
        lanes: Sequence[Lane],
        *,
        slack_s: float,
        delay_s: float,
        depth: float,
        depth_reason: Why,
        confidence: float,
        overhead_s: float,
        token_s: float,
    ) -> State:
        """`lanes` by level; the rest as in State."""
        return State(
            queues={class_: _waiting(lanes[level], now_s) for class_, level in LEVELS.items()},
            late=_waiting(lanes[LATE], now_s),
            slack_s=slack_s,
            delay_s=delay_s,
            depth=depth,
            depth_reason=depth_reason,
            confidence=confidence,
            admitted=dict(self.admitted),
            deferred=dict(self.deferred),
            refused=dict(self.refused),
            expired=dict(self.expired),
            overhead_s=overhead_s,
            token_s=token_s,
        )


def _waiting(lane: Lane, now_s: float) -> Waiting:
    first = lane.first()
    return Waiting(lane.works, lane.cost, now_s - first.work.arrived_s if first is not None else 0.0)
