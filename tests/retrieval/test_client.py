"""The clients against real servers: shards merged exactly, missing ones named, waiting for a version on any of them."""

import asyncio
import math
import socket
import threading
import time
from types import SimpleNamespace

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from standing_inputs import StandingOracle, ended, standing
from standing_inputs import shown as matched
from store_inputs import gone, queries, query, trees, updates, upsert, vector
from store_oracle import Oracle, shown

from penstock.infra.settings import RetrievalSettings
from penstock.retrieval.client import (
    MIN_VERSION_TIMED_OUT,
    AsyncModelsClient,
    AsyncRetrievalClient,
    ModelsClient,
    RetrievalClient,
    _race,
    shard_addresses,
)
from penstock.retrieval.hedging import ENOUGH, UNKNOWN_S, Race
from penstock.retrieval.percolate import service as percolation
from penstock.retrieval.percolate.store import StandingQueries
from penstock.retrieval.server import RetrievalService
from penstock.retrieval.store.store import Store
from penstock.schemas import grpc_avro
from penstock.schemas.errors import InvalidRecord
from penstock.schemas.events import Enrichment, MinVersion, PostingText
from penstock.schemas.filters import all_of, is_in, negate
from penstock.schemas.grpc_avro import CallError
from penstock.schemas.rpc import (
    AnalyzeQueriesReply,
    AnalyzeQueriesRequest,
    ClauseEffect,
    EnrichPostingsReply,
    EnrichPostingsRequest,
    ExplainRequest,
    GetRequest,
    HoldsRequest,
    Models,
    PercolateRequest,
    QueryAnalysis,
    Retrieval,
    RoleStatus,
    SearchRequest,
    StandingRequest,
)

CALL_S = 10.0
ASKED = query([1.0, 0.5, 0.0, 0.0, 0.0, 0.0])


class Still:
    """A shard that only answers: what RetrievalService asks of one."""

    def __init__(self, store):
        self.store = store
        self.reason = ""

    @property
    def view(self):
        return SimpleNamespace(
            counts=self.store.counts(),
            lag=SimpleNamespace(offsets=0, seconds=0.0),
            refused=0,
            last_refusal="",
            snapshot="",
            snapshot_at_ms=0,
            problems=(),
        )

    def not_ready(self):
        return self.reason

    def may_answer(self):
        return not self.reason


class Cluster:
    """Shards with the postings dealt out between them."""

    def __init__(self, free_port, count):
        self.shards = [Still(Store(capacity=4)) for _ in range(count)]
        self.standing = [Still(StandingQueries()) for _ in range(count)]
        self.listeners, self.addresses, self.services = [], [], []
        for number, shard in enumerate(self.shards):
            service = RetrievalService(shard, self.standing[number], f"shard-{number}", 1)
            self.services.append(service)
            address = f"127.0.0.1:{free_port()}"
            handlers = {
                Retrieval.SEARCH: service.search,
                Retrieval.GET: service.get,
                Retrieval.HOLDS: service.holds,
                Retrieval.EXPLAIN: service.explain,
                Retrieval.PERCOLATE: service.percolation.percolate,
                Retrieval.STANDING: service.percolation.standing,
                Retrieval.STATUS: service.status,
            }
            self.listeners.append(grpc_avro.serve(address, handlers))
            self.addresses.append(address)
        self.client = RetrievalClient(self.addresses)

    def publish(self, *updates):
        for update in updates:
            self.shards[sum(update.posting_id.encode()) % len(self.shards)].store.apply([update], now_ms=0)

    def subscribe(self, *queries):
        for one in queries:
            self.standing[sum(one.subscription_id.encode()) % len(self.standing)].store.apply([one], now_ms=0)

    def end(self, number):
        self.listeners[number].stop(0).wait()

    def close(self):
        self.client.close()
        for number, service in enumerate(self.services):
            self.end(number)
            service.close()


@pytest.fixture
def cluster(free_port):
    made = []

    def make(count=3):
        made.append(Cluster(free_port, count))
        return made[-1]

    yield make
    for one in made:
        one.close()


