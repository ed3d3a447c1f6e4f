"""Traffic shaping under a virtual clock: the production decision code against simpler policies, on real arrivals.

    python benchmarks/shaping.py --json build/shaping.json --plots build        # half an hour
    python benchmarks/shaping.py --cells loads,overload --seeds 2 --horizon 600  # a trial
    python benchmarks/shaping.py --live --seeds 1 --json build/shaping-live.json # the ranker itself, four minutes

    loads      FIFO, static priority, uniform depth by a PID loop, and the full policy, on the bursty and the
               near-Poisson trace at mean loads 0.7, 0.9 and 1.2: goodput, misses, NDCG
    overload   the full policy and the others at 1, 2, 5 and 10 times the capacity
    fairness   ten equal tenants, one of which asks ten times as much for a while
    depth      the controller under a step, a ramp, a burst and an engine that gets three times slower
    decision   what deciding costs with 10,000 queued
    day        a day of diurnal load with bursts and storms, for the plots

What is asked stands in simulating/workload.py, what a forward takes in plant.py (measured), how clients and Kafka
behave in world.py, what a clairvoyant could have met in feasible.py, how the baselines were set in policies.py, what
the words mean in measures.py. All figures are of the same workload for all policies, means over the seeds with 95 %
intervals by Student's t. Nothing here runs the ranker: the live rows need it.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.report import Report, machine, table  # noqa: E402  # found by the line above, wherever called from
from benchmarks.simulating import ablation, deciding, disturbances, fairness, plots  # noqa: E402
from benchmarks.simulating.measures import Mean, over_seeds  # noqa: E402
from benchmarks.simulating.plant import Plant, measured  # noqa: E402
from benchmarks.simulating.policies import full, policies, tuned  # noqa: E402
from benchmarks.streaming.source import DATA  # noqa: E402

CELLS = ("loads", "overload", "fairness", "depth", "decision", "day")
MODERATE = (0.7, 0.9, 1.2)
OVER = (1.0, 2.0, 5.0, 10.0)
HORIZON_S, OVERLOAD_S, TUNING_S = 900.0, 120.0, 600.0
SEEDS = 5
# name, unit, target, better: exactly the issue's
ROWS: tuple[tuple[str, str, float, str], ...] = (
    ("goodput_vs_fifo", "ratio", 1.25, "higher"),
    ("goodput_vs_static_priority", "ratio", 1.10, "higher"),
    ("alert_misses_vs_feasible", "requests", 0, "lower"),
    ("ndcg_vs_uniform_pid/0.9", "ratio", 1.0, "higher"),
    ("ndcg_vs_uniform_pid/1.2", "ratio", 1.01, "higher"),
    ("jain_under_burst", "index", 0.95, "higher"),
    ("overload_10x_goodput", "ratio", 0.95, "higher"),
    ("depth_settle_s", "s", 3, "lower"),
    ("depth_overshoot", "share", 0.10, "lower"),
    ("decision_us", "us", 20, "lower"),
    ("live/interactive_p99_ratio", "ratio", 1.25, "lower"),
    ("live/busy_at_saturation", "share", 0.9, "higher"),
    ("live/alert_misses", "requests", 0, "lower"),
)
LIVE = "--live"

Found = dict[str, tuple[float, Mean | None]]  # by row: the value and the mean over seeds where there is one


def run(
    cells: Sequence[str],
    plant: Plant,
    seeds: Sequence[int],
    horizon_s: float,
    report: Report,
    folder: Path,
    processes: int = 1,
) -> Found:
    found: Found = {}
    settings = tuned(plant, min(horizon_s, TUNING_S)) if {"loads", "overload", "fairness", "depth"} & {*cells} else {}
    makers = policies(settings) if settings else {}
    report.notes["baselines"] = {name: asdict(each) for name, each in settings.items()}
    if "loads" in cells:
        grid = ablation.grid(settings, plant, ("code", "conv"), MODERATE, seeds, horizon_s, processes=processes)
        report.cells += [each.as_json() for each in grid]
        print(ablation.printed(grid), flush=True)
        found |= ablation.rows(grid)
    if "overload" in cells:
        grid = ablation.grid(settings, plant, ("code",), OVER, seeds, OVERLOAD_S, drain_s=0.0, processes=processes)
        report.cells += [each.as_json() for each in grid]
        print(ablation.printed(grid), flush=True)
        found |= ablation.overload_rows(grid)
        plots.loads(grid, folder)
    if "fairness" in cells:
        shares = fairness.cells(makers, plant, seeds)
        report.notes["fairness"] = {name: asdict(over_seeds(each)) for name, each in shares.items()}
        print("  jain: " + ", ".join(f"{name} {over_seeds(each)}" for name, each in shares.items()), flush=True)
        found["jain_under_burst"] = _mean(shares["full"])
    if "depth" in cells:
        settled = {name: disturbances.all_of(makers[name], plant, seeds) for name in ("uniform PID", "full")}
        report.notes["depth"] = settled
        for name, each in settled.items():
            print(f"  depth, {name}: {each}", flush=True)
        plots.depths({name: makers[name] for name in settled}, plant, folder)
        found["depth_settle_s"] = (max(each["settle_s"]["mean"] for each in settled["full"].values()), None)
        found["depth_overshoot"] = (max(each["overshoot"]["mean"] for each in settled["full"].values()), None)
    if "decision" in cells:
        took = deciding.decisions(full(), plant)
        report.notes["decision"] = took
        found["decision_us"] = (took["us"], None)
    if "day" in cells:
        report.notes["day"] = plots.day(full, plant, folder)
    return found


def _mean(values: Sequence[float]) -> tuple[float, Mean]:
    mean = over_seeds(values)
    return mean.mean, mean


def filled(found: Found, report: Report) -> None:
    """Every row of the issue, in its order; those that were not measured say what they need."""
    for name, unit, target, better in ROWS:
        if name in found:
            value, mean = found[name]
            report.add(name, value, unit, target, better)
            if mean is not None:
                report.notes.setdefault("intervals", {})[name] = asdict(mean)
        else:
            needs = LIVE if name.startswith("live/") else f"--cells {_cell_of(name)}"
            report.lacking(name, unit, target, better, needs)


def _cell_of(name: str) -> str:
    cells: Mapping[str, str] = {
        "jain": "fairness",
        "overload": "overload",
        "depth": "depth",
        "decision": "decision",
    }
    return cells.get(name.split("_")[0], "loads")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=ROOT / "build" / "shaping.json")
    parser.add_argument("--plots", type=Path, default=ROOT / "build", help="folder of the SVG files")
    parser.add_argument("--cells", default=",".join(CELLS), help=f"some of {', '.join(CELLS)}")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--horizon", type=float, default=HORIZON_S, help="seconds of arrivals, up to load 1.2")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--live", action="store_true", help="the rows of the running ranker, and no others")
    parser.add_argument("--data", type=Path, default=DATA, help="of --live: the folder that holds usajobs_postings")
    options = parser.parse_args(arguments)
    if options.live:
        return _live(options.data, options.json, options.seeds)
    cells = options.cells.split(",")
    if unknown := {*cells} - {*CELLS}:
        parser.error(f"--cells {', '.join(sorted(unknown))}: expected some of {', '.join(CELLS)}")
    about: dict[str, Any] = machine(numpy=np.__version__)
    plant = measured()
    report = Report("shaping")
    report.notes["plant"] = {
        "overhead_ms": round(plant.overhead_s * 1000, 3),
        "token_us": round(plant.token_s * 1e6, 3),
        "noise": np.percentile(plant.noise, [5, 50, 95]).round(3).tolist(),
        "capacity_tokens_a_second": round(plant.capacity),
    }
    report.notes["seeds"], report.notes["horizon_s"] = options.seeds, options.horizon
    filled(run(cells, plant, range(options.seeds), options.horizon, report, options.plots, options.processes), report)
    print(table(report.results))
    report.write(options.json, about, cells=report.cells)
    return 0


def _live(data: Path, path: Path, pairs: int) -> int:
    from benchmarks.driving.live import live  # which needs torch and a Redis, and a simulation neither
    from benchmarks.report import computing

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what runs beside ends too
    about, report = machine(**computing(1)), Report("shaping")
    with tempfile.TemporaryDirectory() as folder:
        live(report, data, ROOT / "build", Path(folder), pairs)
    print(table(report.results))
    report.write(path, about)
    return 0


if __name__ == "__main__":
    sys.exit(main())
