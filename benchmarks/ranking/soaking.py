"""`--soak`: whether an hour of everything at once leaves the ranker's process as it was, and what collections cost it.

    rss_growth       resident memory: the median of the last tenth of the time after the warm-up over that of its first
    max_gc_pause_ms  the longest collection after the warm-up (pauses.py)

The process is one of its own (soak_process.py); its memory is read from here. A score that is not what the same pair
first scored is counted as wrong, a request that ended as none may is counted as failed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.processes import beside
from benchmarks.ranking import soak_process
from benchmarks.ranking.redis_process import shipped_redis
from benchmarks.ranking.soak_process import Soak
from benchmarks.report import Report
from penstock.infra.local.config import ROLE_ENVIRONMENT
from penstock.ranker.engine.untrained import ModelShape, write

WARM_UP_S = 300.0  # or a quarter of a shorter soak
POSTINGS = 6_000
QUERIES = 100
EVERY_S = 0.25  # memory is looked at
WAIT_S = 300.0  # until the process is ready, and at its end


@dataclass(frozen=True, slots=True)
class Memory:
    """Of the process, in bytes."""

    at_s: float  # since the beginning
    resident: int
    own: int  # of it, what no file is behind


def soak(
    report: Report,
    folder: Path,
    shape: ModelShape,
    texts: Sequence[str],
    queries: Sequence[str],
    seconds: float,
    threads: int,
) -> int:
    """Adds the rows and notes to `report`; how many requests were wrong or failed."""
    warm_up_s = min(WARM_UP_S, seconds / 4)
    with shipped_redis(folder / "stack") as url:
        plan = Soak(
            directory=write(folder / "soak", texts, shape),
            redis_url=url,
            texts=tuple(texts[:POSTINGS]),
            queries=tuple(queries[:QUERIES]),
            seconds=seconds,
            warm_up_s=warm_up_s,
            threads=threads,
        )
        counted, samples = _watch(plan)
    resident, own = ([(one.at_s, getattr(one, kind)) for one in samples] for kind in ("resident", "own"))
    first, last = windows(resident, warm_up_s, seconds)
    own_first, own_last = windows(own, warm_up_s, seconds)
    report.notes["soak"] = {
        "seconds": seconds,
        "warm_up_s": warm_up_s,
        "shape": asdict(shape),
        "threads": threads,
        "postings": len(plan.texts),
        "queries": len(plan.queries),
        **soak_process.about(),
        "rss_mb": {"first": first / 1e6, "last": last / 1e6, "by_minute": by_minute(resident)},
        "own_mb": {"first": own_first / 1e6, "last": own_last / 1e6, "growth": own_last / own_first},
        **counted,
    }
    report.add("soak/rss_growth", last / first, "ratio", 1.02)
    report.add("soak/max_gc_pause_ms", counted["gc"]["max_ms"], "ms", 50.0)
    requests, wrong = counted["requests"], counted["wrong"] + counted["known_answers_wrong"]
    print(f"  {sum(requests.values())} requests: {requests}, wrong {wrong}, failures {counted['failures']}")
    return int(wrong + requests["failed"])


def windows(samples: Sequence[tuple[float, int]], warm_up_s: float, seconds: float) -> tuple[float, float]:
    """Medians of the first and of the last tenth of what comes after the warm-up; `samples`: (seconds, bytes).

    Raises ValueError where none fell.
    """
    tenth = (seconds - warm_up_s) / 10
    spans = ((warm_up_s, warm_up_s + tenth), (seconds - tenth, seconds))
    found = [[nbytes for at, nbytes in samples if begin <= at <= end] for begin, end in spans]
    if not all(found):
        raise ValueError(f"no sample of memory in one of {spans}, of {len(samples)}: let the soak last longer")
    return statistics.median(found[0]), statistics.median(found[1])


def by_minute(samples: Sequence[tuple[float, int]]) -> list[float]:
    """Megabytes, the median of each minute."""
    minutes: dict[int, list[int]] = {}
    for at, nbytes in samples:
        minutes.setdefault(int(at // 60), []).append(nbytes)
    return [round(statistics.median(minutes[minute]) / 1e6, 2) for minute in sorted(minutes)]


def _watch(plan: Soak) -> tuple[dict[str, Any], list[Memory]]:
    """What the process counted at last, and its memory meanwhile."""
    environment = {**ROLE_ENVIRONMENT, "OMP_NUM_THREADS": str(plan.threads)}
    with beside(soak_process.run, plan, environment=environment) as (pipe, process):
        if not pipe.poll(WAIT_S):
            raise TimeoutError(f"the soaked process was not ready within {WAIT_S:.0f} s")
        pipe.recv()
        began = time.monotonic()
        samples: list[Memory] = []
        while (elapsed := time.monotonic() - began) < plan.seconds + WAIT_S:
            memory = process.memory_info()
            samples.append(Memory(elapsed, memory.rss, memory.rss - memory.shared))
            if pipe.poll(EVERY_S):
                told = pipe.recv()
                print(line(told, memory.rss), flush=True)
                if told["ended"]:
                    return told, samples
        raise TimeoutError(f"the soaked process did not end within {WAIT_S:.0f} s of its time")


def line(told: dict[str, Any], rss: int) -> str:
    """What is printed every minute."""
    requests = ", ".join(f"{name} {count}" for name, count in told["requests"].items())
    pauses, trouble = told["gc"], told["trouble"] and f", trouble: {told['trouble']}"
    return (
        f"  {told['elapsed_s'] / 60:.0f} min: {rss / 1e6:.1f} MB; {requests}; wrong {told['wrong']}; "
        f"scored {told['scored']}, cached {told['cached']}; collections {pauses['collections']}, "
        f"longest {pauses['max_ms']:.1f} ms{trouble}"
    )
