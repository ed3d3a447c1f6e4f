"""What a soak asks and when: pure, and the same for the same seed. What the clock decides is left to soak_process.py.

Time goes in cycles of CYCLE_S: mixed load, a burst that asks for more than may wait, and quiet, in which the engine
checks itself. A posting's version decides its text, so a score of the wrong version is seen for what it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.ranking.drawing import zipf
from penstock.schemas.events import Attributes, IndexOp, IndexUpdate

CYCLE_S, BURST_S, QUIET_S = 120.0, 25.0, 15.0  # a cycle, and its last parts
LARGEST = 64  # items of a request, but for the bulk's
BULK = 2_000
FAVOURED = 64  # postings that one query mostly meets
VERSION_STEP = 7 * 3  # texts from one version of a posting to the next
SAME = 1e-5

MIXED, BURST, QUIET = "mixed", "burst", "quiet"


def phase(elapsed_s: float) -> str:
    left = CYCLE_S - elapsed_s % CYCLE_S
    return QUIET if left <= QUIET_S else BURST if left <= QUIET_S + BURST_S else MIXED


@dataclass(frozen=True, slots=True)
class Wanted:
    """One request. Seconds are from when it is asked."""

    query: int
    postings: tuple[int, ...]
    interactive: bool
    deadline_s: float  # negative: it came too late already
    leaves_s: float = math.inf


class Drawing:
    """One caller's requests, one after the other."""

    def __init__(self, seed: tuple[int, ...], queries: int, postings: int) -> None:
        """`seed`: what the queries mostly meet hangs on its first number alone."""
        self._rng = np.random.default_rng(seed)
        self._postings = postings
        self._chances = zipf(queries, 1.0)
        favoured = min(FAVOURED, postings)
        chosen = np.random.default_rng(seed[0])
        self._favoured = np.stack([chosen.choice(postings, favoured, replace=False) for _ in range(queries)])

    def next(self, now: str) -> Wanted:
        """`now`: the phase."""
        rng = self._rng
        query = int(rng.choice(len(self._chances), p=self._chances))
        interactive = bool(rng.random() < 0.7)
        if now == BURST:  # long requests that no cache answers
            return Wanted(query, self._some(self._postings, int(rng.integers(48, LARGEST + 1))), interactive, 20.0)
        size = int(math.exp(rng.uniform(0.0, math.log(LARGEST + 1))))
        favoured = self._favoured[query]
        postings = tuple(favoured[list(self._some(len(favoured), min(size, len(favoured))))].tolist())
        patience_s = float(rng.uniform(1.0, 8.0)) if interactive else 30.0
        chance = rng.random()
        if chance < 0.05:
            return Wanted(query, postings, interactive, float(rng.uniform(-0.05, 0.01)))
        leaves_s = float(rng.uniform(0.0, 0.5)) if chance < 0.1 else math.inf
        return Wanted(query, postings, interactive, patience_s, leaves_s)

    def bulk(self) -> Wanted:
        """Many postings of which there is a line each."""
        short = range(0, self._postings, 3)
        chosen = self._rng.permutation(np.array(short))[:BULK].tolist()
        query = int(self._rng.integers(len(self._chances)))
        return Wanted(query, tuple(chosen), False, CYCLE_S)

    def _some(self, count: int, size: int) -> tuple[int, ...]:
        return tuple(self._rng.choice(count, min(size, count), replace=False).tolist())


class Postings:
    """The newest update of each posting. The feed writes, anybody reads."""

    def __init__(self, texts: Sequence[str], now_ms: int) -> None:
        """Every third text is its first line alone."""
        whole = len(texts) - len(texts) % 3  # so that a version of a short posting is short
        self.texts = [text.partition("\n")[0] if at % 3 == 0 else text for at, text in enumerate(texts[:whole])]
        self.current = [self._update(number, 1, now_ms, None) for number in range(whole)]

    def __len__(self) -> int:
        return len(self.texts)

    def text(self, number: int, version: int) -> int:
        """Which of the texts that version has."""
        return (number + VERSION_STEP * version) % len(self.texts)

    def number(self, update: IndexUpdate) -> int:
        return int(update.posting_id)

    def renewed(self, number: int, now_ms: int, expires_at: int | None) -> IndexUpdate:
        """The next version, which is the newest from now on."""
        update = self._update(number, self.current[number].version + 1, now_ms, expires_at)
        self.current[number] = update
        return update

    def deleted(self, number: int, now_ms: int) -> IndexUpdate:
        """The end of the newest version. Whoever still asks for it gets it: retrieval may be a step behind."""
        held = self.current[number]
        return IndexUpdate(
            posting_id=held.posting_id,
            version=held.version,
            revision=held.revision + 1,
            op=IndexOp.DELETE,
            produced_at=now_ms,
        )

    def _update(self, number: int, version: int, now_ms: int, expires_at: int | None) -> IndexUpdate:
        text = self.texts[self.text(number, version)]
        return IndexUpdate(
            posting_id=str(number),
            version=version,
            op=IndexOp.UPSERT,
            attributes=Attributes(title=text.partition(" | ")[0]),
            item_text=text,
            produced_at=now_ms,
            expires_at=expires_at,
        )


class FirstScores:
    """What each pair of query and text scored when it first did. As large at the start as at the end. Not locked."""

    def __init__(self, queries: int, texts: int) -> None:
        self._first = np.full((queries, texts), np.nan)

    def differing(self, query: int, texts: Sequence[int], p: NDArray[np.float64]) -> int:
        """How many are not what they first were; the new ones are kept. `p`: one a text."""
        first = self._first[query]
        at = np.asarray(texts, np.int64)
        seen = first[at]
        new = np.isnan(seen)
        first[at[new]] = p[new]
        return int((~(np.abs(p - first[at]) <= SAME)).sum())
