"""gRPC with Avro bodies: a server made of `Method -> function`, and a client that calls a `Method` with a record.

The record codecs of `wire.py` are the (de)serialisers, so calls and topics share one set of schemas and no code is
generated. Errors keep their kind across the wire: what the caller got wrong is INVALID_ARGUMENT with the field in
its message, what the server cannot do now is UNAVAILABLE, and lateness is DEADLINE_EXCEEDED. What it refuses for the
load is RESOURCE_EXHAUSTED; where the server knows when there will be room, the trailing metadata say so
(`retry-after-ms`) and whether the caller's tenant or the load of all was the reason (`refused-for`: tenant | load).
The ids that the caller's log lines carry go along as metadata, and the server's lines about the call carry them too.

A streaming method's messages are bounded one by one, and neither side reads faster than it takes what it has read:
HTTP/2 holds the other side back. What is no record ends the stream, for whoever sends that cannot be understood.
"""

from __future__ import annotations

import functools
import math
from collections.abc import AsyncIterable, Callable, Generator, Iterable, Iterator, Mapping
from concurrent import futures
from contextlib import contextmanager
from typing import Any, Literal

import grpc
from structlog.contextvars import bound_contextvars, get_contextvars

from penstock.schemas.errors import WireError
from penstock.schemas.grpc_streams import AsyncReplies, AsyncSent, Replies, Sent
from penstock.schemas.rpc import Method
from penstock.schemas.wire import codec

MAX_MESSAGE_BYTES = 64 << 20
_OPTIONS = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),  # a port in use is an error, never a silent share
]

# Log fields that follow a call, by their key in its metadata; "-bin": ids may be any Unicode.
_CARRIED = {
    "penstock-request-id-bin": "request_id",
    "penstock-posting-id-bin": "posting_id",
    "penstock-tenant-bin": "tenant",
    "penstock-trace-id-bin": "trace_id",
}

_RETRY_AFTER, _REFUSED_FOR = "retry-after-ms", "refused-for"

# (request, context) -> reply; of a streaming method (iterator of requests, context) -> iterator of replies.
Handler = Callable[[Any, grpc.ServicerContext], Any]


class CallError(Exception):
    """A call that did not succeed. `retryable` says whether the same call may succeed later.

    `said` is the server's own message. `retry_after_s` and `refused_for` are None unless the server refused the call
    and said so.
    """

    def __init__(
        self,
        method: Method,
        address: str,
        code: grpc.StatusCode,
        message: str,
        *,
        retry_after_s: float | None = None,
        refused_for: Literal["tenant", "load"] | None = None,
    ) -> None:
        self.method = method
        self.code = code
        self.said = message
        self.retry_after_s = retry_after_s
        self.refused_for = refused_for
        self.retryable = code in (
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.DEADLINE_EXCEEDED,
            grpc.StatusCode.RESOURCE_EXHAUSTED,
        )
        super().__init__(f"{method.service}.{method.name} at {address}: {code.name.lower()}: {message}")


class NotReady(Exception):
    """Raised by a handler that cannot serve now; the caller sees UNAVAILABLE."""


class Refused(Exception):
    """Raised by a handler whose admission is full; the caller sees RESOURCE_EXHAUSTED.

    `retry_after_s`: when there will be room, where that is known. `tenant`: refused because of what the caller's own
    tenant asks, and not because of the load of all.
    """

    def __init__(self, message: str, retry_after_s: float | None = None, *, tenant: bool = False) -> None:
        self.retry_after_s = retry_after_s
        self.tenant = tenant
        super().__init__(message)


class PortInUse(Exception):
    """The listener's address is taken."""


def serve(listen: str, handlers: Mapping[Method, Handler], *, workers: int = 8) -> grpc.Server:
    """A started server on `listen` (host:port). Raises PortInUse. Stop it with `.stop(grace_seconds)`."""
    threads = futures.ThreadPoolExecutor(workers, thread_name_prefix="grpc")
    server = grpc.server(threads, options=[*_OPTIONS, *_KEEPALIVE])
    by_service: dict[str, dict[str, grpc.RpcMethodHandler]] = {}
    for method, handler in handlers.items():
        by_service.setdefault(f"penstock.{method.service}", {})[method.name] = _served(method, handler)
    for service, methods in by_service.items():
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))
    try:
        bound = server.add_insecure_port(listen)
    except RuntimeError as error:
        raise PortInUse(f"cannot listen on {listen}: {error}") from error
    if bound == 0:
        raise PortInUse(f"cannot listen on {listen}: the port is in use; choose another or stop what holds it")
    server.start()
    return server


def _served(method: Method, handler: Handler) -> grpc.RpcMethodHandler:
    decode, encode = _decode(method.request), _encode(method.reply)

    @functools.wraps(handler)
    def call(body: bytes, context: grpc.ServicerContext) -> Any:
        with _guarded(context):
            return handler(decode(body), context)

    @functools.wraps(handler)
    def stream(bodies: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[Any]:
        with _guarded(context):
            yield from handler(map(decode, bodies), context)

    if method.streaming:
        return grpc.stream_stream_rpc_method_handler(stream, response_serializer=encode)
    return grpc.unary_unary_rpc_method_handler(call, response_serializer=encode)


@contextmanager
def _guarded(context: grpc.ServicerContext) -> Generator[None]:
    """Within it, log lines carry the caller's ids, and what is raised reaches the caller as its kind."""
    try:
        with bound_contextvars(**_brought(context)):
            yield
    except WireError as error:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
    except NotReady as error:
        context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
    except Refused as error:
        if error.retry_after_s is not None:
            context.set_trailing_metadata(_refusal(error.retry_after_s, error.tenant))
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
    except TimeoutError as error:
        context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, str(error))


