"""Calls over a real socket: records both ways, and errors that keep their kind."""

import asyncio

import grpc
import pytest
from structlog.contextvars import bound_contextvars, get_contextvars

from penstock.schemas import grpc_avro, rpc
from penstock.schemas.errors import InvalidRecord
from penstock.schemas.events import Enrichment, PostingText


@pytest.fixture
def serving(free_port):
    servers = []

    def start(handlers):
        address = f"127.0.0.1:{free_port()}"
        servers.append(grpc_avro.serve(address, handlers))
        return address

    yield start
    for server in servers:
        server.stop(None).wait()


def _raise(error):
    def handler(request, context):
        raise error

    return handler


REQUEST = rpc.EnrichPostingsRequest(postings=(PostingText(title="Nurse", description="Cares."),))


def test_records_travel_both_ways(serving):
    address = serving(
        {
            rpc.Models.ENRICH: lambda request, context: rpc.EnrichPostingsReply(
                enrichments=tuple(Enrichment(summary=text.title) for text in request.postings)
            )
        }
    )
    client = grpc_avro.Client(address)
    assert client.call(rpc.Models.ENRICH, REQUEST, 5).enrichments == (Enrichment(summary="Nurse"),)
    assert client.start(rpc.Models.ENRICH, REQUEST, 5).result().enrichments[0].summary == "Nurse"
    client.close()

    async def once():
        peer = grpc_avro.AsyncClient(address)
        reply = await peer.call(rpc.Models.ENRICH, REQUEST, 5)
        await peer.close()
        return reply

    assert asyncio.run(once()).enrichments[0].summary == "Nurse"


@pytest.mark.parametrize(
    ("error", "code", "retryable"),
    [
        (InvalidRecord("k", -1, "at least 1"), grpc.StatusCode.INVALID_ARGUMENT, False),
        (grpc_avro.NotReady("warming up"), grpc.StatusCode.UNAVAILABLE, True),
        (grpc_avro.Refused("queue full: 5 of 5"), grpc.StatusCode.RESOURCE_EXHAUSTED, True),
        (TimeoutError("too late"), grpc.StatusCode.DEADLINE_EXCEEDED, True),
        (RuntimeError("a bug"), grpc.StatusCode.UNKNOWN, False),
    ],
)
def test_errors_keep_their_kind(serving, error, code, retryable):
    client = grpc_avro.Client(serving({rpc.Models.ENRICH: _raise(error)}))
    with pytest.raises(grpc_avro.CallError) as caught:
        client.call(rpc.Models.ENRICH, REQUEST, 5)
    assert (caught.value.code, caught.value.retryable) == (code, retryable)
    assert str(error) in str(caught.value)
    assert "Models.EnrichPostings" in str(caught.value)
    assert (caught.value.retry_after_s, caught.value.refused_for) == (None, None)
    client.close()


@pytest.mark.parametrize(
    ("refused", "after_s", "refused_for"),
    [
        (grpc_avro.Refused("full"), None, None),
        (grpc_avro.Refused("full", 1.2), 1.2, "load"),
        (grpc_avro.Refused("full", 0.0301, tenant=True), 0.031, "tenant"),
        (grpc_avro.Refused("full", 0.0), 0.001, "load"),
    ],
)
def test_a_refusal_says_when_to_come_back_and_whose_doing_it_is(serving, refused, after_s, refused_for):
    address = serving({rpc.Models.ENRICH: _raise(refused)})

    def told(error):
        return error.code, error.said, error.retry_after_s, error.refused_for

    expected = (grpc.StatusCode.RESOURCE_EXHAUSTED, "full", after_s, refused_for)
    client = grpc_avro.Client(address)
    with pytest.raises(grpc_avro.CallError) as caught:
        client.call(rpc.Models.ENRICH, REQUEST, 5)
    client.close()
    assert told(caught.value) == expected

    async def once():
        peer = grpc_avro.AsyncClient(address)
        try:
            with pytest.raises(grpc_avro.CallError) as caught:
                await peer.call(rpc.Models.ENRICH, REQUEST, 5)
        finally:
            await peer.close()
        return told(caught.value)

    assert asyncio.run(once()) == expected


def test_nobody_there_is_retryable_and_names_the_address(free_port):
    address = f"127.0.0.1:{free_port()}"
    client = grpc_avro.Client(address)
    with pytest.raises(grpc_avro.CallError, match=address) as caught:
        client.call(rpc.Models.ENRICH, REQUEST, 5)
    assert caught.value.retryable
    client.close()


def test_a_port_in_use_is_said_to_be(serving):
    address = serving({})
    with pytest.raises(grpc_avro.PortInUse, match=address):
        grpc_avro.serve(address, {})


def test_a_body_that_is_not_the_request_is_the_caller_s_mistake(serving):
    address = serving({rpc.Models.ENRICH: _raise(AssertionError("never reached"))})
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(rpc.Models.ENRICH.path)
        with pytest.raises(grpc.RpcError) as caught:
            call(b"garbage", timeout=5)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_the_callers_ids_are_in_the_log_lines_of_the_called(serving):
    seen = []

    def note(request, context):
        seen.append(dict(get_contextvars()))
        return rpc.EnrichPostingsReply(enrichments=())

    client = grpc_avro.Client(serving({rpc.Models.ENRICH: note}))
    with bound_contextvars(request_id="anfrage-ä", trace_id="0af7", other="stays here"):
        client.call(rpc.Models.ENRICH, REQUEST, 5)
    client.call(rpc.Models.ENRICH, REQUEST, 5)
    client.close()
    assert seen == [{"request_id": "anfrage-ä", "trace_id": "0af7"}, {}]
