"""A million rows with bodies as real updates have them: what they take in memory, a restart, and a snapshot's cost.

One process builds the store through `apply`, measures its memory, and searches while snapshots are written and while
none is, in turns; the first snapshot is of everything, each later one follows CHANGED upserts. Another process starts
from the newest snapshot on disk (which the page cache still holds) and answers.

    bytes_over_layout    resident memory grown by the rows, over the layout's arithmetic: `Store.counts()`'s planes and
                         columns for the rows of blocks in use (no page that no row has touched), and the records' bytes
    restart_s            from the process's start to its first right answer, imports included
    snapshot_p99_ratio   the 99th percentile of searches' times while a snapshot is written, over that while none is
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from benchmarks.report import Report
from benchmarks.searching.updates import NOW_MS, Updates
from penstock.infra.settings import RetrievalSettings
from penstock.retrieval.server import SWITCH_S
from penstock.retrieval.shard import BATCH
from penstock.retrieval.store.records import Ask, SearchResult
from penstock.retrieval.store.slabs import POSTINGS
from penstock.retrieval.store.snapshot import Covered, Snapshots
from penstock.retrieval.store.store import Store

ROOT = Path(__file__).resolve().parents[2]
K = 100
QUERIES = 16
TURNS = 3  # snapshots
CHANGED = 10_000  # rows before each snapshot but the first
IDLE_S = 20.0  # of searches before each snapshot


def million(report: Report, rows: int, data: Path, build: Path) -> int:
    """Adds the three results. Returns 1 when the restarted store answers otherwise than the one before it."""
    with tempfile.TemporaryDirectory(dir=build) as folder:
        command = [sys.executable, "-m", "benchmarks.searching.million"]
        built = _child([*command, "build", str(rows), str(data), str(build), folder])
        began = time.time()
        restarted = _child([*command, "restart", folder, built["answer"]])
        restarted["restart_s"] = restarted.pop("answered_at") - began
    report.notes["million"] = {**{name: value for name, value in built.items() if name != "answer"}, **restarted}
    print(f"  {report.notes['million']}", flush=True)
    report.add("million/bytes_over_layout", built["resident_bytes"] / built["layout_bytes"], "ratio", 1.05)
    report.add("million/restart_s", restarted["restart_s"], "s", 10)
    report.add("million/snapshot_p99_ratio", built["p99_ms_snapshot"] / built["p99_ms_idle"], "ratio", 1.3)
    return 0 if restarted["right"] else 1


def _child(command: list[str]) -> dict[str, Any]:
    """What the last line of a process says; the others are progress."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path})
    last = ""
    assert process.stdout is not None
    for last in process.stdout:
        if not last.startswith("{"):
            print(last, end="", flush=True)
    if process.wait():
        raise RuntimeError(f"{' '.join(command[:4])} ended with {process.returncode}")
    found: dict[str, Any] = json.loads(last)
    return found


def _build(rows: int, data: Path, build: Path, folder: Path) -> dict[str, Any]:
    torch.set_num_threads(RetrievalSettings().threads)
    sys.setswitchinterval(SWITCH_S)  # as the role does
    updates = Updates(data, build)
    _fill(Store(), updates, 2_000)  # what a first batch brings into the process is not the rows'
    gc.collect()
    process = psutil.Process()
    before, began = process.memory_info().rss, time.monotonic()
    store = Store(capacity=rows)
    _fill(store, updates, rows)
    gc.collect()
    resident, took = process.memory_info().rss - before, time.monotonic() - began
    counts = store.counts()
    used = (counts.live + counts.spare + counts.held_dead) / counts.capacity
    layout = used * (counts.bytes_planes + counts.bytes_columns) + counts.bytes_rows + counts.bytes_records
    print(f"  {rows} rows in {took:.0f} s, {resident / 1e9:.2f} GB, layout {layout / 1e9:.2f} GB", flush=True)
    timings: dict[str, list[float]] = {"idle": [], "snapshot": []}
    written = []
    snapshots = Snapshots(folder, POSTINGS, RetrievalSettings().snapshot_bytes_per_s)
    for turn in range(TURNS):
        if turn:
            _change(store, updates, rows, turn + 1)
        done = threading.Event()
        threading.Timer(IDLE_S, done.set).start()
        _search(store, updates, done, timings["idle"])
        done, begin = threading.Event(), time.monotonic()
        writer = threading.Thread(target=_snapshot, args=(snapshots, store, done))
        writer.start()
        _search(store, updates, done, timings["snapshot"])
        writer.join()
        written.append(round(time.monotonic() - begin, 2))
        print(f"  snapshot {turn} in {written[-1]} s", flush=True)
    return {
        "rows": rows,
        "build_s": round(took, 1),
        "resident_bytes": resident,
        "layout_bytes": round(layout),
        "counted_bytes": counts.nbytes,
        "snapshots_s": written,
        "folder_bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        "searches": {name: len(times) for name, times in timings.items()},
        **{
            f"p{rank}_ms_{name}": float(np.percentile(times, rank)) * 1e3
            for name, times in timings.items()
            for rank in (50, 99)
        },
        "answer": json.dumps({"query": _query(updates), "hits": _shown(_ask(store, updates, 0))}),
    }