def _refusal(retry_after_s: float, tenant: bool) -> tuple[tuple[str, str], ...]:
    """A refusal as trailing metadata; milliseconds rounded up, at least one."""
    after_ms = max(1, math.ceil(1000 * retry_after_s))
    return (_RETRY_AFTER, str(after_ms)), (_REFUSED_FOR, "tenant" if tenant else "load")


def _carried() -> list[tuple[str, bytes]] | None:
    """The caller's ids as metadata."""
    bound = get_contextvars()
    return [(key, str(bound[name]).encode()) for key, name in _CARRIED.items() if name in bound] if bound else None


def _brought(context: grpc.ServicerContext) -> dict[str, str]:
    """The caller's ids, of its metadata."""
    return {
        _CARRIED[key]: value.decode(errors="replace")
        for key, value in context.invocation_metadata() or ()
        if key in _CARRIED and isinstance(value, bytes)
    }


def _encode(record: type) -> Callable[[Any], bytes]:
    return codec(record).encode_unbounded


def _decode(record: type) -> Callable[[bytes], Any]:
    decode: Callable[[bytes], Any] = codec(record).decode_unbounded
    return decode


class Client:
    """Calls one address. Safe to share between threads; `close()` when done.

    The channel reconnects by itself within a second of the server's return.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._channel = grpc.insecure_channel(address, options=[*_OPTIONS, *_RECONNECT])
        self._stubs: dict[Method, Any] = {}

    def call(self, method: Method, request: Any, timeout: float) -> Any:
        """The reply record. `timeout` in seconds. Raises CallError."""
        try:
            return self._stub(method)(request, timeout=timeout, metadata=_carried())
        except grpc.RpcError as error:
            raise call_error(method, self.address, error) from error

    def start(self, method: Method, request: Any, timeout: float) -> Any:
        """The same, as a grpc future (`.result()` raises grpc.RpcError)."""
        return self._stub(method).future(request, timeout=timeout, metadata=_carried())

    def stream(self, method: Method, requests: Iterable[Any], timeout: float | None) -> Replies[Any]:
        """The replies to `requests`, which a thread of its own reads no faster than the server takes them.

        `timeout` in seconds for the whole stream; None: until one side ends it.
        """
        sent = Sent(_encode(method.request), requests)
        call = self._stub(method)(sent, timeout=timeout, metadata=_carried())
        return Replies(call, sent, functools.partial(call_error, method, self.address))

    def _stub(self, method: Method) -> Any:
        stub = self._stubs.get(method)
        if stub is None:
            stub = self._stubs[method] = _stub(self._channel, method)
        return stub

    def close(self) -> None:
        self._channel.close()


class AsyncClient:
    """The same on an asyncio loop (Flink's AsyncFunction runs one). Make it on the loop that will use it."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._channel = grpc.aio.insecure_channel(address, options=[*_OPTIONS, *_RECONNECT])
        self._stubs: dict[Method, Any] = {}

    async def call(self, method: Method, request: Any, timeout: float) -> Any:
        """The reply record. `timeout` in seconds. Raises CallError."""
        try:
            return await self._stub(method)(request, timeout=timeout, metadata=_carried())
        except grpc.aio.AioRpcError as error:
            raise call_error(method, self.address, error) from error

    def stream(self, method: Method, requests: AsyncIterable[Any], timeout: float | None) -> AsyncReplies[Any]:
        """The replies to `requests`, which a task of its own reads. Otherwise as `Client.stream`."""
        sent = AsyncSent(_encode(method.request), requests)
        call = self._stub(method)(sent, timeout=timeout, metadata=_carried())
        return AsyncReplies(call, sent, functools.partial(call_error, method, self.address))

    def _stub(self, method: Method) -> Any:
        stub = self._stubs.get(method)
        if stub is None:
            stub = self._stubs[method] = _stub(self._channel, method)
        return stub

    async def close(self) -> None:
        await self._channel.close()


def call_error(method: Method, address: str, error: Any) -> CallError:
    """What a grpc.RpcError says."""
    trailing = dict(iter(error.trailing_metadata() or ()))  # grpc.aio's is a mapping that iterates over pairs
    after_ms = trailing.get(_RETRY_AFTER)
    if not (isinstance(after_ms, str) and after_ms.isdecimal()):
        return CallError(method, address, error.code(), error.details() or "")
    return CallError(
        method,
        address,
        error.code(),
        error.details() or "",
        retry_after_s=int(after_ms) / 1000,
        refused_for="tenant" if trailing.get(_REFUSED_FOR) == "tenant" else "load",
    )


def _stub(channel: Any, method: Method) -> Any:
    if method.streaming:
        return channel.stream_stream(method.path, response_deserializer=_decode(method.reply))
    return channel.unary_unary(
        method.path, request_serializer=_encode(method.request), response_deserializer=_decode(method.reply)
    )


_RECONNECT = [
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2_000),  # despite its name: what a connection may take to be made
    ("grpc.max_reconnect_backoff_ms", 1000),
]
# A caller that vanished without a word is noticed within 40 s: an idle stream would hold its place for hours.
_KEEPALIVE = [("grpc.keepalive_time_ms", 30_000), ("grpc.http2.ping_timeout_ms", 10_000)]
