"""The plots: a day of load, depth, delay and deferral; each policy at each load; the depth when disturbed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.simulating.ablation import Cell
from benchmarks.simulating.disturbances import CHANGE_S, DISTURBANCES, controlled, disturbed
from benchmarks.simulating.measures import held, means_of_a_second
from benchmarks.simulating.plant import Plant
from benchmarks.simulating.svg import Line, Panel, drawn
from benchmarks.simulating.workload import CEILING, DEADLINES, FLOOR, generate, trace
from benchmarks.simulating.world import DIGEST, INSTANT, INTERACTIVE, Outcome, World
from penstock.ranker.shaping.work import Shaper
from penstock.schemas.events import RankClass

Floats = NDArray[np.float64]

DAY_S, BIN_S, DAY_LOAD = 86_400.0, 300.0, 0.7
_HOUR_S = 3_600.0


def day(make: Callable[[], Shaper], plant: Plant, folder: Path, day_s: float = DAY_S) -> dict[str, Any]:
    """Runs one day of the full policy and draws it: shaping-day.svg. Seed 0."""
    shape = np.maximum(trace("day").astype(np.float64), 1.0)
    asked = generate(DAY_LOAD, plant.capacity, day_s, 0, "code", shape=shape)
    outcome = World(make(), asked, plant, 0, sample_every_s=BIN_S / 30).run(day_s)
    edges = np.arange(0.0, day_s + 1, BIN_S)
    of = asked.kind
    hours = edges[:-1] / _HOUR_S

    def a_bin(which: NDArray[np.bool_], values: Floats, times: Floats, how: Callable[[Floats], float]) -> Floats:
        order = np.searchsorted(edges, times[which], "right") - 1
        taken = values[which]
        return np.array([how(taken[order == at]) if (order == at).any() else np.nan for at in range(len(hours))])

    def rate(which: NDArray[np.bool_], times: Floats) -> Floats:
        return np.histogram(times[which], edges, weights=asked.cost[which])[0] / BIN_S / plant.capacity

    def quantile(part: float) -> Callable[[Floats], float]:
        return lambda values: float(np.percentile(values, part))

    people, alerts = of == INTERACTIVE, (of == INSTANT) | (of == DIGEST)
    done, every = ~np.isnan(outcome.answered_s), np.ones(len(of), bool)
    waiting = _waiting(outcome, edges)
    panels = (
        Panel(
            "Load, of capacity at the nominal depth (5 minutes)",
            (
                Line("all that came", rate(every, asked.arrived_s), True),
                Line("people's", rate(people, asked.arrived_s)),
                Line("alerts served", rate(alerts & done, np.where(done, outcome.answered_s, 0.0))),
            ),
            marks=((1.0, "capacity"),),
        ),
        Panel(
            "Depth of people's answers (mean)",
            (
                Line(
                    "candidates", a_bin(people & outcome.in_time, outcome.depth.astype(float), asked.arrived_s, np.mean)
                ),
            ),
            top=float(CEILING),
            marks=((float(FLOOR), "floor"),),
        ),
        Panel(
            "Delay of people's answers, seconds",
            (
                Line("99th percentile", a_bin(people & done, outcome.waited_s, asked.arrived_s, quantile(99))),
                Line("median", a_bin(people & done, outcome.waited_s, asked.arrived_s, quantile(50))),
            ),
            marks=((DEADLINES["interactive"], "deadline"),),
        ),
        Panel(
            "Deferral: works that wait (most of each 5 minutes)",
            (
                Line("instant alerts, digests", waiting[RankClass.ALERT]),
                Line("all others", waiting[RankClass.INTERACTIVE]),
            ),
        ),
    )
    ticks = [(float(hour), f"{hour}:00") for hour in range(0, round(day_s / _HOUR_S) + 1, 3)]
    folder.mkdir(parents=True, exist_ok=True)
    written = folder / "shaping-day.svg"
    title = f"A day at mean load {DAY_LOAD}: full policy, diurnal and bursty arrivals, storms on top"
    written.write_text(drawn(title, hours, ticks, panels, "hour of the day"), encoding="utf-8")
    print(f"written: {written}", flush=True)
    return {
        "requests": len(asked),
        "load": asked.load(plant.capacity),
        "busy": outcome.busy_s / day_s,
        "interactive_missed": float((~outcome.in_time[people]).mean()),
        "alerts_late": int((done & ~outcome.in_time & alerts).sum()),
        "depth": float(outcome.depth[people & outcome.in_time].mean()),
    }


def _waiting(outcome: Outcome, edges: Floats) -> dict[RankClass, Floats]:
    times = np.array([at for at, _ in outcome.samples])
    alerts = np.array([each.queues[RankClass.ALERT].works + each.late.works for _, each in outcome.samples], float)
    others = np.array(
        [
            each.queues[RankClass.INTERACTIVE].works + each.queues[RankClass.RECOMMENDATION].works
            for _, each in outcome.samples
        ],
        float,
    )
    where = np.searchsorted(edges, times, "right") - 1

    def most(values: Floats) -> Floats:
        return np.array([values[where == at].max(initial=0.0) for at in range(len(edges) - 1)])

    return {RankClass.ALERT: most(alerts), RankClass.INTERACTIVE: most(others)}


def loads(cells: Sequence[Cell], folder: Path) -> None:
    """Goodput by load on the bursty trace: shaping-overload.svg."""
    found = sorted({cell.load for cell in cells if cell.arrivals == "code"})
    at = {(cell.policy, cell.load): cell for cell in cells if cell.arrivals == "code"}
    names = list(dict.fromkeys(cell.policy for cell in cells))
    x = np.log2(np.array(found))

    def line(policy: str, measure: str) -> Floats:
        return np.array([at[policy, load].mean(measure).mean for load in found])

    panels = (
        Panel("Goodput, of capacity at the nominal depth", [Line(name, line(name, "goodput")) for name in names]),
        Panel(
            "People's answers: 99th percentile, seconds",
            [Line(name, line(name, "p99_s")) for name in names],
            marks=((DEADLINES["interactive"], "deadline"),),
        ),
        Panel("Depth of people's answers", [Line(name, line(name, "depth")) for name in names], top=float(CEILING)),
    )
    folder.mkdir(parents=True, exist_ok=True)
    written = folder / "shaping-overload.svg"
    ticks = [(float(at), f"{load:g}x") for at, load in zip(x, found, strict=True)]
    written.write_text(drawn("Overload, bursty arrivals", x, ticks, panels, "mean load"), encoding="utf-8")
    print(f"written: {written}", flush=True)


def depths(makers: Mapping[str, Callable[[], Shaper]], plant: Plant, folder: Path) -> None:
    """The depth under each disturbance: shaping-depth.svg. Seed 0."""
    span = np.arange(CHANGE_S - 10, CHANGE_S + 40, 0.1)
    panels = []
    for name in DISTURBANCES:
        lines = []
        for policy, make in makers.items():
            outcome = disturbed(name, make(), plant, 0)[0]
            lines.append(Line(policy, held(controlled(outcome), span)))
        lines.append(Line(f"{policy}, as served", means_of_a_second(outcome.served, span)))
        panels.append(Panel(name, lines, top=float(CEILING), marks=((float(FLOOR), "floor"),)))
    ticks = [(CHANGE_S + more, f"{more:+d}") for more in range(-10, 41, 10)]
    folder.mkdir(parents=True, exist_ok=True)
    written = folder / "shaping-depth.svg"
    written.write_text(
        drawn("Depth that the controller gives, when disturbed", span, ticks, panels, "seconds from the change"),
        encoding="utf-8",
    )
    print(f"written: {written}", flush=True)
