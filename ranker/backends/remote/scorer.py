"""A scorer on the other end of HTTP: SGLang, vLLM, text-embeddings-inference, infinity, any common rerank endpoint.

A call's postings go in batches, side by side, over kept connections; all of them within one deadline. A batch that met
a broken connection or a 5xx is asked once more while the retry budget lasts. The circuit breaker counts calls, not
batches. Nothing is made up: a call gives every score or raises what went wrong.

At the start the backend must tell a posting that fits a query from one that does not, in either order: a server whose
template is missing, or whose scores mean something else, answers 200 like any other.

Link, budget and breaker belong to one event loop in a thread of its own; callers wait for it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from dataclasses import astuple

import numpy as np
import structlog
from numpy.typing import NDArray
from prometheus_client import Counter, Gauge

from penstock.infra.telemetry import DEGRADED, STAGE_SECONDS
from penstock.ranker.backends.prompt import item_text
from penstock.ranker.backends.remote import forms
from penstock.ranker.backends.remote.errors import (
    BadAnswer,
    CircuitOpen,
    RemoteAway,
    RemoteRefused,
    RemoteScorerError,
    RemoteTimeout,
)
from penstock.ranker.backends.remote.forms import Served
from penstock.ranker.backends.remote.guards import Breaker, Permit, RetryBudget, State
from penstock.ranker.backends.remote.link import Link
from penstock.ranker.backends.remote.options import RemoteOptions
from penstock.ranker.backends.remote.texts import MARKS, NO_TEXT, prepared
from penstock.ranker.backends.scorer import ANYONE, Caller, Health, Scores, ScoringItem, ScoringQuery
from penstock.ranker.errors import CallerLeft, UnfitScorer
from penstock.schemas.events import IndexUpdate

log = structlog.get_logger(role="ranker")

CALLS = Counter("penstock_remote_scorer_calls_total", "Calls by how they ended", ["form", "outcome"])
RETRIES = Counter("penstock_remote_scorer_retries_total", "Requests made a second time", ["form"])
CIRCUIT = Gauge("penstock_remote_scorer_circuit_open", "1: not asked, 0: asked", ["form"])

RETRY_RESERVE = 3.0  # retries that may come at once
RETRY_PAUSE_S = 0.05  # before a retry, at most
START_PAUSE_S = 0.5  # between attempts to reach a backend at the start

PROBE_QUERY = "registered nurse in Ohio, night shift"
PROBE_RELATED = "Registered Nurse, Columbus, Ohio. Night shift in the intensive care unit of a hospital."
PROBE_UNRELATED = "Pastry chef. Bakes croissants and bread in a village near Lyon."


class RemoteScorer:
    """Safe to share between threads; owns a thread, its event loop and the connections. Close it.

    `clock` gives monotonic seconds, `jitter` numbers from 0 to 1.
    """

    part_names: tuple[str, ...] = ()
    tolerance = 0.05  # servers compute in bfloat16, in batches of varying company

    def __init__(
        self,
        options: RemoteOptions,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Asks the known question. Raises UnfitScorer: cannot be reached, or does not know the answer."""
        self._options = options
        self._form = options.shape
        self._clock = clock
        self._jitter = jitter
        self._breaker = Breaker(options.breaker)
        self._budget = RetryBudget(options.retry_share, RETRY_RESERVE if options.retry_share else 0.0)
        self._max_batch = options.max_batch
        self._lock = threading.Lock()  # guards `_closed`
        self._closed = False
        self.longest_s = options.timeout_s
        self._link = Link(options)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="remote-scorer", daemon=True)
        self._thread.start()
        try:
            served = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        except RemoteScorerError as error:
            self.close()
            raise UnfitScorer(
                f"the remote scorer at {options.url} ({options.form}) cannot be used: {type(error).__name__}: {error}"
            ) from error
        except BaseException:
            self.close()
            raise
        self.model_id = f"remote:{options.form}:{options.model or 'unnamed'}:{_digest(options, served)}"
        log.info("remote scorer ready", url=options.url, model=self.model_id, serves=list(served.models))

    def score(self, query: ScoringQuery, items: Sequence[ScoringItem], caller: Caller = ANYONE) -> Scores:
        """One score an item, in order, by the caller's deadline and within what the options allow.

        Raises RemoteScorerError, of which NotAProbability is a NonFiniteScore, and CallerLeft when the caller has left
        before anything is asked.
        """
        if not items:
            return Scores(np.zeros(0), np.zeros((0, 0)))
        sent = prepared(query.text, [item_text(item.update) for item in items], self._options)
        if caller.has_left():
            raise CallerLeft("the caller left before its postings were sent")
        granted_s = min(self._options.timeout_s, caller.deadline_s - self._clock())
        if granted_s <= 0:
            raise RemoteTimeout(
                f"{self._options.url} was not asked: the deadline passed {-granted_s * 1000:.0f} ms ago"
            )
        with self._lock:
            if self._closed:
                raise RemoteAway(f"the remote scorer at {self._options.url} is closed")
            future = asyncio.run_coroutine_threadsafe(self._guarded(sent.query, sent.items, granted_s), self._loop)
        try:
            p = future.result()
        except CancelledError as error:
            raise RemoteAway(f"the remote scorer at {self._options.url} was closed") from error
        except BaseException:
            future.cancel()
            raise
        return Scores(p, np.zeros((len(items), 0)), sent.notes)

    @property
    def circuit(self) -> State:
        """Whether the backend is asked, as of the last call."""
        return self._breaker.state

    def health(self) -> Health:
        """Ready even while the backend is away: its answers are then the fused score's, and say so."""
        opened = self._breaker.state is State.OPEN
        reason = f"{self._options.url} is not asked: {self._breaker.reason}" if opened else ""
        return Health(True, reason, {"remote_scorer_circuit_open": float(opened)})

    def ingest(self, updates: Sequence[IndexUpdate]) -> None:
        """Nothing: texts are sent with each call."""

    def close(self, timeout_s: float = 0.0) -> None:
        """Calls under way end with an error at once. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> Served:
        give_up = self._clock() + self._options.start_s
        while True:
            try:
                async with asyncio.timeout(max(self._options.timeout_s, self._options.start_s)):
                    served = await self._served()
                    await self._probe()
                return served
            except (RemoteAway, TimeoutError) as error:
                if self._clock() >= give_up:
                    last = str(error) or type(error).__name__
                    raise RemoteAway(f"it gave no answer within {self._options.start_s} s; last: {last}") from error
            await asyncio.sleep(START_PAUSE_S)

    async def _served(self) -> Served:
        """What the server says that it serves, where it does; it may also say how large a request may be."""
        if self._form.served is None:
            return Served()
        try:
            served = forms.served(await self._link.get(self._form.served))
        except (RemoteRefused, BadAnswer) as error:
            log.info("the remote scorer does not say what it serves", url=self._options.url, error=str(error))
            return Served()
        self._max_batch = min(self._options.max_batch, served.max_batch or self._options.max_batch)
        return served

    async def _probe(self) -> None:
        """Raises BadAnswer when the posting that fits does not score above the other."""
        sent = prepared(PROBE_QUERY, [PROBE_RELATED, PROBE_UNRELATED], self._options)
        first = await self._ask(sent.query, sent.items)
        second = (await self._ask(sent.query, sent.items[::-1]))[::-1]
        if not (first[0] > first[1] and second[0] > second[1]):
            raise BadAnswer(
                f"asked {PROBE_QUERY!r}, it gave {PROBE_RELATED!r} {first[0]:.6g} and {PROBE_UNRELATED!r} "
                f"{first[1]:.6g}, in the other order {second[0]:.6g} and {second[1]:.6g}: expected the first to score "
                "higher; does the server have the model's template, and is `scores` what it gives?"
            )

    async def _guarded(self, query: str, texts: list[str], granted_s: float) -> NDArray[np.float64]:
        """One call, behind the breaker, in its time, counted."""
        permit = self._admit()
        began_s = self._clock()
        outcome = "abandoned"
        try:
            try:
                async with asyncio.timeout(granted_s):
                    p = await self._batches(query, texts)
            except TimeoutError as error:
                raise RemoteTimeout(f"{self._options.url} did not answer within {granted_s * 1000:.0f} ms") from error
            outcome = "ok"
            self._breaker.succeeded(permit)
            return p
        except RemoteScorerError as error:
            outcome = type(error).__name__
            unfair = isinstance(error, RemoteTimeout) and granted_s < self._options.fair_s
            if error.blames_backend and not unfair:
                self._failed(permit, error)
            raise
        finally:
            self._breaker.abandoned(permit)  # of no effect where the outcome has told
            self._count(outcome, began_s)

    def _admit(self) -> Permit:
        permit = self._breaker.admit(self._clock())
        if permit is None:
            CALLS.labels(self._options.form, CircuitOpen.__name__).inc()
            DEGRADED.labels("ranker", "remote scorer: circuit open").inc()
            left = self._breaker.reopens_in_s(self._clock())
            raise CircuitOpen(
                f"{self._options.url} failed too often and is not asked for another {left:.1f} s; "
                f"last: {self._breaker.reason}"
            )
        return permit

    def _failed(self, permit: Permit, error: RemoteScorerError) -> None:
        if self._breaker.failed(permit, self._clock(), f"{type(error).__name__}: {error}"):
            DEGRADED.labels("ranker", "remote scorer: circuit opened").inc()
            log.warning("remote scorer: circuit opened", url=self._options.url, error=str(error))

    def _count(self, outcome: str, began_s: float) -> None:
        CALLS.labels(self._options.form, outcome).inc()
        CIRCUIT.labels(self._options.form).set(self._breaker.state is State.OPEN)
        STAGE_SECONDS.labels("ranker", "remote").observe(self._clock() - began_s)

    async def _batches(self, query: str, texts: list[str]) -> NDArray[np.float64]:
        """All batches, side by side; the first error ends the others."""
        starts = range(0, len(texts), self._max_batch)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._batch(query, texts[at : at + self._max_batch])) for at in starts]
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return np.concatenate([task.result() for task in tasks])

    async def _batch(self, query: str, texts: list[str]) -> NDArray[np.float64]:
        self._budget.called()
        try:
            return await self._ask(query, texts)
        except RemoteScorerError as error:
            if not error.retryable or not self._budget.take():
                raise
            RETRIES.labels(self._options.form).inc()
        await asyncio.sleep(self._jitter() * RETRY_PAUSE_S)
        return await self._ask(query, texts)

    async def _ask(self, query: str, texts: list[str]) -> NDArray[np.float64]:
        """One request: p, float64 [len(texts)]."""
        options = self._options
        logits = options.scores == "logits"
        body = self._form.body(
            query, texts, model=options.model, labels=options.labels, want_logits=logits, extra=options.extra
        )
        answer = await self._link.post(self._form.path, body)
        return forms.probabilities(self._form.scores(answer, len(texts)), logits=logits)

    async def _end(self) -> None:
        mine = asyncio.current_task()
        others = [task for task in asyncio.all_tasks() if task is not mine]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._link.close()


def _digest(options: RemoteOptions, served: Served) -> str:
    """12 hex digits of all that makes a score: where, how it is asked, what the server says that it serves."""
    wording = options.wording
    parts = [
        [options.url, options.form, options.model, options.scores, options.labels, sorted(options.extra.items())],
        astuple(wording) if wording is not None else None,
        [options.max_query_chars, options.max_item_chars, NO_TEXT, MARKS.pattern],
        list(served.models),
    ]
    return hashlib.blake2b(json.dumps(parts, default=repr).encode(), digest_size=6).hexdigest()