def _restart(folder: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    from penstock.schemas.events import QueryVector

    torch.set_num_threads(RetrievalSettings().threads)
    begin = time.time()
    store = Store()
    restored = Snapshots(folder, POSTINGS).restore(store)
    took = time.time() - begin
    space, dense, lexical = wanted["query"]
    query = QueryVector(
        space_id=space, encoder_id="benchmark", dense=bytes.fromhex(dense), lexical=bytes.fromhex(lexical)
    )
    found = store.search_many([Ask(query, None, K, NOW_MS)])[0]
    assert isinstance(found, SearchResult)
    return {
        "right": _shown(found) == wanted["hits"] and not restored.problems,
        "restore_s": took,
        "answered_at": time.time(),
    }


def _fill(store: Store, updates: Updates, rows: int) -> None:
    began = time.monotonic()
    for number, batch in enumerate(updates.batches(rows, BATCH)):
        store.apply(batch, now_ms=NOW_MS)
        if number % 200 == 199:
            print(f"  {(number + 1) * BATCH} rows in {time.monotonic() - began:.0f} s", flush=True)


def _change(store: Store, updates: Updates, rows: int, version: int) -> None:
    """CHANGED rows anywhere get another vector."""
    some = np.random.default_rng(version).choice(rows, min(CHANGED, rows // 10), replace=False).tolist()
    dense, sketch = updates.planes(0, len(some), version)
    for start in range(0, len(some), BATCH):
        batch = [
            updates.update(row, (dense[one], sketch[one]), version)
            for one, row in enumerate(some[start : start + BATCH], start)
        ]
        store.apply(batch, now_ms=NOW_MS)


def _snapshot(snapshots: Snapshots[Any, Any], store: Store, done: threading.Event) -> None:
    try:
        snapshots.write(store.capture(), Covered({0: store.epoch}, "benchmark"))
    finally:
        done.set()


def _search(store: Store, updates: Updates, done: threading.Event, took: list[float]) -> None:
    number = 0
    while not done.is_set():
        begin = time.perf_counter()
        _ask(store, updates, number)
        took.append(time.perf_counter() - begin)
        number += 1


def _ask(store: Store, updates: Updates, number: int) -> SearchResult:
    found = store.search_many([Ask(updates.queries[number % QUERIES], None, K, NOW_MS)])[0]
    assert isinstance(found, SearchResult)
    return found


def _query(updates: Updates) -> list[str]:
    query = updates.queries[0]
    return [query.space_id, query.dense.hex(), (query.lexical or b"").hex()]


def _shown(found: SearchResult) -> list[list[Any]]:
    return [[hit.posting_id, hit.version, hit.score] for hit in found.hits]


if __name__ == "__main__":
    if sys.argv[1] == "build":
        print(json.dumps(_build(int(sys.argv[2]), *map(Path, sys.argv[3:6]))), flush=True)
    else:
        print(json.dumps(_restart(Path(sys.argv[2]), json.loads(sys.argv[3]))), flush=True)
