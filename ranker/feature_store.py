"""The feature store: the newest index update of every posting in Redis, without its vector.

Filled only from index.update.v1 (`feature_feed.py`), so it can be flushed and is then rebuilt. A record is replaced
only by a newer (version, revision), whatever the order of arrival; a deleted or expired posting keeps a small tombstone
with its version for a window. How far each partition has been written stands beside the records, in the same Redis:
what a flush or an old snapshot takes away, it takes away from both, so the positions are never ahead of the records.

    <prefix>:features:<posting id>    20 digits version, 10 digits revision + 1, Avro IndexUpdate
    <prefix>:features-positions       hash: <cluster id>/<topic id>/<partition> -> next offset to write
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import redis

from penstock.infra.telemetry import DEGRADED
from penstock.ranker.errors import RankerError
from penstock.ranker.redis_link import RedisLink, read_values
from penstock.schemas.errors import WireError
from penstock.schemas.events import IndexOp, IndexUpdate
from penstock.schemas.wire import codec

_STAMP_DIGITS = 30

# Digits of fixed width compare as numbers do, in any collation; Lua's own numbers would lose digits past 2^53.
# Many records a call: alone each would cost its call and two replies more than it costs to write.
_REPLACE_OLDER = """
for number, key in ipairs(KEYS) do
  local record, life = ARGV[2 * number - 1], ARGV[2 * number]
  local held = redis.call('GETRANGE', key, 0, 29)
  if #held < 30 or held < string.sub(record, 1, 30) then
    if life == '0' then redis.call('SET', key, record)
    else redis.call('SET', key, record, 'PX', life) end
  end
end
"""
_RECORDS_A_CALL = 64  # some 200 KB


@dataclass(frozen=True, slots=True)
class Batch:
    """Updates in the order they were read, and the positions (<cluster id>/<topic id>/<partition> -> next offset)."""

    updates: Sequence[IndexUpdate]
    before: Mapping[str, int | None]  # what must stand in Redis; None: nothing
    after: Mapping[str, int]


class PositionsMoved(RankerError):
    """The positions in Redis are not the ones the writer left: flushed, restored, or written by another replica."""

    def __init__(self, log: str, expected: int | None, found: int | None) -> None:
        super().__init__(f"{log}: Redis stands at {found}, this writer left it at {expected}")


class FeatureStore:
    """Any process may read; the feed writes. Every method raises RedisAway."""

    def __init__(self, link: RedisLink, prefix: str, tombstone_ms: int) -> None:
        self._link = link
        self._records = f"{prefix}:features:"
        self._positions = f"{prefix}:features-positions"
        self._tombstone_ms = tombstone_ms

    def read(self, posting_ids: Sequence[str]) -> list[IndexUpdate | None]:
        """One an id, in order; None where nothing usable is held. A deleted posting comes as its tombstone."""
        if not posting_ids:
            return []
        keys = [self._records + name for name in posting_ids]
        held = self._link.run(lambda client: read_values(client, keys))
        return [None if value is None else _decoded(name, value) for name, value in zip(posting_ids, held, strict=True)]

    def write(self, batch: Batch) -> None:
        """Keep what is newer and the positions after it: whole or not at all.

        Raises PositionsMoved, having written nothing, when `before` is not what stands in Redis.
        """

        def command(client: Any) -> None:
            with client.pipeline(transaction=True) as pipeline:
                pipeline.watch(self._positions)  # a flush between here and the end undoes the transaction
                for log, expected in batch.before.items():
                    held = pipeline.hget(self._positions, log)
                    found = None if held is None else int(held)
                    if found != expected:
                        raise PositionsMoved(log, expected, found)
                pipeline.multi()
                for start in range(0, len(batch.updates), _RECORDS_A_CALL):
                    some = batch.updates[start : start + _RECORDS_A_CALL]
                    keys = [self._records + update.posting_id for update in some]
                    values = (value for update in some for value in (_encoded(update), self._life(update)))
                    pipeline.eval(_REPLACE_OLDER, len(keys), *keys, *values)
                if batch.after:
                    pipeline.hset(self._positions, mapping=dict(batch.after))
                pipeline.execute()

        while True:
            try:
                self._link.run(command, insist=True)
                return
            except redis.WatchError:  # somebody wrote positions meanwhile, perhaps of other partitions: look again
                continue

    def _life(self, update: IndexUpdate) -> str:
        """Milliseconds until Redis forgets it, 0: never."""
        return "0" if update.op is IndexOp.UPSERT else str(self._tombstone_ms)

    def positions(self) -> dict[str, int]:
        """Next offset to write for each partition ever written; empty after a flush."""
        held = self._link.run(lambda client: client.hgetall(self._positions), insist=True)
        return {name.decode(): int(offset) for name, offset in held.items()}


def _stamp(update: IndexUpdate) -> bytes:
    """(version, revision) as digits alone: the least revision is -1, and a sign would not compare as a number does."""
    return b"%020d%010d" % (update.version, update.revision + 1)


def _encoded(update: IndexUpdate) -> bytes:
    return _stamp(update) + codec(IndexUpdate).encode(replace(update, vector=None))


def _decoded(posting_id: str, value: bytes) -> IndexUpdate | None:
    try:
        update = codec(IndexUpdate).decode(value[_STAMP_DIGITS:])
    except WireError:  # written by a release this one does not know: the rows have it
        update = None
    if update is not None and update.posting_id == posting_id:
        return update
    DEGRADED.labels("ranker", "features: unreadable record").inc()  # or an answer to another question
    return None
