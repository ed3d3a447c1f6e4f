"""What a scorer is: a query and candidates in, a calibrated probability a candidate out, with what it is made of.

A pair's score depends on that pair alone (never on what else is in the batch, on time or on place in it), so that it
can be cached. Whatever a scorer cannot score is an error: a number that is not a probability is never ranked.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from penstock.ranker.errors import CallerLeft, DeadlinePassed, NonFiniteScore
from penstock.schemas.events import IndexUpdate, QueryVector


@dataclass(frozen=True, slots=True)
class ScoringQuery:
    """The query's side of a pair."""

    text: str
    vector: QueryVector | None

    def identity(self) -> bytes:
        """Equal for queries whose pairs score the same, as part of cache keys."""
        parts = [self.text.encode()]
        if self.vector is not None:
            parts += [self.vector.space_id.encode(), self.vector.encoder_id.encode()]
            parts += [self.vector.dense, self.vector.lexical or b""]
        return b"".join(len(part).to_bytes(8, "little") + part for part in parts)


@dataclass(frozen=True, slots=True)
class ScoringItem:
    """The posting's side: what retrieval scored, and the posting itself."""

    dense: float
    lexical: float
    update: IndexUpdate  # an UPSERT; its vector is not needed
    has_dense: bool = True  # False: nobody could compute `dense`, which is 0 then


def nobody_left() -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Caller:
    """Who waits for scores, and how long."""

    interactive: bool = True  # a person waits
    deadline_s: float = math.inf  # of time.monotonic
    has_left: Callable[[], bool] = nobody_left

    def check(self, before: str) -> None:
        """Raises CallerLeft or DeadlinePassed: nobody waits for what would come."""
        if self.has_left():
            raise CallerLeft(f"the caller left before {before}")
        late_s = time.monotonic() - self.deadline_s
        if late_s >= 0:
            raise DeadlinePassed(before, late_ms=int(late_s * 1000))


ANYONE = Caller()


@dataclass(frozen=True, slots=True)
class Scores:
    """Checked when made: raises NonFiniteScore unless every p is in [0, 1] and every part is finite."""

    p: NDArray[np.float64]  # [n]
    parts: NDArray[np.float64]  # [n, len(scorer.part_names)]
    notes: tuple[str, ...] = ()  # what was done to the input, for the result's `degraded`
    timings: Mapping[str, float] = field(
        default_factory=dict
    )  # milliseconds by the scorer's own stages, where it has any
    tokens: tuple[int, int] | None = None  # of the query's side, and of all items; None: not counted

    def __post_init__(self) -> None:
        if self.parts.shape[:1] != self.p.shape:
            raise NonFiniteScore(f"{self.p.shape[0]} scores with parts for {self.parts.shape[0]}: expected as many")
        bad = ~np.isfinite(self.p) | (self.p < 0.0) | (self.p > 1.0) | ~np.isfinite(self.parts).all(axis=1)
        if bad.any():
            first = int(np.flatnonzero(bad)[0])
            raise NonFiniteScore(
                f"{int(bad.sum())} of {len(self.p)} scores are not probabilities (candidate {first}: p = "
                f"{self.p[first]}, parts {self.parts[first].tolist()}): the weights or their input are damaged"
            )


class Scorer(Protocol):
    """Safe to call from several threads."""

    @property
    def model_id(self) -> str:
        """Weights, template and tokenizer in one name: equal names score equally."""

    @property
    def part_names(self) -> tuple[str, ...]: ...

    @property
    def tolerance(self) -> float:
        """By how much the p of one pair may differ between two askings."""

    def score(self, query: ScoringQuery, items: Sequence[ScoringItem], caller: Caller = ANYONE) -> Scores:
        """One score an item, in order. Raises NonFiniteScore, NoScores, DeadlinePassed, CallerLeft."""


@dataclass(frozen=True, slots=True)
class Health:
    """How a language model is. `ready` false: the ranker waits for it; a `reason` alone: answers say `degraded`."""

    ready: bool = True
    reason: str = ""  # what is wrong, empty when nothing is
    numbers: Mapping[str, float] = field(default_factory=dict)


class LanguageModel(Scorer, Protocol):
    """A dear scorer, for the best of a request. Owns memory, threads or connections: close it."""

    @property
    def longest_s(self) -> float:
        """Seconds after which it gives a call up by itself; infinite where it does not."""

    def health(self) -> Health:
        """Of work done lately; costs nothing."""

    def ingest(self, updates: Sequence[IndexUpdate]) -> None:
        """Index updates as they are read, in order, on the reader's thread: whatever can be made ready for them is."""

    def close(self, timeout_s: float) -> None: ...


def probability(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of yes, from log-odds; [n] each."""
    with np.errstate(over="ignore"):
        p: NDArray[np.float64] = 1.0 / (1.0 + np.exp(-logits))
    return p
