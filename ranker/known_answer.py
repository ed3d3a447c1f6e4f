"""Does the scorer still score? While work flows, the work says so; when it does not, one known pair is scored anew.

The answer is taken once at the start, from the very scorers that serve; a later one must be the same within TOLERANCE.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from penstock.ranker.backends.scorer import ScoringItem, ScoringQuery
from penstock.ranker.scoring import Scorers
from penstock.schemas.events import Attributes, IndexOp, IndexUpdate

TOLERANCE = 1e-3  # of a probability: a GPU's sums may differ in order between runs
CHECK_EVERY_MS = 10_000

_QUERY = ScoringQuery("registered nurse in Ohio, night shift", None)
_ITEM = ScoringItem(
    dense=0.5,
    lexical=0.25,
    update=IndexUpdate(
        posting_id="known-answer",
        version=1,
        op=IndexOp.UPSERT,
        attributes=Attributes(title="Registered Nurse", company="Columbus General Hospital"),
        summary="Night shifts in the intensive care unit.",
        item_text="Registered Nurse, Columbus General Hospital. Night shifts in the intensive care unit.",
        produced_at=0,
    ),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    ok: bool
    reason: str  # empty when ok
    checked_ms: int  # epoch milliseconds


class KnownAnswer:
    """Safe to share between threads. `now_ms` gives epoch milliseconds."""

    def __init__(self, scorers: Scorers, now_ms: Callable[[], int]) -> None:
        """Scores the pair once. Raises what a scorer raises."""
        self._scorers = scorers
        self._now_ms = now_ms
        self._lock = threading.Lock()
        self._expected = self._score()
        self._verdict = Verdict(True, "", now_ms())

    def verdict(self, idle_ms: int) -> Verdict:
        """The last check, or a fresh one when nothing was served for a while and the last is as old."""
        with self._lock:
            if min(idle_ms, self._now_ms() - self._verdict.checked_ms) >= CHECK_EVERY_MS:
                self._verdict = self._check()
            return self._verdict

    def _check(self) -> Verdict:
        try:
            scores = self._score()
        except Exception as error:  # whatever it is, the scorer does not score: that is the answer
            return Verdict(False, f"scoring a known pair failed: {type(error).__name__}: {error}", self._now_ms())
        if not np.allclose(scores, self._expected, rtol=0, atol=TOLERANCE):
            reason = f"a known pair scores {scores}, at the start it scored {self._expected}"
            return Verdict(False, reason, self._now_ms())
        return Verdict(True, "", self._now_ms())

    def _score(self) -> list[float]:
        models = [self._scorers.fused, self._scorers.language_model]
        return [float(model.score(_QUERY, [_ITEM]).p[0]) for model in models if model is not None]
