"""Streams over a real socket: replies as they come, errors that keep their kind, and both ways of leaving."""

import asyncio
import contextlib
import itertools
import queue
import socket
import threading
import time

import grpc
import pytest
from answering import STATUS, answered, answered_on_a_loop
from open_feed import Feed
from structlog.contextvars import bound_contextvars, get_contextvars

from penstock.schemas import grpc_avro
from penstock.schemas.errors import InvalidRecord
from penstock.schemas.events import RankQuery, RankRequest, RankResult
from penstock.schemas.grpc_avro import CallError
from penstock.schemas.rpc import Ranker, StatusRequest
from penstock.schemas.wire import codec

STREAM = Ranker.RANK_STREAM


@pytest.fixture
def serving(free_port):
    """Serves one handler of the streaming method; gives its address."""
    servers = []

    def start(handler):
        address = f"127.0.0.1:{free_port()}"
        servers.append(grpc_avro.serve(address, {STREAM: handler, **STATUS}))
        return address

    yield start
    for server in servers:
        server.stop(None).wait()


@pytest.fixture
def dial(serving):
    clients = []

    def connect(handler):
        client = grpc_avro.Client(serving(handler))
        clients.append(client)
        answered(lambda: client.call(Ranker.STATUS, StatusRequest(), 5))
        return client

    yield connect
    for client in clients:
        client.close()


def request(name, **changes):
    return RankRequest(request_id=str(name), query=RankQuery(text="nurse"), deadline=1, **changes)


def result(name):
    return RankResult(request_id=str(name), timings={})


def echo(requests, context):
    for one in requests:
        yield result(one.request_id)


def names(replies):
    return [one.request_id for one in replies]


def test_records_travel_both_ways_and_a_reply_does_not_wait_for_the_last_request(dial):
    client, feed = dial(echo), Feed()
    assert names(client.stream(STREAM, map(request, range(300)), 20)) == [str(at) for at in range(300)]
    assert names(client.stream(STREAM, [], 20)) == []
    replies = client.stream(STREAM, feed, None)
    for name in "ab":
        feed.put(request(name))
        assert next(replies).request_id == name
    feed.put(None)
    assert names(replies) == [] and names(replies) == []


def test_the_server_may_end_a_stream_whose_requests_go_on(dial):
    def two(requests, context):
        for one in itertools.islice(requests, 2):
            yield result(one.request_id)

    endless = map(request, itertools.count())
    assert names(dial(two).stream(STREAM, endless, 20)) == ["0", "1"]


@pytest.mark.parametrize(
    ("error", "code", "retryable"),
    [
        (InvalidRecord("k", -1, "at least 1"), grpc.StatusCode.INVALID_ARGUMENT, False),
        (grpc_avro.NotReady("warming up"), grpc.StatusCode.UNAVAILABLE, True),
        (grpc_avro.Refused("5 streams of 5"), grpc.StatusCode.RESOURCE_EXHAUSTED, True),
        (TimeoutError("too late"), grpc.StatusCode.DEADLINE_EXCEEDED, True),
        (RuntimeError("a bug"), grpc.StatusCode.UNKNOWN, False),
    ],
)
def test_errors_keep_their_kind_and_come_after_the_replies_before_them(dial, error, code, retryable):
    def breaks(requests, context):
        yield result(next(requests).request_id)
        raise error

    client, feed = dial(breaks), Feed(request("a"))
    replies = client.stream(STREAM, feed, 20)
    assert next(replies).request_id == "a"
    with pytest.raises(CallError, match=r"Ranker\.RankStream at ") as caught:
        next(replies)
    feed.put(None)
    assert (caught.value.code, caught.value.retryable) == (code, retryable)
    assert str(error) in str(caught.value)


def test_a_refused_stream_says_when_to_come_back(dial):
    def refuses(requests, context):
        raise grpc_avro.Refused("64 streams of 64", 2.5, tenant=True)
        yield

    with pytest.raises(CallError) as caught:
        next(dial(refuses).stream(STREAM, [request("a")], 20))
    assert (caught.value.said, caught.value.retry_after_s, caught.value.refused_for) == (
        "64 streams of 64",
        2.5,
        "tenant",
    )


def test_nobody_there_is_retryable_and_names_the_address(free_port):
    address = f"127.0.0.1:{free_port()}"
    client = grpc_avro.Client(address)
    with pytest.raises(CallError, match=address) as caught:
        next(client.stream(STREAM, [request("a")], 20))
    assert caught.value.retryable
    client.close()


