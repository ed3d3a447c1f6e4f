"""Streams of rank requests over real gRPC into a real desk; only the ranking itself is the test's own.

Through the whole role: test_rank_streams_of_the_role.py.
"""

import asyncio
import itertools
import threading
import time
from collections import Counter

import grpc
import pytest
from answering import STATUS, answered
from desk import make_desk
from open_feed import Feed
from refusing import Refusing

from penstock.ranker import rank_streams
from penstock.ranker.calls import rank_handler
from penstock.ranker.client import AsyncRankerClient, RankerClient
from penstock.ranker.errors import RankFailed
from penstock.ranker.rank_streams import RankStreams
from penstock.ranker.shaping.work import Why
from penstock.schemas import grpc_avro
from penstock.schemas.errors import InvalidRecord
from penstock.schemas.events import RankClass, RankQuery, RankRequest, RankResult
from penstock.schemas.grpc_avro import CallError
from penstock.schemas.rpc import Ranker, StatusRequest
from penstock.schemas.wire import codec

SOON_MS = 15_000


def now_ms():
    return time.time_ns() // 1_000_000


def request(name, in_ms=SOON_MS, **changes):
    return RankRequest(
        request_id=str(name), deadline=now_ms() + in_ms, query=RankQuery(text=f"nurse {name}"), **changes
    )


def names(results):
    return [one.request_id for one in results]


class Desk:
    """A desk behind a listener. It ranks at once, or, of the `held`, when `open` is set."""

    def __init__(self, address, *, capacity=64, workers=2, held=lambda name: False):
        self.address, self.held = address, held
        self.entered, self.open = threading.Semaphore(0), threading.Event()
        self.deadlines_ms = []
        self.most_inside = 0  # requests, of one worker, that waited or were ranked when one was done
        self.service = make_desk(self._rank, workers=workers, places=capacity, now_ms=now_ms, around=self._around)
        self.streams = RankStreams(self.service, self._check, capacity, now_ms)
        handlers = {
            Ranker.RANK: rank_handler(self.service, self._check, now_ms),
            Ranker.RANK_STREAM: self.streams.rank,
            **STATUS,
        }
        self.listener = grpc_avro.serve(address, handlers, workers=64)
        self.service.start()
        self.client = RankerClient(address)
        answered(lambda: self.client.status(5))

    def _around(self, shaper):
        self.door = Refusing(shaper)
        return self.door

    def _check(self, asked):
        if asked.request_id == "invalid":
            raise InvalidRecord("page.size", 0, "1 to 1000")
        if asked.request_id == "bug":
            raise ZeroDivisionError("a bug in a check")

    def _rank(self, job, turn):
        self.deadlines_ms.append(job.deadline_ms)
        self.entered.release()
        assert not self.held(job.request.request_id) or self.open.wait(20)
        self.most_inside = max(self.most_inside, self.service.depth + 1)
        if job.request.request_id == "fails":
            raise RankFailed("score", ValueError("odd"))
        return RankResult(
            request_id=job.request.request_id, tenant=job.request.tenant, timings={}, echo=job.request.echo
        )

    def begins(self, times=1):
        """Waits until that many more requests have been begun."""
        for _ in range(times):
            assert self.entered.acquire(timeout=20)

    def close(self):
        self.open.set()
        self.streams.close()
        self.client.close()
        self.listener.stop(1).wait(20)
        self.service.close(20)


@pytest.fixture
def desk(free_port, until):
    """Makes desks, and closes them in the end: then nobody reads any more."""
    opened = []

    def make(**how):
        opened.append(Desk(f"127.0.0.1:{free_port()}", **how))
        return opened[-1]

    yield make
    for one in opened:
        one.close()
    until(lambda: not any(thread.name == "rank-stream" for thread in threading.enumerate()))


def everything(name):
    return True


# --- answers -------------------------------------------------------------------------------------------------------


def test_each_request_has_one_result_and_a_slow_one_delays_no_other(desk):
    desk = desk(held=lambda name: name == "slow")
    results = desk.client.rank_stream((request(name) for name in ["slow", *range(200)]), 20)
    first = [next(results).request_id for _ in range(200)]
    assert Counter(first) == Counter(str(number) for number in range(200))
    desk.open.set()
    assert names(results) == ["slow"]
    assert desk.service.counts() == {"served": 201, "failed": 0, "expired": 0, "refused": 0, "left": 0}


