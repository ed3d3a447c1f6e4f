"""What the running ranker is asked, and when: the simulator's workload, without what only a simulator can wait for.

Arrivals of searches, recommendations and storms of alerts are those of simulating/workload.py at the capacity that was
measured here. Digests have an hour, and a run has minutes: instead of coming evenly, so many of them always wait, as
after an hour's turn. That is what saturates the engine, whatever people ask. Pure: the same for the same seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.ranking.drawing import zipf
from benchmarks.simulating.workload import EXPONENT, KINDS, QUERIES, generate

INTERACTIVE, RECOMMENDATION, INSTANT, DIGEST = range(len(KINDS))


@dataclass(frozen=True, slots=True)
class Asked:
    """One request. Equal numbers are equal questions."""

    at_s: float  # from the beginning
    kind: int  # of KINDS
    query: int  # of QUERIES; of an instant alert: where in the index its postings begin


def timeline(load: float, capacity: float, horizon_s: float, seed: int) -> list[Asked]:
    """Everything but digests, in the order of arrival. `capacity`: tokens a second, as `load` is of it."""
    workload = generate(load, capacity, horizon_s, seed)
    rng = np.random.default_rng((seed, 13))
    searches = int((workload.kind == INTERACTIVE).sum())
    numbers = rng.integers(0, QUERIES, len(workload))  # nobody has asked those of other kinds before
    numbers[workload.kind == INTERACTIVE] = rng.choice(QUERIES, searches, p=zipf(QUERIES, EXPONENT))
    each = zip(workload.arrived_s.tolist(), workload.kind.tolist(), numbers.tolist(), strict=True)
    return [Asked(at_s, kind, query) for at_s, kind, query in each if kind != DIGEST]


def digests(seed: int) -> np.random.Generator:
    """Draws the queries of digests."""
    return np.random.default_rng((seed, 14))


def alone(asked: Sequence[Asked]) -> list[Asked]:
    """The searches of a timeline, nothing else."""
    return [each for each in asked if each.kind == INTERACTIVE]


@dataclass(frozen=True, slots=True)
class Words:
    """A text for every number of QUERIES: a judged query, from the second time on with a place."""

    judged: Sequence[str]
    places: Sequence[str]

    def text(self, number: int) -> str:
        place, query = divmod(number, len(self.judged))
        return self.judged[query] if not place else f"{self.judged[query]}, {self.places[place % len(self.places)]}"
