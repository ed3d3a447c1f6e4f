"""The ranker's way to Redis: short timeouts, no second try, and after a failure no attempt for a moment.

Redis makes ranking cheaper, never possible: whoever reads through here must know what to do on RedisAway. The gate
keeps a dead Redis from costing every request a timeout. What is not an answer to the question counts as a failure.
Thread-safe; owns its connection pool.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from penstock.infra.settings import RedisSettings
from penstock.ranker.errors import RedisAway

T = TypeVar("T")

TIMEOUT_S = 0.25  # connect and answer; redis.client settings may say otherwise
RETRY_AFTER_S = 0.5  # after a failure, this long nobody asks


class Gate:
    """Whether to ask at all. Pure under a clock in seconds: closed for `retry_after_s` after each failure."""

    def __init__(self, retry_after_s: float = RETRY_AFTER_S) -> None:
        self._retry_after_s = retry_after_s
        self._closed_until = float("-inf")
        self.reason = ""

    def is_open(self, now_s: float) -> bool:
        return now_s >= self._closed_until

    def failed(self, now_s: float, reason: str) -> None:
        self._closed_until = now_s + self._retry_after_s
        self.reason = reason

    def succeeded(self) -> None:
        self._closed_until = float("-inf")
        self.reason = ""


def connect(settings: RedisSettings) -> redis.Redis:
    """A client as settings say, answers as bytes. Connects when first used.

    It tries nothing twice, whatever its settings or its release's defaults say: the gate decides when to ask again, and
    each try would cost a timeout.
    """
    return redis.Redis.from_url(settings.url, **{**settings.options(TIMEOUT_S), "retry": Retry(NoBackoff(), 0)})


def read_values(client: Any, keys: Sequence[str]) -> list[bytes | None]:
    """What stands under each key, as a command for `RedisLink.run`. Raises redis.InvalidResponse for another answer."""
    found = client.mget(keys)
    if not isinstance(found, list) or len(found) != len(keys):
        raise redis.InvalidResponse(f"asked for {len(keys)} values, got {found!r:.80}")
    if not all(value is None or isinstance(value, bytes) for value in found):
        raise redis.InvalidResponse("asked for values, got something else among them")
    return found


class RedisLink:
    """Runs commands behind the gate. `clock` gives monotonic seconds."""

    def __init__(self, client: redis.Redis, clock: Callable[[], float]) -> None:
        self._client = client
        self._clock = clock
        self._lock = threading.Lock()
        self._gate = Gate()

    def run(self, command: Callable[[Any], T], *, insist: bool = False) -> T:
        """What `command` returns, given the client (a redis.Redis, whose own types mix in the asynchronous one's).

        Raises RedisAway; `insist` asks even when the gate is closed (background work). A lost race (redis.WatchError)
        is not an outage and passes through.
        """
        with self._lock:
            if not insist and not self._gate.is_open(self._clock()):
                raise RedisAway(self._gate.reason)
        try:
            value = command(self._client)
        except (redis.WatchError, UnicodeError):
            raise
        except (redis.RedisError, OSError, ValueError) as error:  # ValueError: bytes that are not the protocol's
            with self._lock:
                self._gate.failed(self._clock(), f"{type(error).__name__}: {error}")
                raise RedisAway(self._gate.reason) from error
        with self._lock:
            self._gate.succeeded()
        return value

    @property
    def up(self) -> bool:
        """Whether the last command succeeded."""
        return not self._gate.reason

    def close(self) -> None:
        self._client.close()