def test_what_is_no_request_ends_the_stream_as_the_callers_mistake(serving):
    bodies = [codec(RankRequest).encode(request("a")), b"garbage"]
    with grpc.insecure_channel(serving(echo)) as channel:
        replies = channel.stream_stream(STREAM.path)(iter(bodies), timeout=20)
        assert codec(RankResult).decode(next(replies)).request_id == "a"
        with pytest.raises(grpc.RpcError, match="67 61 72 62"):
            next(replies)
    assert replies.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_message_past_the_bound_is_refused_and_its_reader_told(serving):
    read = queue.SimpleQueue()

    def note(requests, context):
        try:
            for one in requests:
                read.put(one.request_id)
                yield result(one.request_id)
        except grpc.RpcError as error:
            read.put(type(error))
            raise

    large = codec(RankRequest).encode_unbounded(request("large", echo=bytes(grpc_avro.MAX_MESSAGE_BYTES)))
    with grpc.insecure_channel(serving(note), [("grpc.max_send_message_length", -1)]) as channel:
        bodies = iter([codec(RankRequest).encode(request("a")), large])
        replies = channel.stream_stream(STREAM.path)(bodies, timeout=60)
        assert codec(RankResult).decode(next(replies)).request_id == "a"
        with pytest.raises(grpc.RpcError, match="larger than max"):
            next(replies)
    assert replies.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert read.get(timeout=20) == "a"


def test_whoever_closes_a_stream_gets_no_more_of_it_and_the_server_hears_of_it(dial):
    left = threading.Event()

    def hold(requests, context):
        assert context.add_callback(left.set)
        yield result(next(requests).request_id)
        left.wait()

    client, feed = dial(hold), Feed(request("a"))
    with client.stream(STREAM, feed, None) as replies:
        assert next(replies).request_id == "a"
    assert left.wait(20)
    assert names(replies) == []
    feed.put(None)


def test_a_reader_that_waits_ends_when_another_thread_closes(dial):
    entered, left = threading.Event(), threading.Event()

    def hold(requests, context):
        context.add_callback(left.set)
        entered.set()
        left.wait()
        yield from ()

    replies, read = dial(hold).stream(STREAM, Feed(), None), []
    reader = threading.Thread(target=lambda: read.append(names(replies)))
    reader.start()
    assert entered.wait(20)
    replies.close()
    reader.join(20)
    assert read == [[]] and left.wait(20)


def test_the_streams_deadline_ends_it_on_both_sides(dial):
    left, told = threading.Event(), []

    def hold(requests, context):
        told.append(context.time_remaining())
        context.add_callback(left.set)
        left.wait()
        yield from ()

    began = time.monotonic()
    with pytest.raises(CallError) as caught:
        next(dial(hold).stream(STREAM, Feed(), 0.5))
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - began >= 0.49
    assert left.wait(20) and 0 < told[0] < 0.6


