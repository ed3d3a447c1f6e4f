"""A real server over fakes of what it talks to: roles, broker, topics."""

import asyncio
import contextlib
import threading

import grpc
import httpx
from waiting import eventually

from penstock.infra.gateway.alert_log import AlertLog, entry_of
from penstock.infra.gateway.follower import Record
from penstock.infra.gateway.history import Batch
from penstock.infra.gateway.parts import Parts
from penstock.infra.gateway.publisher import Place
from penstock.infra.gateway.seats import Seats
from penstock.infra.gateway.server import serve_from
from penstock.infra.gateway.subscription_view import SubscriptionView
from penstock.infra.settings import GatewaySettings, Settings
from penstock.schemas.events import Alert, Attributes, IndexOp, IndexUpdate, RankedItem, RankResult, Subscription
from penstock.schemas.grpc_avro import CallError
from penstock.schemas.rpc import (
    ClauseEffect,
    ExplainReply,
    GetReply,
    Ranker,
    Retrieval,
    RoleStatus,
    Row,
    RowState,
    StandingReply,
)
from penstock.schemas.topics import SUBSCRIPTIONS
from penstock.schemas.wire import codec

NOW = 1_795_000_000_000


def call_error(method, code, message="at 10.1.2.3: secret", **said):
    return CallError(method, "10.1.2.3:7301", code, message, **said)


class FakeRanker:
    def __init__(self):
        self.asked, self.trouble, self.ready, self.looks = [], None, True, 0
        self.hang, self.cancelled = False, threading.Event()
        self.result = RankResult(
            request_id="r",
            items=(RankedItem(posting_id="p1", version=1, score=0.9, parts={"dense": 0.5}),
                   RankedItem(posting_id="gone", version=1, score=0.4, parts={"dense": 0.1})),
            total=2,
            timings={"score": 1.0},
            next_cursor="c2",
        )  # fmt: skip

    async def rank(self, request, timeout):
        self.asked.append(request)
        if self.hang:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        if self.trouble:
            raise self.trouble
        return self.result

    async def status(self, timeout):
        self.looks += 1
        if self.trouble:
            raise call_error(Ranker.STATUS, grpc.StatusCode.UNAVAILABLE)
        return RoleStatus(role="ranker", ready=self.ready, reason="", numbers={}, texts={})


class FakeRetrieval:
    def __init__(self):
        self.rows, self.trouble, self.in_force, self.ready = {}, None, {}, True
        self.add("p1", title="Night nurse")

    def add(self, posting_id, tenant="default", state=RowState.LIVE, version=1, **attributes):
        update = IndexUpdate(
            posting_id=posting_id,
            version=version,
            op=IndexOp.UPSERT,
            tenant=tenant,
            attributes=Attributes(**{"title": "T", **attributes}),
            produced_at=NOW,
        )
        self.rows[posting_id] = Row(posting_id=posting_id, state=state, update=update, searchable_at=NOW)

    def get(self, request, timeout):
        self._troubled(Retrieval.GET)
        absent = [Row(posting_id=name, state=RowState.ABSENT) for name in request.posting_ids]
        rows = [self.rows.get(row.posting_id, row) for row in absent]
        mine = [
            row if row.update is None or request.tenant in (None, row.update.tenant) else empty
            for row, empty in zip(rows, absent, strict=True)
        ]
        return GetReply(rows=tuple(mine))

    def explain(self, request, timeout):
        self._troubled(Retrieval.EXPLAIN)
        clause = ClauseEffect(clause="remote=REMOTE", passed=3, missing=1)
        return ExplainReply(filter="remote=REMOTE", postings=10, passed=3, clauses=(clause,))

    def standing(self, request, timeout):
        self._troubled(Retrieval.STANDING)
        versions = tuple(self.in_force.get(name, -1) for name in request.subscription_ids)
        return StandingReply(versions=versions, in_force=tuple(version >= 0 for version in versions))

    def status(self, timeout):
        return [RoleStatus(role="retrieval", ready=self.ready, reason="", numbers={}, texts={})]

    def _troubled(self, method):
        if self.trouble:
            raise call_error(method, self.trouble)


