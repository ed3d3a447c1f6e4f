"""One backend over HTTP: connections kept, answers bounded, every failure typed. Belongs to one event loop.

Time is bounded by the caller (asyncio.timeout), which also ends an answer that comes drop by drop: the client's own
timeouts are a read's each, so only the one of connecting is used.
"""

from __future__ import annotations

import json
from typing import Any

import httpx2

from penstock.ranker.backends.remote.errors import BadAnswer, RemoteAway, RemoteRefused
from penstock.ranker.backends.remote.forms import shown
from penstock.ranker.backends.remote.options import RemoteOptions

MAX_ANSWER_BYTES = 8 << 20
KEEP_S = 4.0  # an idle connection; uvicorn, which serves most of these, closes its end after 5


class Link:
    """Make, use and close it in one event loop."""

    def __init__(self, options: RemoteOptions) -> None:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "penstock"}
        if options.api_key is not None:
            headers["Authorization"] = f"Bearer {options.api_key.get_secret_value()}"
        self._url = options.url.rstrip("/")
        self._client = httpx2.AsyncClient(
            headers=headers,
            timeout=httpx2.Timeout(None, connect=options.connect_s),
            limits=httpx2.Limits(
                max_connections=options.connections,
                max_keepalive_connections=options.connections,
                keepalive_expiry=KEEP_S,
            ),
        )

    async def get(self, path: str) -> object:
        """The answer's JSON. Raises RemoteAway, RemoteRefused, BadAnswer."""
        return await self._ask("GET", path, None)

    async def post(self, path: str, body: dict[str, Any]) -> object:
        """The answer's JSON. Raises RemoteAway, RemoteRefused, BadAnswer."""
        return await self._ask("POST", path, json.dumps(body, ensure_ascii=False).encode("utf-8", "replace"))

    async def close(self) -> None:
        await self._client.aclose()

    async def _ask(self, method: str, path: str, content: bytes | None) -> object:
        url = self._url + path
        try:
            async with self._client.stream(method, url, content=content) as response:
                answer = await _read(response, url)
                status = response.status_code
        except httpx2.DecodingError as error:
            raise BadAnswer(f"{url} answered what cannot be decoded: {error}") from error
        except httpx2.RequestError as error:
            raise RemoteAway(f"{url}: {type(error).__name__}: {str(error) or 'the connection broke'}") from error
        if status >= 500:
            raise RemoteAway(f"{url} answered {status}: {_said(answer)}")
        if status >= 400:
            raise RemoteRefused(status, f"{url} refused with {status}: {_said(answer)}")
        if status != 200:
            raise RemoteRefused(status, f"{url} answered {status}: expected 200; redirects are not followed")
        try:
            return json.loads(answer)
        except (ValueError, RecursionError) as error:
            raise BadAnswer(f"{url} answered 200 with what is not JSON: {_said(answer)}") from error


async def _read(response: httpx2.Response, url: str) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in response.aiter_bytes():
        parts.append(part)
        size += len(part)
        if size > MAX_ANSWER_BYTES:
            raise BadAnswer(f"{url} answered more than {MAX_ANSWER_BYTES} bytes: ask for less (max_batch)")
    return b"".join(parts)


def _said(answer: bytes) -> str:
    return shown(answer[:1_000].decode("utf-8", "replace"))
