"""Every policy on every trace and load, over the seeds: one cell each, and the result rows that come of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.simulating.feasible import feasible
from benchmarks.simulating.measures import (
    Mean,
    goodput,
    interactive_depth,
    missed_share,
    misses,
    ndcg_bounds,
    ndcg_ratio,
    over_seeds,
    p99_s,
)
from benchmarks.simulating.plant import Plant
from benchmarks.simulating.policies import Tuned, policies
from benchmarks.simulating.workload import DEADLINES, KINDS, Workload, generate
from benchmarks.simulating.world import Outcome, World

REFERENCE = "uniform PID"  # whose NDCG the others' is over
ALERTS = ("instant", "digest")


@dataclass(frozen=True, slots=True)
class Run:
    """One policy, one seed."""

    goodput: float  # over capacity
    clairvoyant: float  # likewise
    p99_s: float
    missed: Mapping[str, float]  # share of what was asked, by kind
    misses: Mapping[str, int]  # of the feasible set, by kind
    deferred: float  # share of alerts and recommendations
    refused: float  # refusals a request
    depth: float
    ndcg: float  # over the reference's: of what both answered
    ndcg_all: float  # of all, no answer is nothing
    busy: float
    ndcg_even: float  # over the reference's too, had the same tokens been spent alike; see measures.ndcg_bounds
    ndcg_known: float  # by who gains
    ndcg_nominal: float  # with all at the nominal depth


@dataclass(frozen=True, slots=True)
class Cell:
    policy: str
    arrivals: str
    load: float
    runs: tuple[Run, ...]  # by seed

    def mean(self, name: str) -> Mean:
        return over_seeds([getattr(run, name) for run in self.runs])

    def missed(self, kind: str) -> Mean | None:
        """None where none was due before the end."""
        found = [run.missed[kind] for run in self.runs if kind in run.missed]
        return over_seeds(found) if found else None

    def as_json(self) -> dict[str, Any]:
        return {
            "policy": self.policy,
            "arrivals": self.arrivals,
            "load": self.load,
            **{name: asdict(self.mean(name)) for name in Run.__slots__ if name not in ("missed", "misses")},
            "missed": {kind: asdict(mean) for kind in KINDS if (mean := self.missed(kind))},
            "misses_of_feasible": {kind: [run.misses.get(kind, 0) for run in self.runs] for kind in KINDS},
        }


def grid(
    settings: Mapping[str, Tuned],
    plant: Plant,
    traces: Sequence[str],
    loads: Sequence[float],
    seeds: Sequence[int],
    horizon_s: float,
    drain_s: float = DEADLINES["digest"],
    processes: int = 1,
) -> list[Cell]:
    """`drain_s`: how long after the last arrival what waits may still be served."""
    tasks = [(trace, load, seed) for trace in traces for load in loads for seed in seeds]
    each = partial(runs, settings, plant, horizon_s, drain_s)
    found: dict[tuple[str, str, float], list[Run]] = {}
    with ProcessPoolExecutor(processes) as pool:
        for (trace, load, _), by_policy in zip(tasks, pool.map(each, tasks), strict=True):
            for name, run in by_policy.items():
                found.setdefault((name, trace, load), []).append(run)
    return [Cell(*key, tuple(of_seeds)) for key, of_seeds in found.items()]


def runs(
    settings: Mapping[str, Tuned], plant: Plant, horizon_s: float, drain_s: float, task: tuple[str, float, int]
) -> dict[str, Run]:
    """Every policy on the workload of (trace, load, seed)."""
    trace, load, seed = task
    asked = generate(load, plant.capacity, horizon_s, seed, trace)
    met = feasible(asked, plant)
    outcomes = {
        name: World(make(), asked, plant, seed).run(horizon_s + drain_s) for name, make in policies(settings).items()
    }
    print(f"  {trace} {load:g}, seed {seed}", flush=True)
    return {name: _run(outcome, outcomes[REFERENCE], asked, met, plant) for name, outcome in outcomes.items()}


def _run(outcome: Outcome, reference: Outcome, asked: Workload, met: NDArray[np.bool_], plant: Plant) -> Run:
    both, everything = ndcg_ratio(outcome, reference)
    even, known, nominal = ndcg_bounds(outcome, reference)
    return Run(
        goodput=goodput(outcome) / plant.capacity,
        clairvoyant=float(asked.cost[met].sum()) / asked.horizon_s / plant.capacity,
        p99_s=p99_s(outcome),
        missed=missed_share(outcome),
        misses=misses(outcome, met),
        deferred=float(outcome.deferred[asked.kind > 0].mean()),
        refused=outcome.refusals / len(asked),
        depth=interactive_depth(outcome),
        ndcg=both,
        ndcg_all=everything,
        busy=outcome.busy_s / asked.horizon_s,
        ndcg_even=even,
        ndcg_known=known,
        ndcg_nominal=nominal,
    )


def rows(cells: Sequence[Cell]) -> dict[str, tuple[float, Mean | None]]:
    """The result rows that loads up to 1.2 give."""
    at = {(cell.policy, cell.arrivals, cell.load): cell for cell in cells}
    full = at["full", "code", 0.9]

    def over(policy: str) -> tuple[float, Mean]:
        mine, theirs = full.runs, at[policy, "code", 0.9].runs
        mean = over_seeds([one.goodput / other.goodput for one, other in zip(mine, theirs, strict=True)])
        return mean.mean, mean

    missed = sum(
        run.misses.get(kind, 0)
        for cell in cells
        if cell.policy == "full" and cell.load <= 0.9
        for run in cell.runs
        for kind in ALERTS
    )
    found: dict[str, tuple[float, Mean | None]] = {
        "goodput_vs_fifo": over("FIFO"),
        "goodput_vs_static_priority": over("static priority"),
        "alert_misses_vs_feasible": (float(missed), None),
    }
    for load in (0.9, 1.2):
        mean = at["full", "code", load].mean("ndcg")
        found[f"ndcg_vs_uniform_pid/{load}"] = (mean.mean, mean)
    return found


def overload_rows(cells: Sequence[Cell]) -> dict[str, tuple[float, Mean | None]]:
    by_load = {cell.load: cell for cell in cells if cell.policy == "full"}
    seeds = range(len(by_load[10.0].runs))
    mean = over_seeds(
        [by_load[10.0].runs[at].goodput / max(cell.runs[at].goodput for cell in by_load.values()) for at in seeds]
    )
    return {"overload_10x_goodput": (mean.mean, mean)}


def printed(cells: Sequence[Cell]) -> str:
    """As a Markdown table."""
    names = "arrivals, load, policy, goodput, clairvoyant, p99 s, missed by people, recommendation, instant, digest"
    more = "refusals, deferred, depth, NDCG both, NDCG all, busy"
    columns = [*names.split(", "), *more.split(", ")]
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    for cell in sorted(cells, key=lambda cell: (cell.arrivals, cell.load)):
        shares = " | ".join(f"{100 * mean.mean:.2f} %" if (mean := cell.missed(kind)) else "–" for kind in KINDS)
        rest = " | ".join(f"{cell.mean(name).mean:.3f}" for name in ("refused", "deferred"))
        quality = " | ".join(f"{cell.mean(name).mean:.4f}" for name in ("ndcg", "ndcg_all"))
        lines.append(
            f"| {cell.arrivals} | {cell.load:g} | {cell.policy} | {cell.mean('goodput')} "
            f"| {cell.mean('clairvoyant').mean:.3f} | {cell.mean('p99_s').mean:.3f} | {shares} | {rest} "
            f"| {cell.mean('depth').mean:.1f} | {quality} | {cell.mean('busy').mean:.2f} |"
        )
    return "\n".join(lines)
