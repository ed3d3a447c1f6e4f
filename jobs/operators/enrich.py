"""The fast lane: each posting gets its vector and summary from the models role, or goes on without them in time.

Records arrive one by one and concurrently; calls go out in batches. Three things keep a posting from waiting: answers
are remembered by text, a call has a deadline, and a breaker stops waiting for a server that does not answer.
Runs before the keyed operator: behind it nothing may hand records on in another order.

Where it stands: life-of-a-posting.md, step 3.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from pyflink.datastream.functions import AsyncFunction, RuntimeContext

from penstock.infra.settings import Settings
from penstock.jobs.operators.metrics import counters
from penstock.jobs.operators.posting_state import Arrival
from penstock.jobs.operators.worker import begin, passed
from penstock.retrieval.client import AsyncModelsClient
from penstock.schemas.events import Enrichment, PostingText
from penstock.schemas.grpc_avro import CallError
from penstock.schemas.rpc import EnrichPostingsRequest

A = TypeVar("A")
Q = TypeVar("Q")

REMEMBERED = 2_048  # enrichments, about 3 KB each
COUNTED = ("enrichments_reused", "enrichments_made", "without_enrichment")
LINGER_S = 0.002  # how long a batch waits for company


class Unavailable(Exception):
    """The models role did not answer in time, or the breaker is open."""


class Rejected(Unavailable):
    """The models role answered that it will not do this: it is alive, and may well do the next."""


@dataclass(slots=True)
class Breaker:
    """Whether a server is worth waiting for. Written by one event loop only.

    Closed: every call goes. `threshold` failures in a row open it; from then on only trials go, each after a pause
    twice as long as the last, up to `longest_s`, until one succeeds.
    """

    threshold: int = 2  # while it is closed, a server that hangs costs its callers the whole deadline each time
    first_pause_s: float = 0.25
    longest_s: float = 2.0
    _failures: int = 0

    @property
    def closed(self) -> bool:
        return self._failures < self.threshold

    @property
    def pause_s(self) -> float:
        """How long to leave an open one alone before the next trial."""
        return min(self.first_pause_s * 2.0 ** min(self._failures - self.threshold, 16), self.longest_s)

    def succeeded(self) -> None:
        self._failures = 0

    def failed(self) -> None:
        self._failures += 1


class Batcher(Generic[Q, A]):
    """Gathers concurrent questions into one call. Owned by one event loop; no locks.

    `call` answers a batch in order. `ask` raises Unavailable when the breaker is open, the call fails, or it takes
    longer than `timeout_s`.
    """

    def __init__(
        self,
        call: Callable[[Sequence[Q]], Awaitable[Sequence[A]]],
        *,
        batch: int,
        concurrency: int,
        timeout_s: float,
        breaker: Breaker,
    ) -> None:
        self._call = call
        self._batch = batch
        self._timeout_s = timeout_s
        self._call_timeout_s = max(timeout_s - 2 * LINGER_S, LINGER_S)
        self._breaker = breaker
        self._waiting: list[tuple[Q, asyncio.Future[A]]] = []
        self._flush: asyncio.TimerHandle | None = None
        self._slots = asyncio.Semaphore(concurrency)
        self._running: set[asyncio.Task[None]] = set()
        self._trials: asyncio.Task[None] | None = None
        self._latest: Q | None = None

    async def ask(self, question: Q) -> A:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[A] = loop.create_future()
        self._waiting.append((question, answer))
        self._latest = question
        if len(self._waiting) >= self._batch:
            self._send()
        elif self._flush is None:
            self._flush = loop.call_later(LINGER_S, self._send)
        try:
            return await asyncio.wait_for(answer, self._timeout_s)
        except TimeoutError:
            raise Unavailable(f"no answer within {self._timeout_s * 1000:.0f} ms") from None

    def _send(self) -> None:
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None
        batch, self._waiting = self._waiting, []
        if not self._breaker.closed:
            for _, answer in batch:
                _fail(answer, Unavailable("the models role failed before; not asked again yet"))
            return
        task = asyncio.get_running_loop().create_task(self._run(batch))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _run(self, batch: list[tuple[Q, asyncio.Future[A]]]) -> None:
        try:
            # The wait for a free call included; and over before its questions give up, so that the breaker knows
            # before the next ones are asked.
            async with asyncio.timeout(self._call_timeout_s), self._slots:
                answers = await self._call([question for question, _ in batch])
            if len(answers) != len(batch):
                raise Unavailable(f"{len(answers)} answers to {len(batch)} questions")
        except Rejected as error:
            for _, answer in batch:
                _fail(answer, error)
        except Exception as error:  # whatever it was, every posting of the batch must go on
            self._breaker.failed()
            if not self._breaker.closed and (self._trials is None or self._trials.done()):
                self._trials = asyncio.get_running_loop().create_task(self._try())
            for _, answer in batch:
                _fail(answer, Unavailable(f"{type(error).__name__}: {error}"))
        else:
            self._breaker.succeeded()
            for (_, answer), value in zip(batch, answers, strict=True):
                if not answer.done():
                    answer.set_result(value)

    async def _try(self) -> None:
        """The trials of an open breaker, with the latest question. No posting waits for them or is needed for them."""
        while not self._breaker.closed:
            await asyncio.sleep(self._breaker.pause_s)
            try:
                assert self._latest is not None
                async with asyncio.timeout(self._call_timeout_s):
                    await self._call([self._latest])
            except Rejected:
                self._breaker.succeeded()
            except Exception:  # whatever it was, it is one more failure
                self._breaker.failed()
            else:
                self._breaker.succeeded()


def _fail(answer: asyncio.Future[A], error: Unavailable) -> None:
    if not answer.done():
        answer.set_exception(error)
        answer.exception()  # whoever waited may have given up: then nobody else looks at it


class Remembered:
    """Enrichments by text hash, the least recently used forgotten first; all of them when the encoder changes."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: OrderedDict[str, Enrichment] = OrderedDict()
        self._encoder_id: str | None = None

    def get(self, text_hash: str) -> Enrichment | None:
        found = self._held.get(text_hash)
        if found is not None:
            self._held.move_to_end(text_hash)
        return found

    def put(self, text_hash: str, enrichment: Enrichment) -> None:
        encoder_id = enrichment.vector.encoder_id if enrichment.vector is not None else None
        if encoder_id != self._encoder_id:
            self._held.clear()
            self._encoder_id = encoder_id
        self._held[text_hash] = enrichment
        self._held.move_to_end(text_hash)
        while len(self._held) > self._most:
            self._held.popitem(last=False)


