"""The policies that are compared, each made anew for a run, and how the baselines' settings were chosen.

A baseline has one setting that decides everything at these loads: how much may wait. It gets the best of a grid, by
goodput among those that keep the interactive p99 within 500 ms, on seeds that no result uses; so does the PID loop's
setpoint. The full policy runs with its defaults for a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product

from benchmarks.simulating.baselines import Fifo, StaticPriority, UniformPid
from benchmarks.simulating.measures import goodput, p99_s
from benchmarks.simulating.plant import BUDGET, Plant
from benchmarks.simulating.workload import CEILING, DEADLINES, FLOOR, NOMINAL, generate
from benchmarks.simulating.world import World
from penstock.ranker.shaping.cost import Prior
from penstock.ranker.shaping.depth import DepthBounds
from penstock.ranker.shaping.limits import Limits
from penstock.ranker.shaping.shaper import TrafficShaper
from penstock.ranker.shaping.work import Shaper

BOUNDS = (4_000, 6_000, 8_000, 12_000, 16_000, 24_000)  # tokens that may wait
SETPOINTS = (0.025, 0.05, 0.1, 0.2)  # seconds of delay
TUNING_SEED = 1_000
PRIOR = Prior(overhead_s=0.005, token_s=5e-5)  # what nobody knows better at the start: half as fast again as measured

Maker = Callable[[], Shaper]


@dataclass(frozen=True, slots=True)
class Tuned:
    bound: float
    setpoint_s: float | None
    goodput: float
    p99_s: float


def full() -> Shaper:
    return TrafficShaper(Limits(depths=DepthBounds(FLOOR, NOMINAL, CEILING), usual_tokens=float(BUDGET)), PRIOR)


def fifo(bound: float) -> Shaper:
    return Fifo(NOMINAL, bound)


def static_priority(bound: float) -> Shaper:
    return StaticPriority(NOMINAL, bound)


def uniform_pid(bound: float, setpoint_s: float) -> Shaper:
    return UniformPid(FLOOR, NOMINAL, CEILING, bound, setpoint_s=setpoint_s)


def tuned(plant: Plant, horizon_s: float) -> dict[str, Tuned]:
    """The baselines' best settings on the bursty trace at load 0.9."""
    loads = [generate(0.9, plant.capacity, horizon_s, TUNING_SEED + more) for more in range(2)]

    def best(make: Callable[..., Shaper], grid: list[tuple[float, ...]]) -> Tuned:
        tried = []
        for setting in grid:
            outcomes = [World(make(*setting), load, plant, TUNING_SEED).run(horizon_s + 60) for load in loads]
            good = sum(goodput(each) for each in outcomes) / len(outcomes)
            tried.append(Tuned(setting[0], setting[1] if len(setting) > 1 else None, good, max(map(p99_s, outcomes))))
        kept = [each for each in tried if each.p99_s <= DEADLINES["interactive"]]
        return max(kept or tried, key=lambda each: each.goodput if kept else -each.p99_s)

    bounds: list[tuple[float, ...]] = [(bound,) for bound in BOUNDS]
    return {
        "FIFO": best(fifo, bounds),
        "static priority": best(static_priority, bounds),
        "uniform PID": best(uniform_pid, list(product(BOUNDS, SETPOINTS))),
    }


def policies(settings: Mapping[str, Tuned]) -> dict[str, Maker]:
    one, two, three = settings["FIFO"], settings["static priority"], settings["uniform PID"]
    return {
        "FIFO": lambda: fifo(one.bound),
        "static priority": lambda: static_priority(two.bound),
        "uniform PID": lambda: uniform_pid(three.bound, three.setpoint_s or SETPOINTS[0]),
        "full": full,
    }