def postings(count=30):
    return [
        upsert(f"p{i}", vector=vector([float(i % 4), 1.0, 0.0, 0.0, 0.0, 0.0]), company=f"c{i % 2}", posted_at=i % 5)
        for i in range(count)
    ]


@pytest.mark.parametrize("count", [1, 3])
def test_shards_answer_as_one(cluster, count):
    some = cluster(count)
    some.publish(*postings())
    oracle = Oracle(postings())
    for asked in (ASKED, None):
        for k in (1, 7, 100):
            reply = some.client.search(SearchRequest(vector=asked, filters=is_in("company", "c1"), k=k), CALL_S)
            assert shown(reply) == oracle.search(asked, is_in("company", "c1"), k, now_ms=0)
            assert reply.degraded == ()
    rows = some.client.get(GetRequest(posting_ids=("p3", "p29", "nobody")), CALL_S).rows
    assert [(row.posting_id, row.state) for row in rows] == [("p3", "LIVE"), ("p29", "LIVE"), ("nobody", "ABSENT")]


def test_several_shards_name_their_epochs_and_refuse_one_for_all(cluster):
    some = cluster(2)
    some.publish(*postings(4))
    reply = some.client.search(SearchRequest(), CALL_S)
    epochs = [shard.store.epoch for shard in some.shards]
    assert reply.shard == f"shard-0@{epochs[0]},shard-1@{epochs[1]}"
    assert reply.epoch == min(epochs)
    with pytest.raises(InvalidRecord, match="at_epoch"):
        some.client.search(SearchRequest(at_epoch=1), CALL_S)


def test_a_missing_shard_is_named_and_the_rest_answer(cluster):
    some = cluster(3)
    some.publish(*postings())
    some.end(1)
    reply = some.client.search(SearchRequest(k=50), CALL_S)
    assert 0 < reply.total < 30
    assert len(reply.degraded) == 1 and some.addresses[1] in reply.degraded[0]
    assert some.addresses[1] in some.client.get(GetRequest(posting_ids=("p1",)), CALL_S).degraded[0]
    states = some.client.status(CALL_S)
    assert [status.ready for status in states] == [True, False, True]
    assert some.addresses[1] in states[1].reason


def test_a_shard_that_is_not_ready_is_missing_too(cluster):
    some = cluster(2)
    some.shards[0].reason = "replaying the log"
    assert "replaying the log" in some.client.search(SearchRequest(), CALL_S).degraded[0]
    assert some.client.status(CALL_S)[0].reason == "replaying the log"


def test_a_shard_that_hangs_is_missing_at_the_deadline(cluster, monkeypatch):
    some, release = cluster(3), threading.Event()
    some.publish(*postings())
    monkeypatch.setattr(some.shards[1].store, "search_many", lambda asks: release.wait(30))
    try:
        began = time.monotonic()
        reply = some.client.search(SearchRequest(k=50), 1.0)
        assert 0.9 < time.monotonic() - began < CALL_S
    finally:
        release.set()
    assert 0 < reply.total == len(reply.hits) < 30
    assert [name.split("@")[0] for name in reply.shard.split(",")] == ["shard-0", "shard-2"]
    assert len(reply.degraded) == 1 and some.addresses[1] in reply.degraded[0]
    assert "deadline_exceeded" in reply.degraded[0]


def test_no_shard_at_all_is_an_error(cluster):
    some = cluster(2)
    some.end(0), some.end(1)
    with pytest.raises(CallError) as error:
        some.client.search(SearchRequest(), CALL_S)
    assert error.value.retryable
    with pytest.raises(CallError):
        some.client.get(GetRequest(posting_ids=("p",)), CALL_S)
    with pytest.raises(CallError):
        some.client.get(
            GetRequest(posting_ids=("p",), min_version=MinVersion(posting_id="p", version=1), timeout_ms=10), CALL_S
        )


