"""The process that a soak watches: the engine as the ranker's role has it, and all that may come to it at once.

    callers   requests through the score cache: some leave, some come too late, more than may wait in a burst
    bulk      one request of 2,000 postings every few minutes
    feed      new versions, deletions and expiries into the arena, which is too small for all postings

It counts, and tells what it counted once in a while; how much memory it takes is looked at from outside. Everything it
keeps for counting is as large at the start as at the end.
"""

from __future__ import annotations

import gc
import os
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client import REGISTRY

from benchmarks.processes import leave
from benchmarks.ranking.pauses import Pauses
from benchmarks.ranking.soak_load import BULK, CYCLE_S, QUIET, SAME, Drawing, FirstScores, Postings, Wanted, phase
from penstock.infra.settings import RankerSettings, RedisSettings
from penstock.ranker.backends.load import load_scorers
from penstock.ranker.backends.scorer import Caller, ScoringItem, ScoringQuery
from penstock.ranker.cache import Computed, PairVersion, ScoreCache
from penstock.ranker.engine.errors import EngineFull
from penstock.ranker.engine.tokens import SLICE
from penstock.ranker.errors import CallerLeft, DeadlinePassed
from penstock.ranker.known_answer import KnownAnswer
from penstock.ranker.redis_link import RedisLink, connect
from penstock.ranker.scoring import Scorers

OUTCOMES = ("served", "expired", "left", "refused", "failed")
CALLERS = 8
ARENA_BYTES = 1 << 20  # of what the postings need, about half
WAITING_TOKENS = 24_576  # a burst asks for more
TTL_S = 60
FEED_EVERY_S, FED = 0.25, 8  # postings a step
BULK_EVERY = 3  # cycles
AGAIN_S = 0.25  # after it was refused
TELL_EVERY_S = 60.0
READY_S = 240.0


@dataclass(frozen=True, slots=True)
class Soak:
    """What is run, and for how long. What is counted begins after the warm-up."""

    directory: Path
    redis_url: str
    texts: Sequence[str]
    queries: Sequence[str]
    seconds: float
    warm_up_s: float
    threads: int


def run(soak: Soak, answer: Connection) -> None:
    """Says when it begins, then what it has counted, every TELL_EVERY_S and when it has ended."""
    settings = RankerSettings(
        scorer="engine",
        model=soak.directory,
        threads=soak.threads,
        waiting_tokens=WAITING_TOKENS,
        arena_bytes=ARENA_BYTES,
    )
    with Pauses() as pauses:
        role = _Role(soak, load_scorers(settings), pauses)
        gc.collect()
        gc.freeze()  # as the role does
        role.run(answer)
        told = role.told()
        pauses.clear()
        gc.collect()
    answer.send(told | {"ended": True, "full_collection_ms": pauses.pauses.max_ms})
    leave(answer)


