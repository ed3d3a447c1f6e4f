"""Streams of rank requests through the whole role, beside callers with one request each."""

from collections import Counter

import grpc
import pytest
from answering import answered
from open_feed import Feed
from ranker_stack import Stack, ask, status

from penstock.ranker.rank_streams import MAX_STREAMS
from penstock.schemas import grpc_avro
from penstock.schemas.events import Page
from penstock.schemas.grpc_avro import CallError
from penstock.schemas.rpc import Ranker, StatusRequest


def hold(stack):
    """From now on nobody's words are read until `hold` is set; `entered` counts those who ask."""
    stack.hold.clear()
    while stack.entered.acquire(blocking=False):
        pass


def test_results_come_as_they_are_done_and_are_those_of_single_calls(redis_url, free_port, until):
    with Stack(redis_url, free_port, held="slow nurse") as stack:
        until(lambda: status(stack))
        stack.hold.clear()
        sent = [ask("slow", "slow nurse"), ask("invalid", page=Page(size=0)), ask("late", deadline=5)]
        sent += [ask(f"r{number}") for number in range(60)]
        results = stack.client.rank_stream(sent, 30)
        first = {one.request_id: one for one in (next(results) for _ in range(62))}
        stack.hold.set()
        [slow] = results
        assert slow.request_id == "slow" and slow.error is None
        assert len(first) == 62
        assert "page.size: got 0" in first.pop("invalid").error
        assert "deadline passed before ranking began" in first.pop("late").error
        single = stack.client.rank(ask("single"), 10)
        assert all(one.items == single.items and one.error is None for one in first.values())
        assert status(stack).numbers["served_total"] == 62


def test_a_tiny_queue_is_waited_for_and_refuses_nothing(redis_url, free_port, until):
    with Stack(redis_url, free_port, workers=1, max_queue=1) as stack:
        until(lambda: status(stack))
        streams = [stack.client.rank_stream([ask(f"r{number}") for number in range(20)], 60) for _ in range(3)]
        for results in streams:
            read = list(results)
            assert Counter(one.request_id for one in read) == Counter(f"r{number}" for number in range(20))
            assert all(one.error is None for one in read)
        told = status(stack).numbers
        assert (told["served_total"], told["refused_total"]) == (60, 0)


def test_a_caller_that_leaves_midway_takes_its_requests_along(redis_url, free_port, until):
    with Stack(redis_url, free_port, workers=1) as stack:
        until(lambda: status(stack))
        results = stack.client.rank_stream(Feed(*(ask(f"r{number}") for number in range(30))), None)
        assert next(results).error is None
        assert all(next(results).error is None for _ in range(29))
        hold(stack)
        held = stack.client.rank_stream(Feed(*(ask(f"s{number}", f"nurse {number}") for number in range(8))), None)
        assert stack.entered.acquire(timeout=20)
        until(lambda: status(stack).numbers["queue_depth"] == 6)  # the lane of the first is stuck, and given on
        held.close()
        until(lambda: status(stack).numbers["left_total"] == 6)
        stack.hold.set()
        until(lambda: status(stack).numbers["left_total"] == 8)  # those begun, at their next stage
        assert stack.client.rank(ask(), 10).error is None
        assert status(stack).numbers["served_total"] == 31


def test_a_stopping_role_answers_what_waits_and_then_ends_its_streams(redis_url, free_port, until):
    with Stack(redis_url, free_port, workers=1) as stack:
        until(lambda: status(stack))
        hold(stack)
        results = stack.client.rank_stream(Feed(*(ask(f"r{number}", f"nurse {number}") for number in range(5))), None)
        assert stack.entered.acquire(timeout=20)
        until(lambda: status(stack).numbers["queue_depth"] == 3)
        idle = stack.client.rank_stream(Feed(ask("invalid", page=Page(size=0))), None)
        assert "page.size" in next(idle).error
        stack.stop.set()
        with pytest.raises(CallError, match="the ranker is stopping"):
            next(idle)
        stack.hold.set()
        assert Counter(next(results).request_id for _ in range(5)) == Counter(f"r{number}" for number in range(5))
        with pytest.raises(CallError, match="the ranker is stopping") as caught:
            next(results)
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE
        stack.thread.join(20)
        assert not stack.thread.is_alive()


def test_a_stream_too_many_is_refused_and_single_callers_are_not(redis_url, free_port, until):
    with Stack(redis_url, free_port, workers=1, max_queue=1) as stack:
        until(lambda: status(stack))
        feeds = [Feed(ask(f"r{number}")) for number in range(MAX_STREAMS)]
        streams = [stack.client.rank_stream(feed, None) for feed in feeds]
        for results in streams:
            assert next(results).error is None
        with pytest.raises(CallError, match=f"{MAX_STREAMS} streams are open, at most {MAX_STREAMS} may be") as caught:
            next(stack.client.rank_stream([ask()], None))
        assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        hold(stack)
        channel = grpc_avro.Client(stack.settings.ranker.listen)
        answered(lambda: channel.call(Ranker.STATUS, StatusRequest(), 5))
        single = [channel.start(Ranker.RANK, ask("busy"), 20)]
        assert stack.entered.acquire(timeout=20)
        single.append(channel.start(Ranker.RANK, ask("waits"), 20))
        until(lambda: status(stack).numbers["queue_depth"] == 1)
        stack.hold.set()
        assert [call.result().request_id for call in single] == ["busy", "waits"]
        streams[0].close()
        feeds[1].put(ask("still there"))
        assert next(streams[1]).request_id == "still there"
        until(lambda: _answered(stack))
        for results in streams:
            results.close()
        channel.close()


def _answered(stack):
    try:
        return next(stack.client.rank_stream([ask()], 10)).error is None
    except CallError:
        return False