def test_a_wrong_request_is_an_error_whoever_else_answers(cluster):
    with pytest.raises(CallError, match="k: got 0") as error:
        cluster(2).client.search(SearchRequest(k=0), CALL_S)
    assert error.value.code is grpc.StatusCode.INVALID_ARGUMENT


def test_a_no_needs_every_shard(cluster):
    some = cluster(2)
    some.publish(*postings(10))
    held, absent = is_in("company", "c0"), is_in("company", "nobody")
    assert some.client.holds(HoldsRequest(clauses=(held, absent)), CALL_S).held == (True, False)
    some.end(1)
    assert some.client.holds(HoldsRequest(clauses=(held,)), CALL_S).held == (True,)
    with pytest.raises(CallError, match="did not answer"):
        some.client.holds(HoldsRequest(clauses=(held, absent)), CALL_S)


@pytest.mark.parametrize("count", [1, 3])
def test_a_filter_is_explained_over_all_shards(cluster, count):
    some = cluster(count)
    some.publish(*postings(30), upsert("bare"))
    tree = all_of(negate(is_in("company", "c0")), is_in("posting_id", "p1", "p2", "bare"))
    said = some.client.explain(ExplainRequest(filters=tree), CALL_S)
    assert (said.postings, said.passed) == (31, 1)
    assert said.clauses == (
        ClauseEffect(clause="!(company=c0)", passed=15, missing=1),
        ClauseEffect(clause="posting_id=p1,p2,bare", passed=3, missing=0),
    )
    nobody = some.client.explain(ExplainRequest(tenant="nobody", filters=tree), CALL_S)
    assert (nobody.postings, nobody.passed, len(nobody.clauses)) == (0, 0, 2)


@pytest.mark.parametrize("count", [1, 3])
def test_waiting_for_a_version_that_only_one_shard_will_have(cluster, count):
    some = cluster(count)
    some.publish(*postings(4))
    wanted = MinVersion(posting_id="p1", version=7)
    late = some.client.search(SearchRequest(min_version=wanted, timeout_ms=30), CALL_S)
    assert (late.total, late.degraded) == (4, (MIN_VERSION_TIMED_OUT,))
    answers = []

    def ask():
        answers.append(some.client.search(SearchRequest(min_version=wanted, timeout_ms=9_000), CALL_S))
        answers.append(some.client.get(GetRequest(posting_ids=("p1", "p2"), min_version=wanted, timeout_ms=9_000), 9))
        answers.append(some.client.get(GetRequest(posting_ids=("p1",), min_version=wanted, timeout_ms=9_000), 9))

    thread = threading.Thread(target=ask)
    began = time.monotonic()
    thread.start()
    some.publish(gone("p1", 7))
    thread.join(30)
    assert time.monotonic() - began < 8  # the shards that will never have it were not waited for
    assert [answer.degraded for answer in answers] == [(), (), ()]
    assert answers[0].total == 3
    assert [row.state for row in answers[1].rows] == ["DELETED", "LIVE"]
    assert answers[2].rows[0].state == "DELETED"


@settings(max_examples=15)
@given(
    updates=st.lists(updates(), max_size=20),
    dealt=st.lists(st.integers(0, 2), min_size=10, max_size=10),
    asked=st.none() | queries,
    tree=st.none() | trees,
    k=st.integers(1, 12),
)
def test_shards_answer_what_one_store_would(three_shards, updates, dealt, asked, tree, k):
    """However the ids are dealt out. One server a shard for all examples: a store is as good as new."""
    one = Store(capacity=4)
    for shard in three_shards.shards:
        shard.store = Store(capacity=4)
    for update in updates:
        one.apply([update], now_ms=50)
        three_shards.shards[dealt[int(update.posting_id[1:])]].store.apply([update], now_ms=50)
    reply = three_shards.client.search(SearchRequest(vector=asked, filters=tree, k=k), CALL_S)
    moment = time.time_ns() // 1_000_000  # what expires has expired, in either
    assert shown(reply) == shown(one.search(asked, tree, k, now_ms=moment))
    assert len(reply.shard.split(",")) == 3 and reply.degraded == ()