class _Role:
    """Owns the threads. `_lock` guards the counts and the first scores."""

    def __init__(self, soak: Soak, scorers: Scorers, pauses: Pauses) -> None:
        assert scorers.language_model is not None
        self._soak = soak
        self._scorer = scorers.language_model
        self._postings = Postings(soak.texts, _now_ms())
        self._pauses = pauses
        link = RedisLink(connect(RedisSettings(url=soak.redis_url)), time.monotonic)
        self._cache = ScoreCache(link, "soak", TTL_S, time.monotonic)
        self._known = KnownAnswer(scorers, _now_ms)
        self._first = FirstScores(len(soak.queries), len(self._postings))
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()  # of what failed; by type, so there are few
        self._read = threading.Barrier(CALLERS + 1)  # passed when every caller has read everything
        self._stop = threading.Event()
        self._began_s = time.monotonic()

    def run(self, answer: Connection) -> None:
        threads = [threading.Thread(target=self._call, args=(one,), name=f"caller-{one}") for one in range(CALLERS)]
        for thread in threads:
            thread.start()
        self._read.wait(READY_S)
        self._began_s = time.monotonic()
        self._pauses.clear()
        answer.send({"began": True})
        threads += [threading.Thread(target=self._bulk, name="bulk"), threading.Thread(target=self._feed, name="feed")]
        for thread in threads[CALLERS:]:
            thread.start()
        try:
            warm, tell_s = False, TELL_EVERY_S
            while (elapsed := self._elapsed_s) < self._soak.seconds:
                if not warm and elapsed >= self._soak.warm_up_s:
                    warm = True
                    self._pauses.clear()
                if elapsed >= tell_s:
                    tell_s += TELL_EVERY_S
                    answer.send(self.told())
                time.sleep(0.2)
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def told(self) -> dict[str, Any]:
        health = self._scorer.health()
        with self._lock:
            counts, reasons = dict(self._counts), dict(self._reasons)
        return {
            "ended": False,
            "elapsed_s": self._elapsed_s,
            "requests": {outcome: counts.get(outcome, 0) for outcome in OUTCOMES},
            **{name: counts.get(name, 0) for name in ("items", "scored", "cached", "without_cache", "bulk_served")},
            **{name: counts.get(name, 0) for name in ("wrong", "known_answers", "known_answers_wrong", "updates")},
            "failures": reasons,
            "health": {**health.numbers},
            "trouble": health.reason,
            "arena_drops": {why: _sample("penstock_arena_dropped_total", why=why) for why in ("room", "expired")},
            "arena_found": {found: _sample("penstock_arena_items_total", found=found) for found in ("yes", "no")},
            "gc": self._pauses.told(),
            "load": os.getloadavg()[0],
        }

    # --- its threads ---------------------------------------------------------------------------------------------

    def _call(self, number: int) -> None:
        self._read_everything(number)
        self._read.wait(READY_S)
        drawing = Drawing((1, number), len(self._soak.queries), len(self._postings))
        while not self._stop.is_set():
            if (now := phase(self._elapsed_s)) == QUIET:
                self._stop.wait(0.2)
            elif self._ask(drawing.next(now)) == "refused":
                self._stop.wait(AGAIN_S)

    def _read_everything(self, number: int) -> None:
        """What a thread's tokeniser and its allocator keep is kept then, some megabytes. No forward is made."""
        whole = len(self._postings)
        nobody = Caller(deadline_s=0.0)
        for first in range(0, whole, SLICE):
            at = [(number * whole // CALLERS + first + one) % whole for one in range(SLICE)]
            items = [ScoringItem(0.5, 0.0, self._postings.current[one]) for one in at]
            with suppress(DeadlinePassed, EngineFull):
                self._scorer.score(ScoringQuery(self._soak.queries[0], None), items, nobody)

    def _bulk(self) -> None:
        drawing = Drawing((1, CALLERS), len(self._soak.queries), len(self._postings))
        cycle = 0
        while not self._stop.is_set():
            if self._elapsed_s >= cycle * CYCLE_S:
                cycle += BULK_EVERY
                self._count("bulk_served", self._ask(drawing.bulk()) == "served")
            self._stop.wait(0.5)

    def _feed(self) -> None:
        rng = np.random.default_rng(2)
        gone: list[int] = []
        checked_cycle = -1
        while not self._stop.wait(FEED_EVERY_S):
            now = _now_ms()
            chosen = rng.choice(len(self._postings), min(FED, len(self._postings)), replace=False).tolist()
            soon = now + int(rng.integers(5_000, 60_000))
            updates = [self._postings.renewed(number, now, None) for number in gone]
            gone = chosen[:1]
            updates += [self._postings.deleted(number, now) for number in gone]
            updates += [
                self._postings.renewed(number, now, soon if at % 3 else None) for at, number in enumerate(chosen[1:])
            ]
            self._scorer.ingest(updates)
            self._count("updates", len(updates))
            cycle, within = divmod(self._elapsed_s, CYCLE_S)
            if cycle != checked_cycle and within > CYCLE_S - 2.0:  # the end of the quiet: nothing waits
                checked_cycle = int(cycle)
                self._count("known_answers", 1)
                self._count("known_answers_wrong", not self._known.verdict(1 << 30).ok)

    # --- one request ---------------------------------------------------------------------------------------------

    def _ask(self, wanted: Wanted) -> str:
        """How it ended."""
        updates = [self._postings.current[number] for number in wanted.postings]
        query = ScoringQuery(self._soak.queries[wanted.query], None)
        pairs = [PairVersion(one.tenant, one.posting_id, one.version, one.revision) for one in updates]
        now = time.monotonic()
        leaves_s = now + wanted.leaves_s
        caller = Caller(wanted.interactive, now + wanted.deadline_s, lambda: time.monotonic() >= leaves_s)

        def compute(missing: list[int]) -> Computed:
            items = [ScoringItem(0.5, 0.0, updates[at]) for at in missing]
            scores = self._scorer.score(query, items, caller)
            return Computed(np.column_stack([scores.p, scores.parts]), np.ones(len(missing), np.bool_))

        try:
            wait_s = max(0.001, wanted.deadline_s)
            found = self._cache.rows(
                self._scorer.model_id, 2, query.identity(), pairs, compute, wait_s, wanted.interactive
            )
        except Exception as error:
            outcome = _outcome(error)
            self._count(outcome, 1)
            if outcome == "failed":
                with self._lock:
                    self._reasons[f"{type(error).__name__}: {error}"[:200]] += 1
            return outcome
        texts = [self._postings.text(self._postings.number(one), one.version) for one in updates]
        with self._lock:
            self._counts["served"] += 1
            self._counts["items"] += len(updates)
            self._counts["cached"] += found.hits
            self._counts["scored"] += len(updates) - found.hits
            self._counts["without_cache"] += bool(found.degraded)
            self._counts["wrong"] += self._first.differing(wanted.query, texts, found.rows[:, 0])
        return "served"

    def _count(self, name: str, number: int) -> None:
        with self._lock:
            self._counts[name] += number

    @property
    def _elapsed_s(self) -> float:
        return time.monotonic() - self._began_s


def about() -> dict[str, Any]:
    """What of this file a reader of its figures wants to know."""
    return {
        "callers": CALLERS,
        "arena_bytes": ARENA_BYTES,
        "waiting_tokens": WAITING_TOKENS,
        "score_cache_ttl_s": TTL_S,
        "updates_a_second": FED / FEED_EVERY_S,
        "bulk": {"items": BULK, "every_s": BULK_EVERY * CYCLE_S},
        "same_within": SAME,
    }


def _outcome(error: Exception) -> str:
    if isinstance(error, CallerLeft):
        return "left"
    if isinstance(error, EngineFull):
        return "refused"
    return "expired" if isinstance(error, TimeoutError) else "failed"  # DeadlinePassed is a TimeoutError


def _sample(name: str, **labels: str) -> int:
    return int(REGISTRY.get_sample_value(name, labels) or 0)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
