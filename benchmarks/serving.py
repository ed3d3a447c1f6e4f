"""The retrieval role as its callers see it, with micro-batching and without: loopback gRPC, closed loop.

    python benchmarks/serving.py --json build/serving.json                    # about two minutes
    python benchmarks/serving.py --rows 10000 --seconds 1 --rounds 1          # a trial

Two services of one process share one store; one answers up to `retrieval.max_batch` searches with a scan, the other one
search a scan. They are asked in turn, by so many callers at once, each of which asks again as soon as it is answered.
Every second search has a filter that one posting in a hundred passes. Each answer's ids and scores are held against
float64; the exit status is 1 when one differs or a call fails.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.processes import beside, leave  # noqa: E402  # found by the line above, wherever this is called from
from benchmarks.report import computing, machine, written_as  # noqa: E402
from benchmarks.searching.service import listen  # noqa: E402
from benchmarks.searching.vectors import QUERIES, Corpus, encoded  # noqa: E402
from benchmarks.streaming.source import DATA  # noqa: E402
from penstock.infra.settings import RetrievalSettings  # noqa: E402
from penstock.retrieval.batching import Limits  # noqa: E402
from penstock.retrieval.client import RetrievalClient  # noqa: E402
from penstock.retrieval.store.store import Store  # noqa: E402
from penstock.schemas.events import Attributes, IndexOp, IndexUpdate, QueryVector, Vector  # noqa: E402
from penstock.schemas.filters import is_in  # noqa: E402
from penstock.schemas.rpc import Hit, SearchRequest  # noqa: E402

ROWS = 50_000
CALLERS = (1, 8, 32)
K = 100
COMPANIES = 100
SPACE = "benchmark"
BATCH = 1_000  # updates applied at a time
CALL_S = 30.0
MODES = ("batched", "alone")


@dataclass(slots=True)
class Cell:
    """What callers saw of one service; seconds of every answer."""

    callers: int
    mode: str
    rates: list[float] = field(default_factory=list)  # answers a second, by round
    seconds: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)  # of the serving process for an answer, by round

    def told(self) -> dict[str, Any]:
        p50, p99 = np.percentile(self.seconds, [50, 99]) * 1e3
        return {
            "callers": self.callers,
            "mode": self.mode,
            "requests_per_s": round(statistics.median(self.rates), 1),
            "p50_ms": round(float(p50), 2),
            "p99_ms": round(float(p99), 2),
            "server_cpu_ms": round(statistics.median(self.cpu_ms), 2),
            "requests": len(self.seconds),
        }


# --- the serving process -----------------------------------------------------------------------------------------


def updates(corpus: Corpus) -> Iterator[list[IndexUpdate]]:
    """The corpus's rows as postings p0, p1, …"""
    batch = []
    for row in range(corpus.count):
        page = corpus.pages[row // corpus.pages[0].rows]
        at = row % page.rows
        vector = Vector(
            space_id=SPACE,
            encoder_id=SPACE,
            dense=page.dense[at].view(torch.int16).numpy().astype("<i2").tobytes(),
            sketch=page.sketch[at].numpy().tobytes(),
        )
        batch.append(
            IndexUpdate(
                posting_id=f"p{row}",
                version=1,
                op=IndexOp.UPSERT,
                attributes=Attributes(title="posting", company=f"c{row % COMPANIES}", posted_at=row),
                vector=vector,
                produced_at=row,
            )
        )
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def serve(data: Path, rows: int, answer: Connection) -> None:
    """Fills a store, serves it on two ports, says which, and stays until `answer` is closed."""
    torch.set_num_threads(1)
    store = Store(capacity=rows)
    for batch in updates(encoded(data, rows, ROOT / "build")):
        store.apply(batch, now_ms=0)
    own = RetrievalSettings()
    limits = [Limits(batch, own.max_queue, own.max_queue_bytes) for batch in (own.max_batch, 1)]
    listening = [listen(store, *each) for each in zip(MODES, limits, strict=True)]
    answer.send(([address for address, _ in listening], store.counts().live))
    leave(answer)


# --- the callers -------------------------------------------------------------------------------------------------


class Judge:
    """Exact scores of every row for each query, float64."""

    def __init__(self, corpus: Corpus) -> None:
        dense = corpus.dense().double().numpy()
        sketch = corpus.sketch().numpy()
        self._corpus = corpus
        self._scores = [self._all(corpus, number, dense, sketch) for number in range(QUERIES)]

    @staticmethod
    def _all(
        corpus: Corpus, number: int, dense: npt.NDArray[np.float64], sketch: npt.NDArray[np.int8]
    ) -> npt.NDArray[np.float64]:
        query = corpus.query(number, lexical=True)
        by_word = sketch[:, query.terms].astype(np.float64) @ query.weights.astype(np.float64)
        scores: npt.NDArray[np.float64] = dense @ query.dense.astype(np.float64) + by_word
        return scores

    def request(self, number: int) -> SearchRequest:
        query = number % QUERIES
        vector = QueryVector(
            space_id=SPACE,
            encoder_id=SPACE,
            dense=self._corpus.dense_queries[query].astype("<f4").tobytes(),
            lexical=self._corpus.lexical_queries[query].astype("<f4").tobytes(),
        )
        return SearchRequest(vector=vector, filters=self._filter(number), k=K)

    def wrong(self, number: int, hits: tuple[Hit, ...]) -> bool:
        """Whether these are not the best K: by their scores, equal ones aside."""
        scores = self._scores[number % QUERIES]
        rows = np.arange(len(scores))
        if number % 2:
            rows = rows[rows % COMPANIES == number % COMPANIES]
        found = np.asarray([int(hit.posting_id[1:]) for hit in hits], np.int64)
        if len(found) != min(K, len(rows)) or len(set(found.tolist())) != len(found) or not np.isin(found, rows).all():
            return True
        told = np.asarray([hit.score for hit in hits])
        best = np.sort(scores[rows])[::-1][: len(found)]
        return not (np.allclose(told, scores[found], 1e-9, 1e-9) and np.allclose(told, best, 1e-9, 1e-9))

    @staticmethod
    def _filter(number: int) -> Any:
        return is_in("company", f"c{number % COMPANIES}") if number % 2 else None


def ask(client: RetrievalClient, judge: Judge, callers: int, seconds: float) -> tuple[list[float], list[Any], float]:
    """(seconds of each answer; numbers and hits; seconds that it took), with so many callers at once."""
    took: list[float] = []
    replies: list[Any] = []
    end = time.monotonic() + seconds

    def call(first: int) -> None:
        number = first
        while time.monotonic() < end:
            request = judge.request(number)
            began = time.perf_counter()
            hits = client.search(request, CALL_S).hits
            took.append(time.perf_counter() - began)
            replies.append((number, hits))
            number += callers + (callers % 2 == 0)  # odd, so that each asks with a filter and without in turn

    threads = [threading.Thread(target=call, args=(first,)) for first in range(callers)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return took, replies, time.monotonic() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write machine, results and notes here")
    parser.add_argument("--data", type=Path, default=DATA, help="the folder that holds usajobs_postings")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each round")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    about = machine(**computing(1))
    judge = Judge(encoded(given.data, given.rows, ROOT / "build"))  # first: what is encoded is kept for the other
    cells = [Cell(callers, mode) for callers in CALLERS for mode in MODES]
    wrong = 0
    with beside(serve, given.data, given.rows) as (pipe, usage):
        addresses, rows = pipe.recv()
        clients = {mode: RetrievalClient([address]) for mode, address in zip(MODES, addresses, strict=True)}
        for client in clients.values():
            ask(client, judge, 2, 0.5)  # the first calls do not count
        for _ in range(given.rounds):
            for cell in cells:
                before = sum(usage.cpu_times()[:2])
                took, replies, lasted = ask(clients[cell.mode], judge, cell.callers, given.seconds)
                spent = sum(usage.cpu_times()[:2]) - before
                wrong += sum(judge.wrong(number, hits) for number, hits in replies)
                cell.seconds += took
                cell.rates.append(len(took) / lasted)
                cell.cpu_ms.append(1e3 * spent / max(len(took), 1))
    told = [cell.told() for cell in cells]
    print(f"{'callers':>7}  {'mode':<8} {'a second':>9} {'p50 ms':>8} {'p99 ms':>8} {'CPU ms':>8}")
    for one in told:
        print(
            f"{one['callers']:>7}  {one['mode']:<8} {one['requests_per_s']:>9} {one['p50_ms']:>8} {one['p99_ms']:>8} "
            f"{one['server_cpu_ms']:>8}"
        )
    print(f"wrong: {wrong}")
    if given.json is not None:
        units = {"requests_per_s": "requests/s", "p50_ms": "ms", "p99_ms": "ms", "server_cpu_ms": "ms/request"}
        results = [
            {"name": f"serving/c{one['callers']}/{one['mode']}/{name}", "value": one[name], "unit": unit}
            for one in told
            for name, unit in units.items()
        ]
        results.append({"name": "serving/wrong", "value": wrong, "unit": "answers", "target": 0})
        notes = {"rows": rows, "k": K, "seconds": given.seconds, "rounds": given.rounds}
        written_as(given.json, {"machine": about, "results": results, "cells": told, "notes": notes})
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
