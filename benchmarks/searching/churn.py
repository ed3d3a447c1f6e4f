"""Searches beside a writer that applies 2,000 upserts a second as a shard does, against searches beside none.

Phases with and without the writer take turns in one run, so that what else the machine does falls on both. Each upsert
gives an existing posting its next version and, in turn, the vector of another row or its own again: what each epoch
must answer is known. Every answer is held against its epoch: which rows, which versions.

    p99_ratio            the 99th percentile of the searches' times beside the writer, over that without
    visible_p99_ms       from an update's arrival at the writer until the epoch that shows it is published
    mixed_version_reads  answers that are not wholly one epoch's
"""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.report import Report
from benchmarks.searching.updates import NOW_MS, Updates
from penstock.infra.settings import RetrievalSettings
from penstock.retrieval.device.backend import choose
from penstock.retrieval.feed import Polled, Record
from penstock.retrieval.indexer import Indexer
from penstock.retrieval.server import SWITCH_S
from penstock.retrieval.shard import BATCH, CHORES_EVERY_S
from penstock.retrieval.store.records import Applied, Ask, SearchResult
from penstock.retrieval.store.store import Store
from penstock.schemas.events import IndexUpdate
from penstock.schemas.wire import codec

RATE = 2_000  # upserts a second
K = 100
QUERIES = 16
NEAR = 1e-9

Longs = npt.NDArray[np.int64]


@dataclass(slots=True)
class Log:
    """What the writer did, for the judge: written by one thread, read when it has ended."""

    changes: list[tuple[int, Longs, Longs]]  # epoch, rows, the versions that they got
    visible: list[float]  # seconds


class Recording(Indexer):
    """The shard's own follower, which also notes what each epoch changed."""

    def __init__(self, store: Store, log: Log) -> None:
        super().__init__(store, codec(IndexUpdate), _never)
        self._log = log

    def account(self, updates: list[IndexUpdate], records: list[Record], applied: Applied) -> None:
        super().account(updates, records, applied)
        rows = np.asarray([int(update.posting_id.rpartition("-")[2]) for update in updates])
        versions = np.asarray([update.version for update in updates])
        self._log.changes.append((applied.epoch, rows, versions))


def churn(report: Report, rows: int, turns: int, seconds: float, data: Path, build: Path, device: str = "cpu") -> int:
    """Adds the three results; `turns` phases of `seconds` of either kind, of a store on this device.

    Returns how many answers were mixed.
    """
    settings = RetrievalSettings()
    torch.set_num_threads(settings.threads)
    sys.setswitchinterval(SWITCH_S)  # as the role does
    updates = Updates(data, build)
    store = Store(capacity=rows, hold_ms=settings.hold_epochs_ms, backend=choose(device))
    began = time.monotonic()
    for number, batch in enumerate(updates.batches(rows, BATCH)):
        store.apply(batch, now_ms=NOW_MS)
        if number % 100 == 99:
            print(f"  {(number + 1) * BATCH} rows in {time.monotonic() - began:.0f} s", flush=True)
    parts = [updates.planes(start, min(4_096, rows - start)) for start in range(0, rows, 4_096)]
    planes = np.concatenate([one for one, _ in parts]), np.concatenate([other for _, other in parts])
    log, versions, rng = Log([], []), np.ones(rows, np.int64), np.random.default_rng(11)
    follower = Recording(store, log)
    timings: dict[bool, list[float]] = {False: [], True: []}
    found: list[tuple[int, SearchResult]] = []
    _search(store, updates, 0.5, 0, [])
    for turn in range(2 * turns):
        busy = turn % 2 == 1
        records = _records(updates, planes, versions, rng, int(RATE * seconds) if busy else 0)
        gc.collect()
        stop = threading.Event()
        writer = threading.Thread(target=_write, args=(store, follower, records, settings, log, stop))
        if busy:
            writer.start()
        timings[busy] += _search(store, updates, seconds, turn, found)
        stop.set()
        if busy:
            writer.join()
    mixed = judge(updates, planes, log, found)
    idle, beside = (float(np.percentile(timings[busy], 99)) * 1e3 for busy in (False, True))
    visible = float(np.percentile(log.visible, 99)) * 1e3
    report.notes["churn"] = {
        "rows": rows,
        "threads": settings.threads,
        "applied": len(log.visible),
        "upserts_per_s": round(len(log.visible) / (turns * seconds)),
        "searches": {"idle": len(timings[False]), "beside the writer": len(timings[True])},
        "ms": {
            f"p{rank} {name}": round(float(np.percentile(timings[busy], rank)) * 1e3, 2)
            for rank in (50, 99)
            for name, busy in (("idle", False), ("beside the writer", True))
        },
        "visible_p50_ms": round(float(np.percentile(log.visible, 50)) * 1e3, 2),
    }
    print(f"  {report.notes['churn']}", flush=True)
    report.add("churn/p99_ratio", beside / idle, "ratio", 1.2)
    report.add("churn/visible_p99_ms", visible, "ms", 50)
    report.add("churn/mixed_version_reads", mixed, "answers", 0)
    return mixed


