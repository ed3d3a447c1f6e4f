"""Every subscription there is, from the compacted topic: the newest version of each, deleted ones remembered as gone.

Owned by the event loop. A record is kept as its bytes and read when somebody asks.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from penstock.infra.gateway.follower import Record
from penstock.infra.telemetry import DEGRADED
from penstock.schemas.errors import WireError
from penstock.schemas.events import Op, Subscription
from penstock.schemas.wire import Codec

log = structlog.get_logger(role="gateway")


@dataclass(frozen=True, slots=True)
class _Kept:
    version: int
    tenant: str
    person_id: str
    value: bytes | None  # None: deleted


class SubscriptionView:
    """A `follower.Sink`."""

    def __init__(self, codec: Codec[Subscription]) -> None:
        self._codec = codec
        self._kept: dict[str, _Kept] = {}
        self._of_person: dict[tuple[str, str], list[str]] = {}  # ids in order
        self._of_tenant: dict[str, list[str]] = {}
        self._next: dict[int, int] = {}
        self._changed = asyncio.Event()

    def begin(self, starts: dict[int, int]) -> None:
        self._next |= starts

    def take(self, records: Sequence[Record]) -> None:
        for record in records:
            self._next[record.partition] = record.offset + 1
            if record.value is None:
                continue  # a tombstone of Kafka's own: our deletions are records
            try:
                self._put(self._codec.decode(record.value), record.value)
            except WireError as error:
                DEGRADED.labels("gateway", "subscription not readable").inc()
                log.warning(
                    "subscription not readable", partition=record.partition, offset=record.offset, error=str(error)
                )
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _put(self, subscription: Subscription, value: bytes) -> None:
        name = subscription.subscription_id
        before = self._kept.get(name)
        if before is not None and before.version > subscription.version:
            return
        if before is not None and before.value is not None:
            self._of_person[before.tenant, before.person_id].remove(name)
            self._of_tenant[before.tenant].remove(name)
        live = subscription.op is not Op.DELETE
        tenant, person = subscription.tenant, subscription.person_id
        self._kept[name] = _Kept(subscription.version, tenant, person, value if live else None)
        if live:
            insort(self._of_person.setdefault((tenant, person), []), name)
            insort(self._of_tenant.setdefault(tenant, []), name)

    # --- reading -------------------------------------------------------------------------------------------------

    def get(self, tenant: str, subscription_id: str) -> Subscription | None:
        """The tenant's subscription; None for a deleted one, and for others'."""
        kept = self._kept.get(subscription_id)
        if kept is None or kept.tenant != tenant or kept.value is None:
            return None
        return self._codec.decode(kept.value)

    def version(self, subscription_id: str) -> int:
        """The newest version of this id, deleted or not; -1 without any."""
        kept = self._kept.get(subscription_id)
        return -1 if kept is None else kept.version

    def tenant(self, subscription_id: str) -> str | None:
        """Whose a living id is."""
        kept = self._kept.get(subscription_id)
        return None if kept is None or kept.value is None else kept.tenant

    def ids(self, tenant: str, person_id: str | None, after: str, limit: int) -> list[str]:
        """Living ids in order, those behind `after`."""
        found = self._of_tenant.get(tenant, []) if person_id is None else self._of_person.get((tenant, person_id), [])
        first = bisect_right(found, after)
        return found[first : first + limit]

    async def reached(self, partition: int, offset: int, timeout_s: float) -> bool:
        """Wait until this record has been read; whether it was in time."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._next.get(partition, -1) <= offset:
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True
