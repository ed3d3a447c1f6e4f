"""New and materially changed postings meet the standing queries: batched calls to all shards, asked until answered.

A posting is never dropped for a shard's sake: what fails is asked again, with pauses, and after PATIENCE_S without any
answer the job fails over and reads it again from its checkpoint. What fails in company is asked alone, with more and
more time: a batch that matches more than a call has time for would else never end. Only a posting that the shards
refuse for what it is goes without.
Each person's matches leave as one candidate, which carries the posting encoded once for all of them.

Where it stands: life-of-a-posting.md, step 9; life-of-an-alert.md, step 5.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Protocol

import structlog
from pyflink.datastream.functions import AsyncFunction, RuntimeContext

from penstock.infra.settings import Settings
from penstock.jobs.operators.enrich import Batcher, Breaker, Rejected, Unavailable
from penstock.jobs.operators.identity import person_key
from penstock.jobs.operators.metrics import counters
from penstock.jobs.operators.worker import begin, passed
from penstock.retrieval.client import AsyncRetrievalClient, shard_addresses
from penstock.schemas.errors import WireError
from penstock.schemas.events import IndexOp, IndexUpdate, Match, StandingQuery
from penstock.schemas.framing import topic_codec
from penstock.schemas.grpc_avro import CallError
from penstock.schemas.rpc import Matches, PercolateReply, PercolateRequest
from penstock.schemas.states import Candidate, Subject
from penstock.schemas.topics import INDEX
from penstock.schemas.wire import codec

log = structlog.get_logger()

COUNTED = ("percolated", "matched", "asked_again", "refused_by_shards", "unreadable")
CONCURRENCY = 2  # calls on their way: one is answered while the next is written
PAUSE_S = 0.1  # before what failed is asked again
TOGETHER = 10  # times that a posting is asked in company
PATIENCE_S = 30.0  # without an answer to anybody

Keyed = tuple[str, bytes]  # (person's key, an encoded Candidate)


class NotPercolated(Exception):
    """The shards did not answer in time: the job fails over and asks again from its checkpoint."""


class Percolator(Protocol):
    """What this asks of `penstock.retrieval.client.AsyncRetrievalClient`."""

    async def percolate(self, request: PercolateRequest, timeout: float) -> PercolateReply:
        """One Matches an update, of every shard. Raises CallError, also when any shard did not answer."""
        ...


def wanted(update: IndexUpdate, now_ms: int) -> bool:
    """Whether anybody may have to be told of it."""
    return (
        update.op is IndexOp.UPSERT
        and update.percolate
        and update.attributes is not None
        and (update.expires_at is None or update.expires_at > now_ms)
    )


def lean(update: IndexUpdate) -> IndexUpdate:
    """Without what only people and the ranking model read."""
    return IndexUpdate(
        posting_id=update.posting_id,
        version=update.version,
        revision=update.revision,
        op=update.op,
        tenant=update.tenant,
        attributes=update.attributes,
        # Without a vector, what is searched by words is what its text says.
        item_text=update.item_text if update.vector is None else None,
        vector=update.vector,
        produced_at=update.produced_at,
        expires_at=update.expires_at,
        material_class=update.material_class,
        percolate=update.percolate,
    )


def candidates_of(update: IndexUpdate, found: Matches) -> list[Keyed]:
    """One candidate a person, in order of their names."""
    assert update.attributes is not None
    by_person: dict[str, list[Match]] = {}
    for match in found.matches:
        by_person.setdefault(match.person_id, []).append(match)
    if not by_person:
        return []
    asking: dict[str, list[StandingQuery]] = {}
    for query in found.queries:
        asking.setdefault(query.person_id, []).append(query)
    subject = codec(Subject).encode_unbounded(
        Subject(
            posting_id=update.posting_id,
            version=update.version,
            tenant=update.tenant,
            material_class=update.material_class,
            attributes=update.attributes,
            produced_at=update.produced_at,
            expires_at=update.expires_at,
            trace=update.trace,
        )
    )
    out = []
    for person_id, matches in sorted(by_person.items()):
        candidate = Candidate(
            tenant=update.tenant,
            person_id=person_id,
            subject=subject,
            matches=tuple(matches),
            queries=tuple(asking.get(person_id, ())),
        )
        out.append((person_key(update.tenant, person_id), codec(Candidate).encode_unbounded(candidate)))
    return out


class Percolate(AsyncFunction):  # type: ignore[misc]  # pyflink carries no types
    """Bytes of an index update -> (person's key, candidate) for each person it may be alerted to."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._batcher: Batcher[IndexUpdate, Matches] | None = None
        self._client: Percolator | None = None
        self._answered_at = 0.0  # monotonic seconds: when the shards last answered anybody

    def open(self, runtime_context: RuntimeContext) -> None:
        self._codec = topic_codec(INDEX, self._settings.kafka.schema_registry)
        self._counters = counters(begin(runtime_context, self._settings), "alerts", COUNTED)

    async def async_invoke(self, value: bytes) -> list[Keyed]:
        try:
            update: IndexUpdate = self._codec.decode(bytes(value))
        except WireError:  # the shards, which read the same topic, make it a dead letter
            self._counters["unreadable"].inc()
            return []
        began = int(time.time() * 1000)
        if not wanted(update, began):
            return []
        found = await self._found(lean(update))
        self._counters["percolated"].inc()
        out = candidates_of(passed(update, "alerts.percolate", began), found)
        if out:
            self._counters["matched"].inc(len(found.matches))
        return out

    async def _found(self, update: IndexUpdate) -> Matches:
        began = time.monotonic()
        for _ in range(TOGETHER):
            try:
                found = await self._asked().ask(update)
            except Rejected:  # somebody in its batch is refused: is it this one?
                break
            except Unavailable as error:
                await self._pause(began, error)
            else:
                self._answered_at = time.monotonic()
                return found
        return await self._alone(update, began)

    async def _alone(self, update: IndexUpdate, began: float) -> Matches:
        assert self._client is not None
        timeout_s = self._timeout_s
        while True:
            try:
                async with self._singles:
                    reply = await self._client.percolate(PercolateRequest(updates=(update,)), timeout_s)
            except CallError as error:
                if not error.retryable:
                    self._counters["refused_by_shards"].inc()
                    log.error("a posting cannot be percolated", posting_id=update.posting_id, error=str(error))
                    return Matches()
                await self._pause(began, error)
                timeout_s = min(2 * timeout_s, PATIENCE_S)
            else:
                self._answered_at = time.monotonic()
                return reply.found[0]

    async def _pause(self, began: float, error: Exception) -> None:
        self._counters["asked_again"].inc()
        if time.monotonic() + PAUSE_S > max(began, self._answered_at) + PATIENCE_S:
            raise NotPercolated(
                f"the retrieval shards have not percolated a posting for {PATIENCE_S:g} s ({error}): "
                "bring them back; no posting goes unseen"
            ) from error
        await asyncio.sleep(PAUSE_S)

    @property
    def _timeout_s(self) -> float:
        return self._settings.alerts.percolate_timeout_ms / 1000

    def _asked(self) -> Batcher[IndexUpdate, Matches]:
        """The batcher, made on the event loop that runs the calls."""
        if self._batcher is None:
            client = self._client = self._connect()
            self._singles = asyncio.Semaphore(CONCURRENCY)

            async def call(updates: Sequence[IndexUpdate]) -> Sequence[Matches]:
                try:
                    return (await client.percolate(PercolateRequest(updates=tuple(updates)), self._timeout_s)).found
                except CallError as error:
                    raise (Unavailable if error.retryable else Rejected)(str(error)) from error

            self._batcher = Batcher(
                call,
                batch=self._settings.alerts.percolate_batch,
                concurrency=CONCURRENCY,
                timeout_s=self._timeout_s,
                breaker=Breaker(),
            )
        return self._batcher

    def _connect(self) -> Percolator:
        return AsyncRetrievalClient(shard_addresses(self._settings.retrieval))