@pytest.fixture(scope="module")
def three_shards():
    def free_port():
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return probe.getsockname()[1]

    made = Cluster(free_port, 3)
    yield made
    made.close()


# --- replicas --------------------------------------------------------------------------------------------------------


@pytest.fixture
def twins(cluster):
    """Two replicas of one shard, with the same postings and subscriptions, and a client of both."""
    some = cluster(2)
    for shard, standing_ in zip(some.shards, some.standing, strict=True):
        shard.store.apply(postings(10), now_ms=0)
        standing_.store.apply(subscriptions(5), now_ms=0)
    some.client.close()
    some.client = RetrievalClient(["|".join(some.addresses)])
    return some


def everything(some):
    """One of each call, by threads and by coroutines."""
    asked = PercolateRequest(updates=tuple(postings(2))), StandingRequest(subscription_ids=("s1",))

    async def over_the_loop():
        client = AsyncRetrievalClient(["|".join(some.addresses)])
        replies = await client.percolate(asked[0], CALL_S), await client.standing(asked[1], CALL_S)
        await client.close()
        return replies

    found, told = asyncio.run(over_the_loop())
    wanted = MinVersion(posting_id="p1", version=1)
    return (
        shown(some.client.search(SearchRequest(vector=ASKED, k=5), CALL_S)),
        some.client.search(SearchRequest(vector=ASKED, k=5, min_version=wanted), CALL_S).total,
        [row.state for row in some.client.get(GetRequest(posting_ids=("p1", "nobody")), CALL_S).rows],
        some.client.holds(HoldsRequest(clauses=(is_in("company", "c1"),)), CALL_S).held,
        some.client.explain(ExplainRequest(filters=is_in("company", "c1")), CALL_S).passed,
        [one.matches for one in some.client.percolate(asked[0], CALL_S).found],
        some.client.standing(asked[1], CALL_S).in_force,
        [one.matches for one in found.found],
        told.in_force,
    )


@pytest.mark.parametrize("missing", [0, 1])
def test_another_replica_answers_for_one_that_is_gone(twins, missing):
    whole = everything(twins)
    twins.end(missing)
    assert everything(twins) == whole
    reply = twins.client.search(SearchRequest(), CALL_S)
    assert (reply.shard, reply.degraded) == (f"shard-{1 - missing}", ())
    [status] = twins.client.status(CALL_S)
    assert status.ready and status.texts["shard"] == f"shard-{1 - missing}"
    assert status.texts["replicas_not_ready"].startswith(twins.addresses[missing])


def test_without_any_replica_the_shard_is_missing_by_all_its_names(twins, free_port):
    client = RetrievalClient(["|".join(twins.addresses), f"127.0.0.1:{free_port()}|127.0.0.1:{free_port()}"])
    reply = client.search(SearchRequest(), CALL_S)
    assert reply.total == 10 and len(reply.degraded) == 1
    assert reply.degraded[0].count("127.0.0.1") >= 2
    states = client.status(CALL_S)
    assert [status.ready for status in states] == [True, False] and states[1].reason.count("127.0.0.1") >= 2
    client.close()


@pytest.mark.parametrize("by", ["threads", "coroutines"])
def test_a_replica_that_hangs_is_not_waited_for(twins, by, monkeypatch):
    hung, answers = twins.standing[0].store, []
    release = threading.Event()
    monkeypatch.setattr(hung, "standing", lambda *_, **__: release.wait(30))
    request = StandingRequest(subscription_ids=("s1", "nobody"))
    before = REGISTRY.get_sample_value("penstock_retrieval_hedges_total", {"answered": "second"}) or 0

    async def over_the_loop():
        client = AsyncRetrievalClient(["|".join(twins.addresses)])
        for _ in range(3):
            answers.append(await client.standing(request, CALL_S))
        await client.close()

    began = time.monotonic()
    try:
        if by == "threads":
            for _ in range(3):
                answers.append(twins.client.standing(request, CALL_S))
        else:
            asyncio.run(over_the_loop())
        assert time.monotonic() - began < CALL_S / 2
    finally:
        release.set()
    assert [(answer.shard, answer.in_force) for answer in answers] == [("shard-1", (True, False))] * 3
    # The first call went to both; who answered it is asked first from then on.
    assert REGISTRY.get_sample_value("penstock_retrieval_hedges_total", {"answered": "second"}) == before + 1


