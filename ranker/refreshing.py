"""Stale scores computed anew: what an alert was served of an older revision is scored again when there is time for it.

A refresh is a request of class ALERT that nobody waits for: the same query, the postings whose scores were stale, a
deadline as far as a score is kept. So the shaper serves it behind every alert that is due sooner, in idle windows or
out of the alerts' share. Bounds: at most MOST wait, each pair once; one that is refused, deferred, late or beyond that
is dropped and counted. Then the next alert that meets the stale score asks again. One that was let in counts as any
alert does, against its tenant's share and what may be promised to alerts that are due later.

Safe to share between threads. Owns which refreshes are under way; the service owns everything else of them.

Where it stands: life-of-an-alert.md, step 6.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace

from prometheus_client import Counter

from penstock.ranker.backends.scorer import ScoringQuery
from penstock.ranker.errors import CallerLeft, DeadlinePassed, QueueClosed
from penstock.ranker.job import Job
from penstock.ranker.service import RankService
from penstock.schemas.events import Page, RankClass, RankRequest, RankResult

REFRESHES = Counter("penstock_refreshes_total", "Requests to compute stale scores anew, by how they ended", ["outcome"])

MOST = 64
NAMED = "refresh-"  # begins the request id

Pair = tuple[str, bytes, str]  # tenant, the query's side of a score, posting


class Refreshing:
    def __init__(self, service: RankService, kept_s: float, now_ms: Callable[[], int]) -> None:
        """`kept_s`: how long a score is kept. `now_ms` gives epoch milliseconds."""
        self._service = service
        self._kept_ms = round(1000 * kept_s)
        self._now_ms = now_ms
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._waiting: set[Pair] = set()
        self._count = 0  # requests

    def __len__(self) -> int:
        """Refreshes under way."""
        with self._lock:
            return self._count

    def ask(self, request: RankRequest, posting_ids: Sequence[str]) -> None:
        """`request` was served stale scores of these postings."""
        query = ScoringQuery(request.query.text, request.query.vector).identity()
        with self._lock:
            pairs = {(request.tenant, query, name): name for name in posting_ids}
            names = tuple(name for pair, name in pairs.items() if pair not in self._waiting)
            if not names:
                return
            if self._count >= MOST:
                REFRESHES.labels("dropped").inc()
                return
            mine = {pair for pair, name in pairs.items() if name in names}
            self._waiting |= mine
            self._count += 1
        job = self._job(request, names)

        def ended(done: Future[RankResult]) -> None:
            error = done.exception()
            gave_way = isinstance(error, CallerLeft | DeadlinePassed)
            self._forget(mine, "done" if error is None else "dropped" if gave_way else "failed")

        try:
            refused = self._service.try_submit(job)
        except QueueClosed:
            refused = 0.0
        if refused is not None:
            self._forget(mine, "dropped")
            return
        job.future.add_done_callback(ended)
        if job.deferred:  # its place is another's
            self._service.leave(job)

    def _job(self, request: RankRequest, names: tuple[str, ...]) -> Job:
        now_ms = self._now_ms()
        again = replace(
            request,
            request_id=f"{NAMED}{next(self._numbers)}",
            class_=RankClass.ALERT,
            deadline=now_ms + self._kept_ms,
            candidates=names,
            depth=None,
            page=Page(size=len(names)),
            min_version=None,
            produced_at=now_ms,
            echo=None,
            trace=None,
        )
        return Job(again, again.deadline, refreshes=True)

    def _forget(self, pairs: set[Pair], outcome: str) -> None:
        REFRESHES.labels(outcome).inc()
        with self._lock:
            self._waiting -= pairs
            self._count -= 1