def _search(
    store: Store, updates: Updates, seconds: float, turn: int, found: list[tuple[int, SearchResult]]
) -> list[float]:
    """One caller after the other; seconds that each search took."""
    took = []
    end = time.perf_counter() + seconds
    number = turn
    while (begin := time.perf_counter()) < end:
        query = number % QUERIES
        result = store.search_many([Ask(updates.queries[query], None, K, NOW_MS)])[0]
        took.append(time.perf_counter() - begin)
        if isinstance(result, Exception):
            raise result
        found.append((query, result))
        number += 1
    return took


def _records(updates: Updates, planes: Any, versions: Longs, rng: np.random.Generator, count: int) -> list[Record]:
    """The next version of `count` distinct rows, as they come from Kafka."""
    out = []
    for row in rng.choice(len(versions), min(count, len(versions)), replace=False).tolist():
        versions[row] += 1
        at = other_row(row, len(versions)) if versions[row] % 2 == 0 else row
        update = updates.update(row, (planes[0][at], planes[1][at]), int(versions[row]))
        out.append(Record(0, len(out), NOW_MS, None, codec(IndexUpdate).encode(update)))
    return out


def other_row(row: int, rows: int) -> int:
    """Whose vector a row has in its even versions."""
    return (row + rows // 2 + 1) % rows


def _write(
    store: Store,
    follower: Recording,
    records: Sequence[Record],
    settings: RetrievalSettings,
    log: Log,
    stop: threading.Event,
) -> None:
    """Records arrive evenly; they gather until an epoch may be published, as in `Shard._gather`."""
    began = time.perf_counter()
    arrives = [began + number / RATE for number in range(len(records))]
    published = chores = began
    taken = 0
    while taken < len(records):
        if stop.is_set():  # too slow: those that have arrived were not visible until now, at least
            log.visible += [late for arrived in arrives[taken:] if (late := time.perf_counter() - arrived) > 0]
            break
        due = max(published + settings.publish_interval_ms / 1e3, arrives[taken])
        time.sleep(max(0.0, due - time.perf_counter()))
        now = time.perf_counter()
        end = taken
        while end < len(records) and end - taken < BATCH and arrives[end] <= now:
            end += 1
        follower.take(Polled(list(records[taken:end])), NOW_MS)
        published = time.perf_counter()
        log.visible += [published - arrived for arrived in arrives[taken:end]]
        taken = end
        if published - chores >= CHORES_EVERY_S:
            chores = published
            store.reclaim(now_ms=NOW_MS)


def judge(updates: Updates, planes: Any, log: Log, found: Sequence[tuple[int, SearchResult]]) -> int:
    """How many answers hold a row that was not among its epoch's best, lack one that was, or show another version."""
    rows = len(planes[0])
    dense = (planes[0].view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    scores = np.empty((2, QUERIES, rows))  # with a row's own vector, and with the other's
    for number, query in enumerate(updates.queries[:QUERIES]):
        wide = np.frombuffer(query.dense, "<f4").astype(np.float64)
        weights = np.frombuffer(query.lexical or b"", "<f4").astype(np.float64)
        terms = np.flatnonzero(weights)
        for start in range(0, rows, 8_192):
            some = slice(start, start + 8_192)
            scores[0, number, some] = dense[some].astype(np.float64) @ wide
            if len(terms):
                scores[0, number, some] += planes[1][some][:, terms].astype(np.float64) @ weights[terms]
    others = other_row(np.arange(rows), rows)  # type: ignore[arg-type]  # of all rows at once
    scores[1] = scores[0][:, others]
    none = np.zeros(0, np.int64)
    versions, changes, mixed = np.ones(rows, np.int64), iter([*log.changes, (1 << 62, none, none)]), 0
    epoch, changed, became = next(changes)
    for query, result in sorted(found, key=lambda each: each[1].epoch):
        while epoch <= result.epoch:
            versions[changed] = became
            epoch, changed, became = next(changes)
        line = np.where(versions % 2 == 0, scores[1, query], scores[0, query])
        kth = np.partition(line, rows - K)[rows - K]
        got = np.asarray([int(hit.posting_id.rpartition("-")[2]) for hit in result.hits])
        shown = np.asarray([hit.version for hit in result.hits])
        right = len(set(got.tolist())) == K and bool((line[got] >= kth - NEAR).all())
        right &= set(np.flatnonzero(line > kth + NEAR).tolist()) <= set(got.tolist())
        mixed += not (right and result.total == rows and bool((versions[got] == shown).all()))
    return mixed


def _never(record: Record, error: Exception, failed_at: int) -> None:
    raise error
