"""The newest alerts in memory, in the order of the topic: what every stream and every look at the feed reads.

Streams hold a place in it, not a queue of their own: a slow one costs nothing, and one that falls behind what is kept
reads the topic itself (`history.py`) until it is here again. Owned by the event loop: nobody else may touch it.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from penstock.infra.gateway import metrics
from penstock.infra.gateway.follower import Record
from penstock.infra.telemetry import DEGRADED
from penstock.schemas import jsonl
from penstock.schemas.errors import WireError
from penstock.schemas.events import Alert
from penstock.schemas.wire import Codec

log = structlog.get_logger(role="gateway")

KEPT = 2_048  # alerts a partition: with 4 of them and 2 KB each, 16 MB
TURN = 256  # alerts that a stream takes at a time


@dataclass(frozen=True, slots=True)
class Entry:
    """One alert, ready to be sent. `json` is None where the record could not be read."""

    partition: int
    offset: int
    at_ms: int
    tenant: str
    person_id: str
    json: str | None

    def is_for(self, tenant: str, person_id: str | None) -> bool:
        return self.json is not None and self.tenant == tenant and person_id in (None, self.person_id)


def entry_of(record: Record, codec: Codec[Alert]) -> Entry:
    """Decoded once, for whoever will read it."""
    try:
        if record.value is None:
            raise WireError("a record without a value")
        alert = codec.decode(record.value)
    except WireError as error:
        DEGRADED.labels("gateway", "alert not readable").inc()
        log.warning("alert not readable", partition=record.partition, offset=record.offset, error=str(error))
        return Entry(record.partition, record.offset, record.at_ms, "", "", None)
    return Entry(record.partition, record.offset, record.at_ms, alert.tenant, alert.person_id, jsonl.dumps(alert))


@dataclass(slots=True)
class _Held:
    floor: int  # everything from this offset on is in `entries`
    next: int
    entries: list[Entry] = field(default_factory=list)


class AlertLog:
    """A `follower.Sink`."""

    def __init__(self, codec: Codec[Alert], kept: int = KEPT) -> None:
        self._codec = codec
        self._kept = kept
        self._held: dict[int, _Held] = {}
        self._changed = asyncio.Event()
        self.closed = False

    def close(self) -> None:
        """Streams end."""
        self.closed = True
        self._changed.set()

    # --- what the follower does ----------------------------------------------------------------------------------

    def begin(self, starts: dict[int, int]) -> None:
        self._held |= {partition: _Held(offset, offset) for partition, offset in starts.items()}

    def take(self, records: Sequence[Record]) -> None:
        for record in records:
            held = self._held[record.partition]
            if record.offset < held.next:  # the topic was made anew: what was read of its predecessor says nothing
                DEGRADED.labels("gateway", "feed made anew").inc()
                held.entries.clear()
                held.floor = record.offset
            held.entries.append(entry_of(record, self._codec))
            held.next = record.offset + 1
            if len(held.entries) >= 2 * self._kept:
                del held.entries[: -self._kept]
                held.floor = held.entries[0].offset
        metrics.FEED_OFFSETS.set(sum(len(held.entries) for held in self._held.values()))
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    # --- what readers do -----------------------------------------------------------------------------------------

    @property
    def changed(self) -> asyncio.Event:
        """Set once there is more than now: take it first, look second, wait third."""
        return self._changed

    def ends(self) -> dict[int, int]:
        """The next offset of each partition."""
        return {partition: held.next for partition, held in self._held.items()}

    def floor(self, partition: int) -> int:
        """The oldest offset from which everything is here."""
        return self._held[partition].floor

    def after(self, places: Mapping[int, int]) -> list[Entry]:
        """At most TURN entries from these offsets on, each partition in its own order; of one that is behind, none."""
        out: list[Entry] = []
        for partition, start in places.items():
            if start < self._held[partition].floor:
                continue
            entries = self._held[partition].entries
            first = bisect_left(entries, start, key=lambda entry: entry.offset)
            out += entries[first : first + TURN - len(out)]
        return out

    def behind(self, places: Mapping[int, int]) -> bool:
        """Whether something from these offsets on is no longer here."""
        return any(place < self._held[partition].floor for partition, place in places.items())

    def recent(self, tenant: str, person_id: str | None, limit: int) -> list[Entry]:
        """The newest first, by their Kafka timestamp."""
        found = [e for held in self._held.values() for e in held.entries if e.is_for(tenant, person_id)]
        found.sort(key=lambda entry: (entry.at_ms, entry.offset), reverse=True)
        return found[:limit]

    def since_ms(self) -> int | None:
        """From when on everything is here; None: everything the topic has."""
        cut = [held.entries[0].at_ms for held in self._held.values() if held.floor and held.entries]
        return max(cut, default=None)
