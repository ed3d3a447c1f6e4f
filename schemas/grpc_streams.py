"""The caller's end of a stream: its requests on their way out, and the replies as they come.

Requests are read by grpc, on a thread or task of its own and no faster than the server takes them. They are encoded
here and not by grpc, which would say of one that is no record only that it could not be sent.
"""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from typing import Any, Generic, Self, TypeVar

import grpc

R = TypeVar("R")

Encode = Callable[[Any], bytes]
Failed = Callable[[Any], Exception]  # what to raise for a grpc.RpcError


class Sent:
    """The requests of one stream, encoded. `error`: what their source raised, or why one is no record."""

    def __init__(self, encode: Encode, requests: Iterable[Any]) -> None:
        self._requests = iter(requests)
        self._encode = encode
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            return self._encode(next(self._requests))
        except StopIteration:
            raise
        except Exception as error:
            self.error = error
            raise  # grpc cancels the stream


class AsyncSent:
    """The same from a source that is read on a loop."""

    def __init__(self, encode: Encode, requests: AsyncIterable[Any]) -> None:
        self._requests = aiter(requests)
        self._encode = encode
        self.error: Exception | None = None

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            return self._encode(await anext(self._requests))
        except StopAsyncIteration:
            raise
        except Exception as error:
            self.error = error
            raise


class Replies(Generic[R]):
    """An iterator over the replies of one stream. Read it on one thread; any thread may close it.

    `close()`, or leaving the `with` block, before the end tells the server to drop what it has not done; no reply
    comes after it. Raises CallError when the stream breaks, and what the source of the requests raised if that
    broke it.
    """

    def __init__(self, call: Any, sent: Sent, failed: Failed) -> None:
        self._call = call
        self._sent = sent
        self._failed = failed
        self._closed = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> R:
        if self._closed:
            raise StopIteration
        try:
            reply: R = next(self._call)
        except grpc.RpcError as error:
            if self._closed:
                raise StopIteration from None
            if self._sent.error is not None:
                raise self._sent.error from None
            raise self._failed(error) from error
        return reply

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._closed = True
        self._call.cancel()


class AsyncReplies(Generic[R]):
    """The same on a loop, with `aclose()` and `async with`. A reader that is cancelled cancels the stream."""

    def __init__(self, call: Any, sent: AsyncSent, failed: Failed) -> None:
        self._call = call
        self._replies = aiter(call)
        self._sent = sent
        self._failed = failed
        self._closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> R:
        if self._closed:
            raise StopAsyncIteration
        try:
            reply: R = await anext(self._replies)
        except grpc.RpcError as error:
            raise self._failed(error) from error
        except CancelledError:  # the reader was cancelled, or the stream: by `aclose`, or by grpc for its source
            if self._closed:
                raise StopAsyncIteration from None
            if self._sent.error is None:
                raise
            raise self._sent.error from None
        return reply

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        self._closed = True
        self._call.cancel()