def test_what_a_caller_got_wrong_is_not_asked_of_another_replica(twins, monkeypatch):
    twins.end(1)
    with pytest.raises(CallError, match="k: got 0") as error:
        twins.client.search(SearchRequest(k=0), CALL_S)
    assert error.value.code is grpc.StatusCode.INVALID_ARGUMENT


def test_an_epoch_is_read_from_the_replica_that_knows_it(twins):
    for _ in range(3):
        twins.shards[1].store.apply([upsert("new", twins.shards[1].store.epoch + 1)], now_ms=0)
    epoch = twins.shards[1].store.epoch
    assert epoch > twins.shards[0].store.epoch
    reply = twins.client.search(SearchRequest(at_epoch=epoch), CALL_S)
    assert (reply.shard, reply.total, reply.epoch) == ("shard-1", 11, epoch)
    with pytest.raises(CallError, match="at_epoch"):
        twins.client.search(SearchRequest(at_epoch=epoch + 100), CALL_S)


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_version_is_read_from_the_replica_that_has_it(twins, ahead):
    """Whoever is asked first: one that is behind is not waited for, one that is ahead answers."""
    twins.shards[ahead].store.apply([upsert("p1", 9)], now_ms=0)
    wanted = MinVersion(posting_id="p1", version=9)
    began = time.monotonic()
    for _ in range(3):
        found = twins.client.get(GetRequest(posting_ids=("p1",), min_version=wanted, timeout_ms=9_000), CALL_S)
        assert (found.shard, found.degraded, found.rows[0].update.version) == (f"shard-{ahead}", (), 9)
    reply = twins.client.search(SearchRequest(min_version=wanted, timeout_ms=9_000), CALL_S)
    assert (reply.shard, reply.degraded) == (f"shard-{ahead}", ())
    assert time.monotonic() - began < 8


def test_a_replica_that_waited_in_vain_does_not_speak_for_one_that_still_waits(twins, monkeypatch):
    """The one asked first says so, then the version comes to the other."""
    first, second = twins.services
    both, said, box = threading.Event(), threading.Event(), []

    def in_vain(*_):
        assert both.wait(CALL_S)
        return (MIN_VERSION_TIMED_OUT,)

    def patient(store, wanted, timeout_ms, context):
        both.set()
        return honest(store, wanted, timeout_ms, context)

    honest, taken = second._await, Race.in_vain
    monkeypatch.setattr(first, "_await", in_vain)
    monkeypatch.setattr(second, "_await", patient)
    monkeypatch.setattr(Race, "in_vain", lambda race, replica: (taken(race, replica), said.set())[0])
    request = GetRequest(
        posting_ids=("p1",), min_version=MinVersion(posting_id="p1", version=9), timeout_ms=int(1000 * CALL_S)
    )
    thread = threading.Thread(target=lambda: box.append(twins.client.get(request, CALL_S)))
    thread.start()
    said.wait(CALL_S / 2)
    twins.shards[1].store.apply([upsert("p1", 9)], now_ms=0)
    thread.join(CALL_S)
    assert (box[0].shard, box[0].degraded) == ("shard-1", ())


def test_reads_that_wait_are_compared_with_one_another_alone(twins):
    [shard] = twins.client._shards
    wanted = MinVersion(posting_id="p1", version=1)
    for _ in range(ENOUGH):
        twins.client.search(SearchRequest(k=1), CALL_S)

    def patience(**more):
        race = _race(shard, Retrieval.SEARCH, SearchRequest(**more))
        race.ask(0.0)
        return race.hedge_at()

    assert patience() != UNKNOWN_S
    assert patience(min_version=wanted) == UNKNOWN_S
    assert patience(at_epoch=5) == math.inf