def test_what_fails_is_answered_with_its_error_and_the_others_go_on(desk):
    desk = desk()
    asked = ["a", "invalid", "fails", "late", "b"]
    sent = [request(name, in_ms=-5 if name == "late" else SOON_MS, tenant="t", echo=b"e") for name in asked]
    results = {one.request_id: one for one in desk.client.rank_stream(sent, 20)}
    assert sorted(results) == sorted(asked)
    assert {(one.tenant, one.echo) for one in results.values()} == {("t", b"e")}
    assert [results[name].error for name in "ab"] == [None, None]
    assert results["invalid"].error == "InvalidRecord: page.size: got 0, expected 1 to 1000"
    assert results["fails"].error == "RankFailed: score: ValueError: odd"
    assert results["late"].error.startswith("DeadlinePassed: deadline passed before ")
    counts = desk.service.counts()
    assert (counts["served"], counts["failed"], counts["expired"]) == (2, 1, 1)


def test_a_request_waits_no_longer_than_its_stream(desk, until):
    desk = desk(workers=1, held=everything)
    sent = [request("busy"), request("waits", in_ms=3_600_000)]
    until_ms = now_ms() + 2_000  # enough to read both on a machine that has much else to do
    with pytest.raises(CallError) as caught:
        names(desk.client.rank_stream(sent, 2.0))
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    desk.begins()
    until(lambda: not desk.service.depth)  # the listener's clock may end the call a moment after the caller's
    desk.open.set()
    desk.service.close(20)
    counts = desk.service.counts()
    assert counts["left"] == 1 and counts["served"] == 1
    assert desk.deadlines_ms[0] < until_ms + SOON_MS / 2


def test_the_twin_on_a_loop_gives_the_same(desk, until):
    desk = desk(workers=1, held=lambda name: name in ("held", "c"))

    async def each(*wanted):
        for name in wanted:
            yield request(name)

    async def work():
        client = AsyncRankerClient(desk.address)
        results = [one async for one in client.rank_stream(each("a", "invalid", "b"), 20)]
        async with client.rank_stream(each("held", "c"), None):
            await asyncio.to_thread(desk.begins, 3)
            await asyncio.to_thread(until, lambda: desk.service.depth == 1)
        await asyncio.to_thread(until, lambda: desk.service.counts()["left"] == 1)
        await client.close()
        return results

    assert sorted(names(asyncio.run(work()))) == ["a", "b", "invalid"]


# --- how a stream ends ---------------------------------------------------------------------------------------------


def test_a_caller_that_leaves_takes_its_requests_along(desk, until):
    desk = desk(workers=1, held=lambda name: name != "done")
    results = desk.client.rank_stream(Feed(*map(request, ["done", "busy", *range(10)])), None)
    assert next(results).request_id == "done"
    desk.begins(2)
    until(lambda: desk.service.depth == 10)
    results.close()
    until(lambda: desk.service.counts()["left"] == 10)
    assert desk.service.depth == 0
    desk.open.set()
    assert desk.client.rank(request("next"), 10).request_id == "next"
    assert names(desk.client.rank_stream([request("again")], 10)) == ["again"]


def test_bytes_that_are_no_request_end_the_stream_and_withdraw_the_others(desk, until):
    desk = desk(workers=1, held=lambda name: name != "done")
    garbage = threading.Event()

    def bodies():
        for name in ["done", "busy", "waits"]:
            yield codec(RankRequest).encode(request(name))
        assert garbage.wait(20)
        yield b"garbage"

    with grpc.insecure_channel(desk.address) as channel:
        replies = channel.stream_stream(Ranker.RANK_STREAM.path)(bodies(), timeout=20)
        assert codec(RankResult).decode(next(replies)).request_id == "done"
        desk.begins(2)
        until(lambda: desk.service.depth == 1)
        garbage.set()
        with pytest.raises(grpc.RpcError, match="starts with 67 61 72 62"):
            next(replies)
        assert replies.code() is grpc.StatusCode.INVALID_ARGUMENT
    until(lambda: desk.service.counts()["left"] == 1)
    assert desk.service.depth == 0


