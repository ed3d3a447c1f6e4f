"""Does the scorer still score? While work flows, the work says so; when it does not, one known pair is scored anew.

The answer is taken once at the start, from the very scorers that serve; a later one must be the same within what
the scorer says of itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from penstock.ranker.backends.scorer import ANYONE, Caller, Scorer, ScoringItem, ScoringQuery
from penstock.ranker.errors import DeadlinePassed, NoScores
from penstock.ranker.scoring import Scorers
from penstock.schemas.events import Attributes, IndexOp, IndexUpdate

CHECK_EVERY_MS = 10_000
CHECK_S = 2.0  # that a check may take: who asks for a status does not wait for long

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


def known_pairs(count: int) -> tuple[ScoringQuery, list[ScoringItem]]:
    """The same query with so many postings, all different."""
    return _QUERY, [_ITEM, *(_another(number) for number in range(1, count))]


def _another(number: int) -> ScoringItem:
    update = _ITEM.update
    text = f"{update.item_text} Ward {number}."
    return replace(_ITEM, update=replace(update, posting_id=f"known-answer-{number}", item_text=text))


@dataclass(frozen=True, slots=True)
class Verdict:
    ok: bool
    reason: str  # empty when ok
    checked_ms: int  # epoch milliseconds


class KnownAnswer:
    """Safe to share between threads. `now_ms` gives epoch milliseconds."""

    def __init__(self, scorers: Scorers, now_ms: Callable[[], int]) -> None:
        """Scores the pair once. Raises what a scorer raises."""
        models: list[Scorer | None] = [scorers.fused, scorers.language_model]
        self._models = [model for model in models if model is not None]
        self._now_ms = now_ms
        self._lock = threading.Lock()
        self._expected = [self._score(model) for model in self._models]
        self._verdict = Verdict(True, "", now_ms())

    def verdict(self, idle_ms: int) -> Verdict:
        """The last check, or a fresh one when nothing was served for a while and the last is as old.

        Who asks while somebody else checks gets the last one.
        """
        if min(idle_ms, self._now_ms() - self._verdict.checked_ms) >= CHECK_EVERY_MS and self._lock.acquire(False):
            try:
                self._verdict = self._check()
            finally:
                self._lock.release()
        return self._verdict

    def _check(self) -> Verdict:
        for model, expected in zip(self._models, self._expected, strict=True):
            try:
                p = self._score(model, Caller(deadline_s=time.monotonic() + CHECK_S))
            except (NoScores, DeadlinePassed):  # away, full or busy: its own health tells, and the answers do
                continue
            except Exception as error:  # whatever it is, the scorer does not score: that is the answer
                return Verdict(False, f"scoring a known pair failed: {type(error).__name__}: {error}", self._now_ms())
            if not abs(p - expected) <= model.tolerance:
                reason = f"a known pair scores {p} by {model.model_id}, at the start it scored {expected}"
                return Verdict(False, reason, self._now_ms())
        return Verdict(True, "", self._now_ms())

    @staticmethod
    def _score(model: Scorer, caller: Caller = ANYONE) -> float:
        return float(model.score(_QUERY, [_ITEM], caller).p[0])
