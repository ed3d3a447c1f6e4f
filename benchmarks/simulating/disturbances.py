"""The four disturbances of the depth controller's test, and what it does under them.

Interactive requests alone, evenly spaced with a tenth of jitter, all with the same margins and no cache, on the
measured engine, so that what the depth does is the controller's doing. Loads are of the nominal depth. What settles is
the depth that the controller gives (`State.depth`).

    step       0.5 to 1.1 of capacity, at once
    ramp       the same over 20 s; counted from its end
    burst      0.5, for 10 s 1.6, and 0.5 again: counted at both ends
    slowdown   0.5 throughout; every forward takes three times as long from a moment on
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from benchmarks.simulating.measures import STEP_S, Settling, over_seeds, settling
from benchmarks.simulating.plant import ITEM_TOKENS, PREFIX_TOKENS, Plant
from benchmarks.simulating.workload import NOMINAL, Workload
from benchmarks.simulating.world import Outcome, World
from penstock.ranker.shaping.work import Shaper

LOW, HIGH, PEAK, SLOWER = 0.5, 1.1, 1.6, 3.0
CHANGE_S, RAMP_S, BURST_S, END_S = 60.0, 20.0, 10.0, 120.0


@dataclass(frozen=True, slots=True)
class Disturbance:
    load: Callable[[float], float]  # at a time
    slowdown: Callable[[float], float]
    watched: tuple[tuple[float, float], ...]  # (changed, until)


def _even(_: float) -> float:
    return 1.0


DISTURBANCES = {
    "step": Disturbance(lambda t: HIGH if t >= CHANGE_S else LOW, _even, ((CHANGE_S, END_S),)),
    "ramp": Disturbance(
        lambda t: LOW + (HIGH - LOW) * min(1.0, max(0.0, (t - CHANGE_S) / RAMP_S)),
        _even,
        ((CHANGE_S + RAMP_S, END_S),),
    ),
    "burst": Disturbance(
        lambda t: PEAK if CHANGE_S <= t < CHANGE_S + BURST_S else LOW,
        _even,
        ((CHANGE_S, CHANGE_S + BURST_S), (CHANGE_S + BURST_S, END_S)),
    ),
    "slowdown": Disturbance(lambda t: LOW, lambda t: SLOWER if t >= CHANGE_S else 1.0, ((CHANGE_S, END_S),)),
}


def disturbed(name: str, shaper: Shaper, plant: Plant, seed: int) -> tuple[Outcome, list[Settling]]:
    one = DISTURBANCES[name]
    load = _workload(one.load, plant, seed)
    outcome = World(shaper, load, plant, seed, slowdown=one.slowdown, sample_every_s=STEP_S, alike=True).run(END_S)
    return outcome, [settling(controlled(outcome), *span) for span in one.watched]


def controlled(outcome: Outcome) -> list[tuple[float, float]]:
    """(time, the depth that the controller gives); what each batch is served differs by what it has room for."""
    return [(at, state.depth) for at, state in outcome.samples]


def _workload(load: Callable[[float], float], plant: Plant, seed: int) -> Workload:
    rng = np.random.default_rng((seed, 13))
    cost = float(PREFIX_TOKENS + ITEM_TOKENS * NOMINAL)
    times, now = [], 0.0
    while now < END_S:
        gap = cost / (load(now) * plant.capacity)
        times.append(now + gap * float(rng.uniform(-0.1, 0.1)))
        now += gap
    arrived = np.maximum(0.0, np.array(times))
    count = len(arrived)
    return Workload(
        arrived,
        np.zeros(count, np.int8),
        (np.arange(count) % 4).astype(np.int16),
        np.zeros(count, np.int32),
        np.zeros(count),
        np.full(count, cost),
        END_S,
    )


def all_of(make: Callable[[], Shaper], plant: Plant, seeds: Sequence[int]) -> dict[str, dict[str, dict[str, float]]]:
    """By disturbance, the worse of its changes: settling and overshoot, mean over the seeds."""
    found = {}
    for name in DISTURBANCES:
        runs = [disturbed(name, make(), plant, seed)[1] for seed in seeds]
        found[name] = {
            "settle_s": asdict(over_seeds([max(each.settle_s for each in one) for one in runs])),
            "overshoot": asdict(over_seeds([max(each.overshoot for each in one) for one in runs])),
            "astray": asdict(over_seeds([max(each.astray for each in one) for one in runs])),
            "final": asdict(over_seeds([one[-1].final for one in runs])),
        }
    return found