def test_a_version_that_no_replica_has_in_time_is_said(twins):
    wanted = MinVersion(posting_id="p1", version=9)
    reply = twins.client.search(SearchRequest(min_version=wanted, timeout_ms=30), CALL_S)
    assert (reply.total, reply.degraded) == (10, (MIN_VERSION_TIMED_OUT,))


def subscriptions(count=20, **more):
    return [standing(f"s{i}", vector=ASKED, threshold=0.4 * i, **more) for i in range(count)]


@pytest.mark.parametrize("count", [1, 3])
def test_matches_come_from_every_shard(cluster, count):
    some = cluster(count)
    some.subscribe(*subscriptions(), *(standing(f"m{i}", vector=ASKED, min_score=0.5, threshold=0.0) for i in range(3)))
    some.subscribe(ended("s3", 2), standing("theirs", tenant="other"))
    oracle = StandingOracle(subscriptions())
    for i in range(3):
        oracle.accept(standing(f"m{i}", vector=ASKED, min_score=0.5, threshold=0.0))
    oracle.accept(ended("s3", 2))
    request = PercolateRequest(updates=(*postings(6), gone("p9", 2)))

    async def over_the_loop():
        client = AsyncRetrievalClient(some.addresses)
        reply = await client.percolate(request, CALL_S), await client.standing(asked, CALL_S)
        await client.close()
        return reply

    asked = StandingRequest(subscription_ids=("s3", "s4", "theirs", "nobody"))
    for reply, told in (
        (some.client.percolate(request, CALL_S), some.client.standing(asked, CALL_S)),
        asyncio.run(over_the_loop()),
    ):
        assert [matched(one.matches) for one in reply.found] == [oracle.percolate(u, 0) for u in request.updates]
        for one in reply.found[:-1]:
            assert [q.subscription_id for q in one.queries] == ["m0", "m1", "m2"]
            assert one.queries[0].vector.dense == ASKED.dense
        assert reply.degraded == () and reply.shard.startswith("shard-0@")
        assert (told.versions, told.in_force) == ((2, 1, -1, -1), (False, True, False, False))


def test_a_missing_shard_would_lose_alerts(cluster):
    some = cluster(3)
    some.end(1)

    async def over_the_loop():
        client = AsyncRetrievalClient(some.addresses)
        try:
            await client.percolate(PercolateRequest(updates=tuple(postings(1))), CALL_S)
        finally:
            await client.close()

    for ask in (
        lambda: some.client.percolate(PercolateRequest(updates=tuple(postings(1))), CALL_S),
        lambda: some.client.standing(StandingRequest(subscription_ids=("s",)), CALL_S),
        lambda: asyncio.run(over_the_loop()),
    ):
        with pytest.raises(CallError, match=some.addresses[1]) as error:
            ask()
        assert error.value.retryable


def test_a_standing_store_that_is_not_whole_does_not_answer(cluster):
    some = cluster(1)
    some.standing[0].reason = "replaying the log"
    with pytest.raises(CallError, match="replaying") as error:
        some.client.percolate(PercolateRequest(updates=()), CALL_S)
    assert error.value.retryable
    assert not some.client.status(CALL_S)[0].ready
    assert some.client.search(SearchRequest(), CALL_S).degraded == ()  # searches need the postings alone


@pytest.mark.parametrize("count", [1, 2])
def test_what_a_reply_cannot_hold_is_asked_for_again(cluster, count, monkeypatch):
    some = cluster(count)
    some.subscribe(*subscriptions())
    request = PercolateRequest(updates=tuple(postings(9)))
    whole = some.client.percolate(request, CALL_S)
    honest = StandingQueries.percolate
    sizes = []

    def narrow(self, updates, *, now_ms):
        result, epoch = honest(self, updates, now_ms=now_ms, reply_bytes=3_000)
        sizes.append((len(updates), len(result.found)))
        return result, epoch

    monkeypatch.setattr(StandingQueries, "percolate", narrow)
    assert some.client.percolate(request, CALL_S).found == whole.found
    assert any(answered < asked for asked, answered in sizes)


