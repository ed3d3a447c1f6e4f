"""How many alerts a person, and a subscription, got today: the daily caps, counted in Redis.

Sets of alert ids by local day, read and written by one script in one round trip, so that a replay neither doubles nor
substitutes: an id that is in a set is let through again, whatever the order; others only while there is room.
A day's sets live two days more, and count for the day after too, for a replay that crosses midnight.

Where it stands: life-of-an-alert.md, step 8.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import redis

from penstock.infra.settings import RedisSettings
from penstock.jobs.operators.identity import content_id

KEPT_S = 2 * 86_400
TIMEOUT_S = 1.0  # connect and answer; redis.client settings may say otherwise
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0

# KEYS: the person's set of today and of yesterday, then the same two of each capped subscription.
# ARGV: alert id, seconds to live, how many matches have no cap, the person's cap, then each subscription's.
# Returns {1 when the person has room, 1 or 0 for each capped subscription}; only what is sent is counted.
SCRIPT = """
local id, ttl = ARGV[1], ARGV[2]
local function room(at, cap)
  if redis.call('SISMEMBER', KEYS[at], id) == 1 then return 1 end
  if redis.call('SISMEMBER', KEYS[at + 1], id) == 1 then return 1 end
  if redis.call('SCARD', KEYS[at]) < tonumber(cap) then return 1 end
  return 0
end
local function count(at)
  if redis.call('SISMEMBER', KEYS[at + 1], id) == 0 and redis.call('SADD', KEYS[at], id) == 1 then
    redis.call('EXPIRE', KEYS[at], ttl)
  end
end
local out, open = {room(1, ARGV[4])}, tonumber(ARGV[3])
for n = 1, #KEYS / 2 - 1 do
  out[n + 1] = room(2 * n + 1, ARGV[4 + n])
  open = open + out[n + 1]
end
if out[1] == 1 and open > 0 then
  count(1)
  for n = 1, #KEYS / 2 - 1 do
    if out[n + 1] == 1 then count(2 * n + 1) end
  end
end
return out
"""


@dataclass(frozen=True, slots=True)
class Capped:
    """A subscription with a cap. Days are ISO dates, local to it."""

    subscription_id: str
    cap: int
    today: str
    yesterday: str


@dataclass(frozen=True, slots=True)
class Claim:
    """The wish to send one alert today."""

    tenant: str
    person_id: str
    alert_id: str
    cap: int  # of the person
    today: str
    yesterday: str
    uncapped: int  # matches of subscriptions without a cap
    capped: tuple[Capped, ...] = ()


@dataclass(frozen=True, slots=True)
class Grant:
    """`person`: whether the person has room. `full`: subscription ids that have none."""

    person: bool
    full: frozenset[str]


class LedgerAway(Exception):
    """Redis did not come back in time: the job fails over and asks again from its checkpoint."""


def connect(settings: RedisSettings) -> redis.Redis:
    return redis.Redis.from_url(settings.url, **settings.options(TIMEOUT_S))


class Ledger:
    """Owns its connection; for one thread. `patience_s`: how long a Redis that is away is waited for."""

    def __init__(
        self,
        client: redis.Redis,
        prefix: str,
        patience_s: float,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._client = client
        self._prefix = prefix
        self._patience_s = patience_s
        self._clock = clock
        self._pause = pause
        self._script = client.register_script(SCRIPT)

    def claim(self, claim: Claim) -> Grant:
        """Whether the alert may be sent; then it is counted. Asking again is harmless. Raises LedgerAway."""
        keys = self._keys(claim)
        caps = [claim.cap, *(each.cap for each in claim.capped)]
        give_up, pause = self._clock() + self._patience_s, FIRST_PAUSE_S
        while True:
            try:
                answer: Any = self._script(keys=keys, args=[claim.alert_id, KEPT_S, claim.uncapped, *caps])
                break
            except redis.RedisError as error:
                if self._clock() + pause > give_up:
                    raise LedgerAway(
                        f"daily caps are counted in Redis, which has not answered for {self._patience_s:g} s "
                        f"({type(error).__name__}: {error}): bring it back; no alert is sent uncounted"
                    ) from error
            self._pause(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)
        full = (each.subscription_id for each, room in zip(claim.capped, answer[1:], strict=True) if not room)
        return Grant(person=bool(answer[0]), full=frozenset(full))

    def close(self) -> None:
        self._client.close()

    def _keys(self, claim: Claim) -> list[str]:
        # The braces put all of a person's keys on one node of a Redis cluster, as a script needs.
        owner = f"{self._prefix}:alerts:{{{content_id('person', claim.tenant, claim.person_id)}}}"
        keys = [f"{owner}:{claim.today}", f"{owner}:{claim.yesterday}"]
        for each in claim.capped:
            keys += [f"{owner}:{each.today}:{each.subscription_id}", f"{owner}:{each.yesterday}:{each.subscription_id}"]
        return keys