class Line:
    """Carries bytes to an address and back, until it is cut: from then on it swallows them in silence."""

    def __init__(self, address):
        self._door = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._door.getsockname()[1]}"
        self._far, self._ends, self._cut = address.rsplit(":", 1), [], threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        near = self._door.accept()[0]
        far = socket.create_connection((self._far[0], int(self._far[1])))
        self._ends = [near, far]
        for source, sink in ((near, far), (far, near)):
            threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    def _carry(self, source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                if not self._cut.is_set():
                    sink.sendall(data)

    def cut(self):
        self._cut.set()

    def close(self):
        for end in (self._door, *self._ends):
            end.close()


def test_a_caller_that_vanished_without_a_word_is_noticed(serving, monkeypatch):
    shortened = [(name, 1_000) for name, _ in grpc_avro._KEEPALIVE]
    monkeypatch.setattr(grpc_avro, "_KEEPALIVE", shortened)
    left = threading.Event()

    def hold(requests, context):
        context.add_callback(left.set)
        yield result(next(requests).request_id)
        left.wait()

    line = Line(serving(hold))
    client = grpc_avro.Client(line.address)
    answered(lambda: client.call(Ranker.STATUS, StatusRequest(), 5))
    replies = client.stream(STREAM, Feed(request("a")), None)
    assert next(replies).request_id == "a"
    line.cut()
    assert left.wait(20)
    replies.close()
    client.close()
    line.close()


class SourceBroke(Exception):
    pass


def broken_source():
    raise SourceBroke
    yield


def not_a_record():
    yield request("b", depth="many")


BROKEN = pytest.mark.parametrize(("source", "error"), [(broken_source, SourceBroke), (not_a_record, InvalidRecord)])


@BROKEN
def test_what_the_source_of_requests_raises_comes_out_of_the_replies(dial, source, error):
    answered, left = threading.Event(), threading.Event()

    def note(requests, context):
        context.add_callback(left.set)
        yield from echo(requests, context)

    def requests():
        yield request("a")
        assert answered.wait(20)
        yield from source()

    replies = dial(note).stream(STREAM, requests(), 20)
    assert next(replies).request_id == "a"
    answered.set()
    with pytest.raises(error):
        next(replies)
    assert left.wait(20)


def test_the_source_is_read_no_faster_than_the_server_takes(dial):
    go, sent = threading.Semaphore(0), 0

    def slow(requests, context):
        for one in requests:
            yield result(one.request_id)
            assert go.acquire(timeout=20)

    def large():
        nonlocal sent
        for sent in range(1, 301):  # 300 MB, if somebody took them all
            yield request(sent, echo=bytes(1_000_000))

    replies = dial(slow).stream(STREAM, large(), 60)
    for taken in range(1, 61):
        assert next(replies).request_id == str(taken)
        assert sent - taken < 40  # what fits HTTP/2's window, whatever it grows to, is far from all
        go.release()
    replies.close()
    go.release()


def test_the_callers_ids_are_in_the_log_lines_of_the_called(dial):
    seen = []

    def note(requests, context):
        for one in requests:
            seen.append(dict(get_contextvars()))
            yield result(one.request_id)

    client = dial(note)
    with bound_contextvars(request_id="anfrage-ä", other="stays here"):
        names(client.stream(STREAM, [request("a"), request("b")], 20))
    names(client.stream(STREAM, [request("c")], 20))
    assert seen == [{"request_id": "anfrage-ä"}, {"request_id": "anfrage-ä"}, {}]


# --- on a loop -----------------------------------------------------------------------------------------------------


async def each(requests):
    for one in requests:
        yield one


def on_a_loop(address, work):
    async def run():
        client = grpc_avro.AsyncClient(address)
        try:
            await answered_on_a_loop(lambda: client.call(Ranker.STATUS, StatusRequest(), 5))
            return await asyncio.wait_for(work(client), 30)
        finally:
            await client.close()

    return asyncio.run(run())


def test_on_a_loop_replies_come_as_they_are_made(serving):
    async def work(client):
        read = [one.request_id async for one in client.stream(STREAM, each(map(request, range(300))), 20)]
        feed = asyncio.Queue()

        async def fed():
            while (one := await feed.get()) is not None:
                yield one

        async with client.stream(STREAM, fed(), None) as replies:
            for name in "ab":
                await feed.put(request(name))
                assert (await anext(replies)).request_id == name
        assert [one async for one in replies] == []
        return read

    assert on_a_loop(serving(echo), work) == [str(at) for at in range(300)]


def test_on_a_loop_a_closed_stream_a_cancelled_reader_and_a_deadline_reach_the_server(serving):
    entered, left = queue.SimpleQueue(), queue.SimpleQueue()

    def hold(requests, context):
        gone = threading.Event()
        context.add_callback(gone.set)
        entered.put(True)
        gone.wait()
        left.put(True)
        yield from ()

    async def next_of(replies):
        return await anext(replies, "no more")

    async def work(client):
        closed = client.stream(STREAM, each([]), None)
        reader = asyncio.create_task(next_of(closed))
        await asyncio.to_thread(entered.get, timeout=20)
        await closed.aclose()
        assert await reader == "no more"
        await asyncio.to_thread(left.get, timeout=20)

        reader = asyncio.create_task(next_of(client.stream(STREAM, each([]), None)))
        await asyncio.to_thread(entered.get, timeout=20)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        await asyncio.to_thread(left.get, timeout=20)

        with pytest.raises(CallError) as caught:
            await next_of(client.stream(STREAM, each([]), 0.5))
        assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
        await asyncio.to_thread(left.get, timeout=20)

    on_a_loop(serving(hold), work)


@BROKEN
def test_on_a_loop_what_the_source_of_requests_raises_comes_out_of_the_replies(serving, source, error):
    async def work(client):
        with pytest.raises(error):
            async for _ in client.stream(STREAM, each(source()), 20):
                pass

    on_a_loop(serving(echo), work)