class Enrich(AsyncFunction):  # type: ignore[misc]  # pyflink carries no types
    """Arrival -> Arrival with its enrichment, or without one when the fast lane fails. Never raises, never drops."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._batcher: Batcher[PostingText, Enrichment] | None = None
        self._remembered = Remembered(REMEMBERED)

    def open(self, runtime_context: RuntimeContext) -> None:
        counted = counters(begin(runtime_context, self._settings), "postings", COUNTED)
        self._reused, self._made, self._without = (counted[name] for name in COUNTED)

    async def async_invoke(self, value: Arrival) -> list[Arrival]:
        began = time.time() * 1000
        return [passed(await self.enrich(value, int(began)), "postings.enrich", began)]

    async def enrich(self, arrival: Arrival, now_ms: int) -> Arrival:
        expires_at = arrival.posting.expires_at
        if arrival.text is None or arrival.text_hash is None or (expires_at is not None and expires_at <= now_ms):
            return arrival
        known = self._remembered.get(arrival.text_hash)
        if known is not None:
            self._reused.inc()
            return replace(arrival, enrichment=known)
        try:
            enrichment = await self._asked().ask(arrival.text)
        except Unavailable:
            self._without.inc()
            return arrival
        if enrichment.vector is None:
            self._without.inc()
            return replace(arrival, enrichment=enrichment)
        self._made.inc()
        self._remembered.put(arrival.text_hash, enrichment)
        return replace(arrival, enrichment=enrichment)

    def _asked(self) -> Batcher[PostingText, Enrichment]:
        """The batcher, made on the event loop that runs the calls."""
        if self._batcher is None:
            rules = self._settings.postings
            timeout_s = rules.enrich_timeout_ms / 1000
            client = AsyncModelsClient(self._settings.models.dial)

            async def call(texts: Sequence[PostingText]) -> Sequence[Enrichment]:
                try:
                    return (await client.enrich(EnrichPostingsRequest(postings=tuple(texts)), timeout_s)).enrichments
                except CallError as error:
                    raise (Unavailable if error.retryable else Rejected)(str(error)) from error

            self._batcher = Batcher(
                call,
                batch=rules.enrich_batch,
                concurrency=rules.enrich_concurrency,
                timeout_s=timeout_s,
                breaker=Breaker(),
            )
        return self._batcher