class FakeBroker:
    """Takes records and, of subscriptions, hands them to the view as the topic would."""

    def __init__(self):
        self.sent, self.trouble, self.view = [], None, None
        self.delivered_at = float("-inf")
        self.answers = ""

    async def publish(self, topic, record):
        if self.trouble:
            raise self.trouble
        self.sent.append((topic.name, record))
        offset = len(self.sent) - 1
        if topic is SUBSCRIPTIONS:
            self.view.take([Record(0, offset, NOW, codec(Subscription).encode(record))])
        return Place(0, offset)

    async def metadata(self, timeout_s):
        return self.answers

    def stuck(self):
        return ""


class FakeReader:
    caught_up = True
    reason = ""

    def not_ready(self):
        return self.reason

    def stuck(self):
        return self.reason


class FakeTopic:
    """alerts.feed.v1: everything that was published, less what retention took."""

    def __init__(self, partitions=2):
        self.records = {partition: [] for partition in range(partitions)}
        self.low = dict.fromkeys(range(partitions), 0)
        self.reads = 0

    async def read(self, partition, start, stop):
        self.reads += 1
        low, high = self.low[partition], len(self.records[partition])
        begin, end = max(start, low), min(stop, high, max(start, low) + 3)
        found = [entry_of(record, codec(Alert)) for record in self.records[partition][begin:end]]
        return Batch(found, max(begin, end), low, high)


class World:
    """Everything behind one gateway."""

    def __init__(self, listen, kept, beat_s, stall_s, **settings):
        self.settings = Settings(gateway=GatewaySettings(listen=listen, **settings))
        self.ranker, self.retrieval, self.broker = FakeRanker(), FakeRetrieval(), FakeBroker()
        self.reader, self.topic = FakeReader(), FakeTopic()
        self.kept, self.beat_s, self.stall_s = kept, beat_s, stall_s
        self.url = f"http://{listen}"
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._run)
        self.parts = self.loop = None

    @contextlib.asynccontextmanager
    async def opened(self):
        self.loop = asyncio.get_running_loop()
        feed, view = AlertLog(codec(Alert), self.kept), SubscriptionView(codec(Subscription))
        starts = {p: max(0, len(records) - self.kept) for p, records in self.topic.records.items()}
        feed.begin(starts), view.begin({0: 0})
        for partition, start in starts.items():
            feed.take(self.topic.records[partition][start:])
        self.broker.view = view
        self.parts = Parts(
            settings=self.settings,
            ranker=self.ranker,
            retrieval=self.retrieval,
            publisher=self.broker,
            alert_log=feed,
            alert_reader=self.reader,
            history=self.topic,
            subscriptions=view,
            subscription_reader=self.reader,
            seats=Seats(self.settings.gateway.max_streams),
            now_ms=lambda: NOW,
            beat_s=self.beat_s,
            stall_s=self.stall_s,
        )
        yield self.parts

    def _run(self):
        asyncio.run(serve_from(self.opened, self.settings.gateway, self.stop))

    def alert(self, person_id, number, tenant="default", size=0):
        """One more alert on the topic, in the partition of its person."""
        partition = sum(person_id.encode()) % len(self.topic.records)
        alert = Alert(
            alert_id=f"{person_id}/{number}",
            tenant=tenant,
            person_id=person_id,
            posting_id=f"posting-{number}",
            version=1,
            matches=(),
            attributes=Attributes(title="x" * size or "Nurse"),
            produced_at=NOW,
            alerted_at=NOW,
        )
        records = self.topic.records[partition]
        record = Record(partition, len(records), NOW + number, codec(Alert).encode(alert))
        records.append(record)
        if self.loop is not None:
            self.loop.call_soon_threadsafe(self.parts.alert_log.take, [record])
        return alert.alert_id

    def start(self):
        self.thread.start()

        def up():
            try:
                return httpx.get(f"{self.url}/livez").status_code
            except httpx.TransportError:
                return None

        eventually(up, "the gateway answers")
        return self

    def close(self):
        self.stop.set()
        self.thread.join(20)
        assert not self.thread.is_alive()
