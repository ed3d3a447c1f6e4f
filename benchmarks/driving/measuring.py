"""What runs of the live ranker come to: latencies, shares, misses. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.driving.asking import INTERACTIVE, Asked
from benchmarks.driving.clients import Told, missed
from benchmarks.report import Report
from benchmarks.simulating.workload import FLOOR, KINDS

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Run:
    """One run and what was counted between `from_s` and `to_s` of it."""

    mixed: bool  # with recommendations, alerts and digests; else searches alone
    asked: Sequence[Asked]
    told: Told
    from_s: float
    to_s: float
    busy_s: float  # that the engine had a forward to compute
    seconds: float  # in which
    tokens: float  # in forwards
    forwards: int
    load_average: float = 0.0  # of the machine, at the end
    decided: Mapping[str, float] = field(default_factory=dict)  # of the whole run: "class decision reason" -> how many
    state: Mapping[str, float] = field(default_factory=dict)  # at the end of the window, as the role's status has it


def latencies_s(run: Run) -> Floats:
    """Of the searches that were answered, late ones too, from the try that was; those that were due in the window."""
    return np.array(
        [
            each.took_s
            for each in run.told.answers
            if each.kind == INTERACTIVE and each.result is not None and run.from_s <= each.due_s < run.to_s
        ]
    )


def p99_ratio(runs: Sequence[Run]) -> float:
    """Of searches with everything on top, over the same searches alone; the answers of all runs of a sort together."""
    mixed, alone = (np.concatenate([latencies_s(run) for run in runs if run.mixed is sort]) for sort in (True, False))
    if not (len(mixed) and len(alone)):
        raise ValueError(
            f"{len(mixed)} searches were answered with everything on top, {len(alone)} alone: no ratio of those; "
            "the machine does not get to it, see the notes of the runs"
        )
    return float(np.percentile(mixed, 99) / np.percentile(alone, 99))


def busy(runs: Sequence[Run]) -> float:
    """Share of the time, of the runs in which digests always wait."""
    full = [run for run in runs if run.mixed]
    return sum(run.busy_s for run in full) / sum(run.seconds for run in full)


def met_share(runs: Sequence[Run], mixed: bool) -> float:
    """Of the searches of a sort of runs, retries counted as one: those answered in time."""
    sort = [run for run in runs if run.mixed is mixed]
    searches = [
        (place in run.told.met) for run in sort for place, each in enumerate(run.asked) if each.kind == INTERACTIVE
    ]
    return sum(searches) / len(searches)


def alert_misses(runs: Sequence[Run]) -> int:
    return sum(missed(run.asked, run.told) for run in runs if run.mixed)


def add_rows(report: Report, runs: Sequence[Run]) -> None:
    """Exactly those of the issue."""
    report.add("live/interactive_p99_ratio", p99_ratio(runs), "ratio", 1.25, "lower")
    report.notes["live_searches_met"] = {"alone": met_share(runs, False), "with everything": met_share(runs, True)}
    report.add("live/busy_at_saturation", busy(runs), "share", 0.9, "higher")
    report.add("live/alert_misses", alert_misses(runs), "requests", 0, "lower")


def described(run: Run) -> dict[str, Any]:
    """For the notes: everything that says how good the answers of the window were, and how the run went."""
    took = latencies_s(run)
    per_kind = {}
    for kind, name in enumerate(KINDS):
        asked = [place for place, each in enumerate(run.asked) if each.kind == kind]
        results = [each.result for each in run.told.answers if each.kind == kind and each.result is not None]
        if not (asked or results):
            continue
        depths = np.array([result.lm_scored for result in results])
        per_kind[name] = {
            "asked": len(asked),
            "met": len(run.told.met.intersection(asked)),
            "answers": len(results),
            "lm_scored": round(float(depths.mean()), 2) if len(depths) else 0.0,
            "below_the_floor": int((depths < FLOOR).sum()),
            "degraded": dict(Counter(note.split(":")[0] for result in results for note in result.degraded)),
            "depth_reasons": dict(Counter(result.depth_reason for result in results)),
        }
    return {
        "mixed": run.mixed,
        "p50_s": round(float(np.percentile(took, 50)), 4) if len(took) else None,
        "p99_s": round(float(np.percentile(took, 99)), 4) if len(took) else None,
        "load_average": round(run.load_average, 2),
        "busy": round(run.busy_s / run.seconds, 4),
        "tokens_a_second": round(run.tokens / run.seconds),
        "tokens_a_forward": round(run.tokens / max(1, run.forwards)),
        "kinds": per_kind,
        "refused": dict(run.told.refused),
        "paused": run.told.paused,
        "errors": dict(run.told.errors),
        "alert_misses": missed(run.asked, run.told) if run.mixed else 0,
        "clients_late_p99_s": round(float(np.percentile(run.told.late_s, 99)), 4) if run.told.late_s else 0.0,
        "stages_ms": _stages(run),
        "decided": dict(run.decided),
        "state": {name: float(f"{value:.4g}") for name, value in run.state.items()},
    }


def _stages(run: Run) -> dict[str, float]:
    """Means, of the searches."""
    timings = [each.result.timings for each in run.told.answers if each.kind == INTERACTIVE and each.result]
    names = dict.fromkeys(name for one in timings for name in one)
    return {name: round(sum(one.get(name, 0.0) for one in timings) / len(timings), 2) for name in names}