def test_too_many_updates_at_once_are_refused(cluster):
    some = cluster(1)
    request = PercolateRequest(updates=tuple(postings(percolation.MAX_UPDATES + 1)))
    with pytest.raises(CallError, match="at most 256") as error:
        some.client.percolate(request, CALL_S)
    assert error.value.code is grpc.StatusCode.INVALID_ARGUMENT and not error.value.retryable


def test_what_cannot_be_compared_is_said(cluster):
    some = cluster(1)
    some.subscribe(standing("s", vector=ASKED, threshold=-9.0), standing("all"))
    strange = [upsert("p", vector=vector([1.0], space="other")), upsert("q", vector=vector([float("nan")] * 6))]
    reply = some.client.percolate(PercolateRequest(updates=tuple(strange)), CALL_S)
    assert [[m.subscription_id for m in one.matches] for one in reply.found] == [["all"], ["all"]]
    assert set(reply.degraded) == {percolation.OTHER_SPACE, percolation.NO_VECTOR}


def test_a_client_needs_an_address():
    with pytest.raises(ValueError, match="at least one"):
        RetrievalClient([])
    with pytest.raises(ValueError, match="at least one"):
        AsyncRetrievalClient([])
    assert shard_addresses(RetrievalSettings(listen="h:1")) == ("h:1",)
    assert shard_addresses(RetrievalSettings(shards=("a:1", "b:2"))) == ("a:1", "b:2")
    assert shard_addresses(RetrievalSettings(shards=("a:1 | c:1", "b:2"))) == ("a:1|c:1", "b:2")
    for wrong in ("a:1|", "a:1|b", "a:1|a:1"):
        with pytest.raises(ValueError, match="expected"):
            RetrievalSettings(shards=(wrong,))


@pytest.fixture
def models(free_port):
    address = f"127.0.0.1:{free_port()}"
    listener = grpc_avro.serve(
        address,
        {
            Models.ENRICH: lambda r, _: EnrichPostingsReply(
                enrichments=tuple(Enrichment(summary=posting.title) for posting in r.postings)
            ),
            Models.ANALYZE: lambda r, _: AnalyzeQueriesReply(analyses=(QueryAnalysis(vector=ASKED),) * len(r.texts)),
            Models.STATUS: lambda r, _: RoleStatus(role="models", ready=True, numbers={}, texts={}),
        },
    )
    yield address
    listener.stop(0).wait()


ENRICH = EnrichPostingsRequest(postings=(PostingText(title="Nurse", description="Cares."),))


def test_models_client(models):
    client = ModelsClient(models)
    assert client.enrich(ENRICH, CALL_S).enrichments[0].summary == "Nurse"
    assert client.analyze(AnalyzeQueriesRequest(texts=("a", "b")), CALL_S).analyses[1].vector == ASKED
    assert client.status(CALL_S).ready
    client.close()


def test_async_models_client(models):
    async def calls():
        client = AsyncModelsClient(models)
        enriched, analyzed = await asyncio.gather(
            client.enrich(ENRICH, CALL_S), client.analyze(AnalyzeQueriesRequest(texts=("a",)), CALL_S)
        )
        status = await client.status(CALL_S)
        await client.close()
        return enriched, analyzed, status

    enriched, analyzed, status = asyncio.run(calls())
    assert enriched.enrichments[0].summary == "Nurse"
    assert len(analyzed.analyses) == 1 and status.ready


def test_models_that_are_not_there_are_a_retryable_error(free_port):
    client = ModelsClient(f"127.0.0.1:{free_port()}")
    with pytest.raises(CallError) as error:
        client.status(1.0)
    assert error.value.retryable
    client.close()
