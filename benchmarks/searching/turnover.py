"""One real week of postings opening and closing, over and over: whether the store comes to waste room or to grow.

The week of the lifecycle data in which most postings open, each as COPIES postings spread over its day, each open
for as long as it really was (at most LONGEST_WEEKS), then told expired. The store begins with what would be open had
the week always been repeated, and runs SETTLE weeks until tombstones, too, end as fast as they begin. Time is
simulated: an hour of it is a batch or more and a reclaim.

    fragmentation   free rows in blocks that hold some, over rows held, at the worst hour
    rss_growth      the process's resident memory at the end, over that after the first week that counts
"""

from __future__ import annotations

import csv
import datetime
import gc
import heapq
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from benchmarks.report import Report
from benchmarks.searching.updates import NOW_MS, Updates
from penstock.retrieval.shard import BATCH
from penstock.retrieval.store.store import Store
from penstock.schemas.events import IndexOp, IndexUpdate

HOUR_MS = 3_600_000
WEEK_MS = 168 * HOUR_MS
COPIES = 12
LONGEST_WEEKS = 8
SETTLE = 2
EXPIRED = 1_000  # the revision of an expiry


@dataclass(frozen=True, slots=True)
class Opening:
    """One posting of the week, milliseconds."""

    at: int  # since the week began
    life: int


def turnover(report: Report, weeks: int, data: Path, build: Path) -> None:
    """Adds both results. `weeks`: after those in which the store settles."""
    updates, openings = Updates(data, build), week(data)
    store, process, run = Store(), psutil.Process(), _Run(updates, openings)
    fragmentation, resident, live = 0.0, [], []
    run.begin(store)
    for number in range(SETTLE + weeks):
        for _ in range(168):
            run.hour(store)
            counts = store.counts()
            if number >= SETTLE:
                fragmentation = max(fragmentation, counts.spare / (counts.live + counts.held_dead))
        gc.collect()
        if number >= SETTLE:
            resident.append(process.memory_info().rss)
            live.append(store.counts().live)
        print(
            f"  week {number - SETTLE + 1}: {store.counts().live} live, {process.memory_info().rss / 1e6:.0f} MB",
            flush=True,
        )
    report.notes["turnover"] = {
        "openings_a_week": len(openings) * COPIES,
        "weeks": weeks,
        "live": live,
        "resident_bytes": resident,
        "counted_bytes": store.counts().nbytes,
    }
    report.add("turnover/fragmentation", fragmentation, "ratio", 0.10)
    report.add("turnover/rss_growth", resident[-1] / resident[0], "ratio", 1.02)


def week(data: Path) -> list[Opening]:
    """The openings of the fullest week, Monday to Sunday."""
    found: dict[tuple[int, int], list[tuple[datetime.datetime, datetime.datetime]]] = defaultdict(list)
    with (data / "usajobs_lifecycle" / "lifecycle_2025.csv").open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            opened, closed = (datetime.datetime.fromisoformat(row[name]) for name in ("open_at", "close_at"))
            if closed > opened:
                found[opened.isocalendar()[:2]].append((opened, closed))
    year, number = max(found, key=lambda key: len(found[key]))
    monday = datetime.datetime.fromisocalendar(year, number, 1)
    return [
        Opening(
            int((opened - monday) / datetime.timedelta(milliseconds=1)),
            min(int((closed - opened) / datetime.timedelta(milliseconds=1)), LONGEST_WEEKS * WEEK_MS),
        )
        for opened, closed in found[year, number]
    ]


class _Run:
    """What happens when. One posting's number is its cycle's first plus its place in the cycle."""

    def __init__(self, updates: Updates, openings: list[Opening]) -> None:
        self._updates = updates
        rng = np.random.default_rng(13)
        spread = [
            Opening(
                int(min(one.at // (24 * HOUR_MS) * 24 * HOUR_MS + rng.integers(24 * HOUR_MS), WEEK_MS - 1)), one.life
            )
            for one in openings
            for _ in range(COPIES)
        ]
        self._openings = sorted(spread, key=lambda one: one.at)
        self._now = NOW_MS
        self._closing: list[tuple[int, int]] = []  # when, number

    def begin(self, store: Store) -> None:
        """What would be open by now."""
        for cycle in range(-LONGEST_WEEKS, 0):
            start = NOW_MS + cycle * WEEK_MS
            some = [place for place, one in enumerate(self._openings) if start + one.at + one.life > NOW_MS]
            self._open(store, cycle, some)

    def hour(self, store: Store) -> None:
        """The openings and closings of the next hour, as they come from the log."""
        cycle, since = divmod(self._now - NOW_MS, WEEK_MS)
        self._now += HOUR_MS
        at = [one.at for one in self._openings]
        self._open(store, cycle, list(range(*np.searchsorted(at, (since, since + HOUR_MS)).tolist())))
        over = []
        while self._closing and self._closing[0][0] <= self._now:
            when, number = heapq.heappop(self._closing)
            over.append(
                IndexUpdate(
                    posting_id=f"posting-{number}",
                    version=1,
                    revision=EXPIRED,
                    op=IndexOp.EXPIRE,
                    produced_at=when,
                    expires_at=when,
                )
            )
        for start in range(0, len(over), BATCH):
            store.apply(over[start : start + BATCH], now_ms=self._now)
        store.reclaim(now_ms=self._now)

    def _open(self, store: Store, cycle: int, places: list[int]) -> None:
        for batch in self._batches(cycle, places):
            store.apply(batch, now_ms=self._now)

    def _batches(self, cycle: int, places: list[int]) -> Iterator[list[IndexUpdate]]:
        for start in range(0, len(places), BATCH):
            some = places[start : start + BATCH]
            first = (cycle + LONGEST_WEEKS) * len(self._openings)
            dense, sketch = self._updates.planes(first + some[0], len(some))
            batch = []
            for one, place in enumerate(some):
                opening, number = self._openings[place], first + place
                opened = NOW_MS + cycle * WEEK_MS + opening.at
                heapq.heappush(self._closing, (opened + opening.life, number))
                batch.append(
                    self._updates.update(
                        number, (dense[one], sketch[one]), posted_at=opened, expires_at=opened + opening.life
                    )
                )
            yield batch