def test_a_bug_in_taking_a_request_in_is_told_and_ends_only_that_stream(desk):
    desk = desk()
    with pytest.raises(CallError, match="a bug in a check") as caught:
        names(desk.client.rank_stream([request("bug")], 20))
    assert caught.value.code is grpc.StatusCode.UNKNOWN
    assert names(desk.client.rank_stream([request("a")], 20)) == ["a"]


def test_a_stop_answers_what_the_queue_holds_and_then_sends_the_caller_elsewhere(desk, until):
    desk = desk(workers=1, held=lambda name: name in "abc")
    feed = Feed(*map(request, "abc"))
    results, idle = desk.client.rank_stream(feed, None), desk.client.rank_stream(Feed(), None)
    desk.begins()
    until(lambda: desk.service.depth == 2)
    desk.streams.close()
    with pytest.raises(CallError, match="the ranker is stopping; ask another replica") as caught:
        next(idle)
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    feed.put(request("not read any more"))
    desk.open.set()
    assert {next(results).request_id for _ in range(3)} == set("abc")
    for ended in (results, desk.client.rank_stream([request("new")], None)):
        with pytest.raises(CallError, match="the ranker is stopping; ask another replica") as caught:
            next(ended)
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE


# --- how much it may take ------------------------------------------------------------------------------------------


def test_one_stream_has_at_most_a_quarter_of_the_queue_unanswered(desk, until):
    desk = desk(capacity=16, workers=1, held=everything)
    results = desk.client.rank_stream(map(request, range(100)), 30)
    desk.begins()
    until(lambda: desk.service.depth == 3)
    desk.open.set()
    assert Counter(names(results)) == Counter(str(number) for number in range(100))
    assert desk.most_inside == 4


def test_all_streams_together_leave_a_quarter_of_the_places_to_others(desk, until):
    desk = desk(capacity=8, workers=1, held=everything)
    asked = [[str(number) for number in range(first, first + 10)] for first in range(0, 50, 10)]
    streams = [desk.client.rank_stream(map(request, mine), 30) for mine in asked]
    desk.begins()
    until(lambda: desk.service.depth == 5)  # and one that has begun
    single = grpc_avro.Client(desk.address)
    answered(lambda: single.call(Ranker.STATUS, StatusRequest(), 5))
    others = [single.start(Ranker.RANK, request(f"single {number}"), 20) for number in range(2)]
    until(lambda: desk.service.depth == 7)
    assert desk.streams._taken_in == {True: 6}
    desk.open.set()
    assert [other.result().request_id for other in others] == ["single 0", "single 1"]
    for results, mine in zip(streams, asked, strict=True):
        assert sorted(names(results), key=int) == mine
    until(lambda: not desk.streams._taken_in.total())
    assert desk.service.counts()["refused"] == 0
    single.close()


def test_streams_of_digests_that_wait_stop_no_search_of_another_stream(desk, until):
    desk = desk(capacity=8, workers=1, held=everything)
    digests = [
        desk.client.rank_stream(
            [request(f"{stream}/{n}", in_ms=3_600_000, class_=RankClass.ALERT) for n in range(4)], 60
        )
        for stream in range(4)
    ]
    desk.begins()
    until(lambda: desk.service.depth == 5)  # and one that has begun: as many as all streams may have
    searches = desk.client.rank_stream([request("search")], 60)
    until(lambda: desk.service.depth == 6)
    assert desk.streams._taken_in == {False: 6, True: 1}
    desk.open.set()
    assert [(one.request_id, one.error) for one in searches] == [("search", None)]
    assert [len(names(results)) for results in digests] == [4] * 4


# --- what is refused -----------------------------------------------------------------------------------------------


def test_a_single_call_that_is_refused_is_told_when_to_come_back_and_whose_doing_it_is(desk):
    desk = desk()
    for why, whose in ((Why.TENANT, "tenant"), (Why.LATE, "load"), (Why.QUEUE, "load")):
        desk.door.after_s, desk.door.why = (lambda work: 1.25), why
        with pytest.raises(CallError, match=r"ask again in 1\.25 s") as caught:
            desk.client.rank(request("a"), 10)
        assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (caught.value.retry_after_s, caught.value.refused_for) == (1.25, whose)
    desk.door.after_s = lambda work: None
    assert desk.client.rank(request("a"), 10).request_id == "a"
    assert (desk.service.counts()["refused"], desk.service.counts()["served"]) == (3, 1)


