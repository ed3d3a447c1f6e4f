"""Ten equal tenants at load 0.9 on the bursty trace; for a third of the time one of them asks ten times as much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.simulating.measures import jain_of_tenants
from benchmarks.simulating.plant import Plant
from benchmarks.simulating.policies import Maker
from benchmarks.simulating.workload import Workload, generate
from benchmarks.simulating.world import World

TENANTS, BURST, LOAD = 10, 10, 0.9
HORIZON_S = 300.0
SPAN = (100.0, 200.0)


def bursting(plant: Plant, seed: int) -> Workload:
    equal = np.full(TENANTS, 1 / TENANTS)
    base = generate(LOAD, plant.capacity, HORIZON_S, seed, tenants=equal)
    more = generate(LOAD / TENANTS * (BURST - 1), plant.capacity, SPAN[1] - SPAN[0], seed + 500, tenants=np.ones(1))
    return merged(base, replace(more, arrived_s=more.arrived_s + SPAN[0], horizon_s=HORIZON_S))


def merged(one: Workload, other: Workload) -> Workload:
    """Both at once, over the first's horizon."""
    order = np.argsort(np.concatenate([one.arrived_s, other.arrived_s]), kind="stable")

    def both(name: str) -> Any:
        return np.concatenate([getattr(one, name), getattr(other, name)])[order]

    names = ("arrived_s", "kind", "tenant", "query", "hits", "cost")
    return replace(one, **{name: both(name) for name in names})


def cells(makers: Mapping[str, Maker], plant: Plant, seeds: Sequence[int]) -> dict[str, list[float]]:
    """Jain's index of each policy by seed."""
    found: dict[str, list[float]] = {name: [] for name in makers}
    for seed in seeds:
        asked = bursting(plant, seed)
        for name, make in makers.items():
            outcome = World(make(), asked, plant, seed).run(HORIZON_S + 60)
            found[name].append(jain_of_tenants(outcome, *SPAN))
    return found
