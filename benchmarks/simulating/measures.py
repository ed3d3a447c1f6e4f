"""What an outcome is worth, in the words of issue 9: goodput, misses, NDCG, Jain's index, settling. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from benchmarks.simulating.plant import ITEM_TOKENS
from benchmarks.simulating.workload import CEILING, FLOOR, KINDS, NOMINAL, relevance
from benchmarks.simulating.world import INTERACTIVE, Outcome

Floats = NDArray[np.float64]

_STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}  # by samples
BAND = 0.10  # of the final depth: within it, the depth has settled
DWELL_S = 5.0
STEP_S = 0.1  # of the depth's curve


@dataclass(frozen=True, slots=True)
class Mean:
    """Over seeds. `within`: half of the 95 % interval, by Student's t; 0 for one seed."""

    mean: float
    within: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.within:.3f}"


def over_seeds(values: Sequence[float]) -> Mean:
    found = np.asarray(values, np.float64)
    if len(found) < 2:
        return Mean(float(found.mean()), 0.0)
    spread = float(found.std(ddof=1)) / math.sqrt(len(found))
    return Mean(float(found.mean()), _STUDENT.get(len(found), 1.96) * spread)


def goodput(outcome: Outcome) -> float:
    """Nominal tokens a second of what was answered in time, and within the horizon."""
    load = outcome.workload
    return float(load.cost[_good(outcome)].sum()) / load.horizon_s


def _good(outcome: Outcome) -> NDArray[np.bool_]:
    return outcome.in_time & (outcome.answered_s <= outcome.workload.horizon_s)


def misses(outcome: Outcome, met: NDArray[np.bool_]) -> dict[str, int]:
    """By kind: requests in the feasible set (`met`) that were not answered in time."""
    missed = met & ~outcome.in_time
    return {name: int(missed[outcome.workload.kind == kind].sum()) for kind, name in enumerate(KINDS)}


def missed_share(outcome: Outcome) -> dict[str, float]:
    """By kind: of the requests that were due before the end, those not answered in time."""
    load = outcome.workload
    due = load.deadline_s <= outcome.ended_s
    return {
        name: float((~outcome.in_time)[due & (load.kind == kind)].mean())
        for kind, name in enumerate(KINDS)
        if (due & (load.kind == kind)).any()
    }


def p99_s(outcome: Outcome) -> float:
    """Of interactive answers, late ones too, from the try that was answered."""
    return float(np.percentile(outcome.late_s, 99)) if outcome.late_s else 0.0


def interactive_depth(outcome: Outcome) -> float:
    """Mean, of those answered in time."""
    served = outcome.in_time & (outcome.workload.kind == INTERACTIVE)
    return float(outcome.depth[served].mean()) if served.any() else 0.0


def ndcg(outcome: Outcome) -> Floats:
    """Of each request; nothing where no answer came in time."""
    curves = relevance()[0]
    return np.where(outcome.in_time, curves[outcome.workload.query, outcome.depth], 0.0)


def ndcg_ratio(one: Outcome, other: Outcome) -> tuple[float, float]:
    """Mean NDCG of one over the other's on the same workload: of the interactive requests and recommendations that both
    answered in time, which is depth alone; and of all of them, one without an answer counted as nothing."""
    asked = one.workload.kind < 2
    both = asked & one.in_time & other.in_time
    mine, theirs = ndcg(one), ndcg(other)
    return float(mine[both].mean() / theirs[both].mean()), float(mine[asked].mean() / theirs[asked].mean())


def ndcg_bounds(one: Outcome, other: Outcome) -> tuple[float, float, float]:
    """What the first ratio of `ndcg_ratio` would be had `one` spent the tokens above the floor on the same requests
    otherwise: all alike; by who gains, which nobody knows beforehand and at whatever time, on the concave envelope of
    each query's curve; and with everybody at the nominal depth, whatever it takes."""
    curves = relevance()[0]
    load = one.workload
    both = (load.kind < 2) & one.in_time & other.in_time
    query, each = load.query[both], ITEM_TOKENS * (1 - load.hits[both])
    reference = float(ndcg(other)[both].mean())
    budget = float((each * (one.depth[both] - FLOOR)).sum())
    alike = min(FLOOR + budget / float(each.sum()), float(CEILING))
    deep = int(alike)
    even = curves[query, deep] + (alike - deep) * (curves[query, min(deep + 1, CEILING)] - curves[query, deep])
    gains, prices = [], []
    envelopes = {int(one): _envelope(curves[one]) for one in np.unique(query)}
    for at, item in zip(query.tolist(), each.tolist(), strict=True):
        for candidates, gain in envelopes[at]:
            gains.append(gain)
            prices.append(candidates * item)
    gain, price = np.array(gains), np.array(prices)
    order = np.argsort(-gain / price)
    bought = order[np.cumsum(price[order]) <= budget]
    known = float(curves[query, FLOOR].mean()) + float(gain[bought].sum()) / len(query)
    return float(even.mean()) / reference, known / reference, float(curves[query, NOMINAL].mean()) / reference


