"""What the ranker is asked, and when: the workload of issue 9, the same for every policy and for the same seed.

By cost at the nominal depth, score cache counted: 60 % interactive (500 ms), 20 % recommendations (5 s), 20 % alerts,
half of them instant (30 s) and half hourly digests (3,600 s). Load is that cost a second over the engine's capacity in
full forwards.

Interactive requests arrive as a trace says, begun at a place that the seed chooses, going round, and run faster or
slower until the rate is right. Recommendations arrive as the near-Poisson trace does, digests evenly over the hour.
Instant alerts come evenly but for STORMS an hour: a storm is the batch of vacancies that opened together on one of the
40 fullest days of 2025, at STORM_RATE postings a second, one request of 16 pairs for every posting of it (each meets 16
subscriptions, each subscription 16 of the postings).

Queries are drawn by Zipf's law from QUERIES. One that was asked within the score cache's TTL finds HIT of its
candidates there; what it finds depends on what was asked, not on what a policy served, so that all policies have the
same work.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.ranking.drawing import zipf
from benchmarks.simulating.plant import ITEM_TOKENS, PREFIX_TOKENS
from penstock.schemas.events import RankClass

Floats = NDArray[np.float64]

DATA = Path(__file__).resolve().parent / "data"
FLOOR, NOMINAL, CEILING = 16, 32, 64  # depths of the language model's part on a CPU
ALERT_ITEMS = 16  # of an instant alert: all of them are read
DEADLINES = {"interactive": 0.5, "recommendation": 5.0, "instant": 30.0, "digest": 3_600.0}
SHARES = {"interactive": 0.6, "recommendation": 0.2, "instant": 0.1, "digest": 0.1}
KINDS = tuple(SHARES)
CLASSES = {
    "interactive": RankClass.INTERACTIVE,
    "recommendation": RankClass.RECOMMENDATION,
    "instant": RankClass.ALERT,
    "digest": RankClass.ALERT,
}
QUERIES, EXPONENT = 200_000, 1.0  # more than half of what is asked is in the cache, as the published system has it
TTL_S, HIT = 900.0, 0.9
TENANTS = 16
STORMS, STORM_RATE = 4, 100.0


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests in the order of their arrival; arrays of one length."""

    arrived_s: Floats
    kind: NDArray[np.int8]  # into KINDS
    tenant: NDArray[np.int16]
    query: NDArray[np.int32]  # into the relevance curves; -1: none
    hits: Floats  # share of the candidates that the cache answers
    cost: Floats  # tokens at the nominal depth, cached ones not counted
    horizon_s: float

    def __len__(self) -> int:
        return len(self.arrived_s)

    @property
    def deadline_s(self) -> Floats:
        patience: Floats = np.array([DEADLINES[kind] for kind in KINDS])[self.kind]
        return self.arrived_s + patience

    @property
    def floor_cost(self) -> Floats:
        """Tokens at the least depth that still is an answer."""
        found: Floats = PREFIX_TOKENS + ITEM_TOKENS * (1 - self.hits) * FLOOR
        return found

    def load(self, capacity: float) -> float:
        return float(self.cost.sum()) / self.horizon_s / capacity


@cache
def trace(name: str) -> NDArray[np.generic]:
    """An array of data/traces.npz: see excerpt.py."""
    with np.load(DATA / "traces.npz") as file:
        return np.asarray(file[name])


@cache
def relevance() -> tuple[Floats, Floats]:
    """NDCG@10 of each query by depth [queries, 65], and margins [queries, 64]: see judging.py."""
    with np.load(DATA / "relevance.npz") as file:
        return file["curves"].astype(np.float64), file["margins"].astype(np.float64)