def test_a_single_call_that_waits_when_the_ranker_stops_is_sent_elsewhere(desk, until):
    desk = desk(workers=1, held=everything)
    single = grpc_avro.Client(desk.address)
    busy = single.start(Ranker.RANK, request("busy"), 20)
    desk.begins()
    waits = single.start(Ranker.RANK, request("waits"), 20)
    until(lambda: desk.service.depth == 1)
    desk.service.close(0.01)
    with pytest.raises(grpc.RpcError, match="the ranker is stopping; ask another replica"):
        waits.result()
    assert waits.code() is grpc.StatusCode.UNAVAILABLE
    desk.open.set()
    assert busy.result().request_id == "busy"
    single.close()


def test_a_stream_offers_again_what_was_refused_and_no_sooner_than_it_was_told(desk):
    desk = desk()
    offers = []

    def twice(work):
        offers.append(time.monotonic())
        return 0.1 if len(offers) <= 2 else None

    desk.door.after_s = twice
    assert sorted(names(desk.client.rank_stream(map(request, "ab"), 20))) == ["a", "b"]
    assert [later - sooner >= 0.1 for sooner, later in itertools.pairwise(offers)] == [True, True, False]
    assert desk.service.counts() == {"served": 2, "failed": 0, "expired": 0, "refused": 0, "left": 0}


def test_one_that_is_done_makes_room_for_the_next_at_once(desk, until, monkeypatch):
    monkeypatch.setattr(rank_streams, "LONGEST_WAIT_S", 600.0)
    desk = desk(workers=1, held=everything)
    offers = itertools.count()
    desk.door.after_s = lambda work: None if next(offers) == 0 or desk.open.is_set() else 600.0
    results = desk.client.rank_stream(map(request, "abc"), 20)
    desk.begins()
    assert desk.door.refused.acquire(timeout=20)
    desk.open.set()
    assert sorted(names(results)) == ["a", "b", "c"]


def test_a_search_waits_for_room_until_its_deadline_and_an_alert_for_as_long_as_it_takes(desk):
    desk = desk()
    desk.door.after_s = lambda work: 0.05
    results = desk.client.rank_stream([request("late", in_ms=100), *map(request, "abc")], 20)
    late = next(results)
    assert "deadline passed before there was room in the queue: " in late.error
    assert late.request_id == "late"
    desk.door.after_s = lambda work: None
    assert sorted(names(results)) == ["a", "b", "c"]
    desk.door.after_s = lambda work: 0.05 if work.deadline_s > time.monotonic() else None
    results = desk.client.rank_stream([request("alert", in_ms=100, class_=RankClass.ALERT)], 20)
    assert [(one.request_id, one.error) for one in results] == [("alert", None)]
    counts = desk.service.counts()
    assert (counts["served"], counts["expired"], counts["refused"], counts["left"]) == (4, 1, 0, 0)


def test_whoever_leaves_while_waiting_for_room_is_counted_once(desk, until):
    desk = desk()
    desk.door.after_s = lambda work: 600.0
    with desk.client.rank_stream([request("a")], None):
        assert desk.door.refused.acquire(timeout=20)
    until(lambda: desk.service.counts()["left"] == 1)
    until(lambda: not desk.streams._open)


def test_a_stop_while_a_request_waits_for_room_leaves_it_to_another_ranker(desk):
    desk = desk()
    desk.door.after_s = lambda work: 600.0
    results = desk.client.rank_stream([request("a")], None)
    assert desk.door.refused.acquire(timeout=20)
    desk.streams.close()
    with pytest.raises(CallError, match="the ranker is stopping"):
        next(results)
    assert desk.service.counts()["refused"] == 1


def test_for_a_caller_that_does_not_read_little_more_is_ranked(desk):
    desk = desk(capacity=16, workers=1)
    sent = (request(number, echo=bytes(100_000)) for number in range(400))
    results = desk.client.rank_stream(sent, None)
    next(results)
    for _ in range(400):  # with later deadlines: each has its turn when nothing of the stream waits
        desk.client.rank(request("single", in_ms=2 * SOON_MS), 10)
    assert desk.service.counts()["served"] - 400 < 200  # the stream's share, and what HTTP/2 holds on the way
    results.close()
