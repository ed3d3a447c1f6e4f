"""`--live`: the shaper in the ranker that serves, on the engine, with Redis and retrieval beside: three rows.

    interactive_p99_ratio  p99 of searches with recommendations, storms of alerts and digests on top, over that of the
                           same searches alone. LOAD of what the engine does in full forwards comes by itself, and
                           digests fill whatever that leaves: some always wait
    busy_at_saturation     share of that time in which the engine had a forward to compute
    alert_misses           instant alerts that were not answered within 30 s

The engine is the one of the simulator's plant: untrained.TINY on one thread; what it does a second is measured first.
A run of searches alone and one with everything take turns, each with a desk and a score cache of its own; the first
WARM_S of each are not counted. Retrieval is a process of its own, Redis another; all else is this process, clients too.
"""

from __future__ import annotations

import gc
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from prometheus_client import REGISTRY

from benchmarks.driving.asking import alone, digests, timeline
from benchmarks.driving.clients import Clients
from benchmarks.driving.measuring import Run, add_rows, described
from benchmarks.driving.ranker import LiveRanker, live_ranker
from benchmarks.report import Report
from benchmarks.simulating.plant import Plant, fitted
from benchmarks.simulating.workload import DEADLINES, QUERIES
from penstock.ranker.backends.scorer import ScoringItem, ScoringQuery
from penstock.ranker.decisions import DECISIONS
from penstock.ranker.shaping.work import State
from penstock.ranker.shaping_status import numbers

LOAD = 0.9
SPAN_S, WARM_S = 75.0, 10.0
ROWS = 10_000  # postings in the index
SIZES = (1, 2, 4, 8, 16, 24, 32, 48)  # items of the forwards that are timed
REPEATS = 4


def live(report: Report, data: Path, build: Path, folder: Path, pairs: int, *, span_s: float = SPAN_S) -> None:
    """Adds the rows, of `pairs` of runs, each with a seed of its own."""
    with live_ranker(folder, data, build, ROWS) as ranker:
        plant = calibrated(ranker)
        report.notes["live"] = {
            "load": LOAD,
            "rows": ROWS,
            "span_s": span_s,
            "overhead_ms": round(plant.overhead_s * 1000, 3),
            "token_us": round(plant.token_s * 1e6, 3),
            "capacity_tokens_a_second": round(plant.capacity),
        }
        print(f"  live: {report.notes['live']}", flush=True)
        runs: list[Run] = []
        for pair in range(pairs):
            for mixed in (False, True) if pair % 2 == 0 else (True, False):
                runs.append(_run(ranker, plant, span_s, pair, mixed))
                print(f"  {described(runs[-1])}", flush=True)
    report.notes["live"]["runs"] = [described(run) for run in runs]
    add_rows(report, runs)
    print(f"  searches met: {report.notes['live_searches_met']}", flush=True)


def calibrated(ranker: LiveRanker) -> Plant:
    """What a forward takes here, by the clock on the wall, with nothing else to do."""
    model, records = ranker.around.language_model, ranker.around.updates.records
    items = [
        ScoringItem(0.5, 0.0, replace(record, posting_id=f"timed-{at}"))
        for at, record in enumerate(records[: max(SIZES)])
    ]
    query = ScoringQuery(ranker.words.text(0), None)
    model.score(query, items)  # tokenised from here on
    tokens: list[float] = []
    seconds: list[float] = []
    for size in np.random.default_rng(16).permutation(SIZES * REPEATS).tolist():
        before = _forwards()[0]
        spent = model.score(query, items[:size]).timings["forward"]
        tokens.append(_forwards()[0] - before)
        seconds.append(spent / 1000)
    return fitted(np.array(tokens), np.array(seconds))


def _run(ranker: LiveRanker, plant: Plant, span_s: float, seed: int, mixed: bool) -> Run:
    asked = timeline(LOAD, plant.capacity, span_s, seed)
    asked = asked if mixed else alone(asked)
    drawing, before = digests(seed), _decided()
    marks: list[tuple[float, float, float, int]] = []
    states: list[State] = []

    def mark() -> None:
        states.append(desk.shaping())
        busy_s = REGISTRY.get_sample_value("penstock_engine_busy_seconds_total") or 0.0
        marks.append((time.monotonic(), busy_s, *_forwards()))

    with ranker.desk(f"live-{seed}-{mixed}") as desk:
        clients = Clients(
            desk,
            ranker.request,
            ranker.now_ms,
            time.monotonic,
            seed,
            (lambda: int(drawing.integers(QUERIES))) if mixed else None,
        )
        until_s = span_s + DEADLINES["instant"]
        told = clients.run(asked, until_s, [(WARM_S, mark), (span_s, mark)])
    gc.collect()
    (from_s, busy_from, tokens_from, count_from), (to_s, busy_to, tokens_to, count_to) = marks
    return Run(
        mixed,
        asked,
        told,
        WARM_S,
        span_s,
        busy_s=busy_to - busy_from,
        seconds=to_s - from_s,
        tokens=tokens_to - tokens_from,
        forwards=count_to - count_from,
        load_average=os.getloadavg()[0],
        decided={name: more for name, count in _decided().items() if (more := count - before.get(name, 0.0))},
        state=numbers(states[-1]),
    )


def _decided() -> dict[str, float]:
    """Decisions of this process so far, by class, decision and reason."""
    samples = (sample for family in DECISIONS.collect() for sample in family.samples)
    return {" ".join(each.labels.values()): each.value for each in samples if each.name.endswith("_total")}


def _forwards() -> tuple[float, int]:
    """Tokens of all forwards so far, and how many there were."""
    tokens, count = (REGISTRY.get_sample_value(f"penstock_engine_forward_tokens_{what}") for what in ("sum", "count"))
    return tokens or 0.0, int(count or 0)