def generate(
    load: float,
    capacity: float,
    horizon_s: float,
    seed: int,
    arrivals: str = "code",
    tenants: Floats | None = None,
    shape: Floats | None = None,
) -> Workload:
    """`tenants`: their chances, else equal ones. `shape`: relative rate of interactive requests and recommendations in
    equal spans of the horizon (a day's curve), else even."""
    rng = np.random.default_rng((seed, 9))
    mean = {kind: float(PREFIX_TOKENS + ITEM_TOKENS * NOMINAL) for kind in KINDS}
    mean["instant"] = float(PREFIX_TOKENS + ITEM_TOKENS * ALERT_ITEMS)
    mean["interactive"] *= 0.5
    for _ in range(4):  # what the cache answers depends on the rate, and the rate on what it answers
        drawing = np.random.default_rng((seed, 10))
        rate = load * capacity * SHARES["interactive"] / mean["interactive"]
        times = _replayed(arrivals, rate, horizon_s, seed, shape)
        asked = drawing.choice(QUERIES, len(times), p=zipf(QUERIES, EXPONENT))
        hits = np.where(_again(asked, times), HIT, 0.0)
        mean["interactive"] = float((PREFIX_TOKENS + ITEM_TOKENS * NOMINAL * (1 - hits)).mean())
    arrived = [
        times,
        _replayed(
            "conv", load * capacity * SHARES["recommendation"] / mean["recommendation"], horizon_s, seed + 1, shape
        ),
    ]
    storms = _storms(rng, horizon_s)
    rest = load * capacity * SHARES["instant"] * horizon_s / mean["instant"] - len(storms)
    arrived.append(np.concatenate([storms, rng.uniform(0, horizon_s, max(0, round(rest)))]))
    digests = round(load * capacity * SHARES["digest"] * horizon_s / mean["digest"])
    arrived.append(rng.uniform(0, horizon_s, digests))
    kind = np.repeat(np.arange(len(KINDS)), [len(each) for each in arrived])
    order = np.argsort(np.concatenate(arrived), kind="stable")
    count = len(order)
    share = np.concatenate([hits, np.zeros(count - len(hits))])
    curves = len(relevance()[0])
    query = np.concatenate([asked % curves, rng.integers(0, curves, count - len(asked))])
    nominal = np.where(kind == KINDS.index("instant"), ALERT_ITEMS, NOMINAL)
    chances = np.full(TENANTS, 1 / TENANTS) if tenants is None else tenants
    return Workload(
        np.concatenate(arrived)[order],
        kind[order].astype(np.int8),
        rng.choice(len(chances), count, p=chances).astype(np.int16),
        query[order].astype(np.int32),
        share[order],
        (PREFIX_TOKENS + ITEM_TOKENS * (1 - share) * nominal)[order],
        horizon_s,
    )


def _replayed(name: str, rate: float, horizon_s: float, seed: int, shape: Floats | None) -> Floats:
    """A trace's arrivals at this mean rate over the horizon, from a place that the seed chooses."""
    whole = trace(name).astype(np.float64)
    count = round(rate * horizon_s)
    gaps = np.diff(whole, append=whole[-1] + whole[-1] / len(whole))
    start = int(np.random.default_rng((seed, 11)).integers(len(gaps)))
    times: Floats = np.cumsum(gaps[(start + np.arange(count)) % len(gaps)])
    times *= horizon_s / (times[-1] * (1 + 1 / count))
    if shape is None:
        return times
    edges = np.concatenate([[0.0], np.cumsum(shape / shape.sum())]) * horizon_s
    warped: Floats = np.interp(times, edges, np.linspace(0, horizon_s, len(edges)))
    return warped


def _storms(rng: np.random.Generator, horizon_s: float) -> Floats:
    sizes, seconds = trace("storm_sizes").astype(int), trace("storm_seconds").astype(np.int64)
    ends = np.cumsum(sizes)
    out = [np.empty(0)]
    for _ in range(max(1, math.floor(STORMS * horizon_s / 3_600))):
        day = int(rng.integers(len(sizes)))
        together = int((seconds[ends[day] - sizes[day] : ends[day]] == 0).sum())  # those of midnight
        out.append(rng.uniform(0, 0.9 * horizon_s) + np.arange(together) / STORM_RATE)
    return np.concatenate(out)


def _again(asked: NDArray[np.int64], times: Floats) -> NDArray[np.bool_]:
    """Whether the same query was asked within the TTL; before the first, the stream is taken to go round."""
    order = np.lexsort((times, asked))
    same = np.diff(asked[order], prepend=-1) == 0
    recent = np.diff(times[order], prepend=-math.inf) <= TTL_S
    out = np.zeros(len(asked), bool)
    out[order] = same & recent
    return out