def _envelope(curve: Floats) -> list[tuple[int, float]]:
    """Steps (candidates, gain) of the least concave curve above one, from the floor, where it rises."""
    corners: list[tuple[int, float]] = []
    for depth in range(FLOOR, CEILING + 1):
        value = float(curve[depth])
        while len(corners) > 1:
            (a, u), (b, v) = corners[-2:]
            if (v - u) * (depth - a) > (value - u) * (b - a):
                break
            corners.pop()
        corners.append((depth, value))
    return [(b - a, v - u) for (a, u), (b, v) in pairwise(corners) if v > u]


def jain(shares: Floats) -> float:
    return float(shares.sum() ** 2 / (len(shares) * (shares**2).sum()))


def fair_shares(demand: Floats, total: float) -> Floats:
    """Max-min: nobody gets more than asked for, and nobody could get more but from one who has less."""
    out = np.zeros(len(demand))
    left, open_ = total, np.ones(len(demand), bool)
    while open_.any():
        level = left / open_.sum()
        small = open_ & (demand <= level)
        if not small.any():
            out[open_] = level
            break
        out[small] = demand[small]
        left -= float(demand[small].sum())
        open_ &= ~small
    return out


def jain_of_tenants(outcome: Outcome, from_s: float, to_s: float) -> float:
    """Of each tenant's goodput over its max-min fair share of the goodput there was, requests that came in a span."""
    load = outcome.workload
    span = (load.arrived_s >= from_s) & (load.arrived_s < to_s)
    tenants = int(load.tenant.max()) + 1
    demand: Floats = np.bincount(load.tenant[span], load.cost[span], tenants).astype(np.float64)
    got = np.bincount(load.tenant[span & outcome.in_time], load.cost[span & outcome.in_time], tenants)
    return jain(got / fair_shares(demand, float(got.sum())))


@dataclass(frozen=True, slots=True)
class Settling:
    """How a depth went from what it was to what it is at the end. Service times are random, so it never stands still:
    it has settled where it stays within BAND of the final depth for DWELL_S, and `astray` says how it kept to that."""

    settle_s: float  # after the change; all the time there was, where it never settled
    overshoot: float  # beyond the final depth in the direction it went, until it had settled; over the final depth
    astray: float  # share of the time after it had settled that it was outside the band
    before: float
    final: float


def means_of_a_second(served: Sequence[tuple[float, int]], at_s: Floats) -> Floats:
    """The depth served, at each time: the mean of what began in the second before it, or else the last before."""
    times, depths = (np.array(each, np.float64) for each in zip(*served, strict=True))
    sums = np.concatenate([[0.0], np.cumsum(depths)])
    first, last = np.searchsorted(times, at_s - 1.0, "right"), np.searchsorted(times, at_s, "right")
    means: Floats = np.where(
        last > first, (sums[last] - sums[first]) / np.maximum(last - first, 1), depths[np.maximum(last - 1, 0)]
    )
    return means


def held(samples: Sequence[tuple[float, float]], at_s: Floats) -> Floats:
    """A value at each time: the last sample before it."""
    times, values = (np.array(each, np.float64) for each in zip(*samples, strict=True))
    found: Floats = values[np.maximum(np.searchsorted(times, at_s, "right") - 1, 0)]
    return found


def settling(depths: Sequence[tuple[float, float]], changed_s: float, until_s: float) -> Settling:
    """`depths`: (time, the controller's depth). It is taken every STEP_S; the final one is the mean of the last third
    before `until_s`."""
    ticks = np.arange(0.0, until_s + STEP_S / 2, STEP_S)
    means = held(depths, ticks)
    begin = int(np.searchsorted(ticks, changed_s))
    after, before = means[begin:], float(means[max(0, begin - round(5 / STEP_S)) : begin].mean())
    final = float(after[-max(1, len(after) // 3) :].mean())
    inside = np.abs(after - final) <= BAND * final
    dwell = min(round(DWELL_S / STEP_S), len(after))
    runs = np.convolve(inside, np.ones(dwell), "valid") >= dwell - 0.5
    settled = int(np.argmax(runs)) if runs.any() else len(after)
    sign = math.copysign(1.0, final - before)
    beyond = float((sign * (after[: settled + dwell] - final)).max())
    astray = float((~inside[settled:]).mean()) if settled < len(after) else 1.0
    return Settling(settled * STEP_S, max(0.0, beyond) / final, astray, before, final)
