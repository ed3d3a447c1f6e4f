"""One alert stream: what to send next, and from where to go on when it was interrupted.

    1. open      an `open` event whose id is the present place: a client that got nothing else can resume from it
    2. history   what was asked for and memory no longer has comes from the topic; what even that lost is a `gap` event
    3. live      what is in memory, then what comes
    4. beat      a comment now and then carries the newest id, so that a quiet stream does not resume from long ago

The place moves past an alert only when the alert was written out: an interrupted write is repeated, never skipped.

Where it stands: life-of-an-alert.md, step 10.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

from sse_starlette import ServerSentEvent

from penstock.infra.gateway import metrics, positions
from penstock.infra.gateway.alert_log import AlertLog, Entry
from penstock.infra.gateway.history import History
from penstock.infra.gateway.records import Gap
from penstock.schemas import jsonl


class AlertStream:
    """One client's. `places`: the next offset to send, by partition."""

    def __init__(
        self, log: AlertLog, history: History, tenant: str, person_id: str | None, places: Mapping[int, int]
    ) -> None:
        self._log = log
        self._history = history
        self._tenant = tenant
        self._person_id = person_id
        self._places = dict(places)

    def id(self) -> str:
        """Everything up to here has been sent."""
        return positions.write({partition: place - 1 for partition, place in self._places.items()})

    def beat(self) -> ServerSentEvent:
        """A comment that browsers ignore but for the id."""
        return ServerSentEvent(comment="still here", id=self.id())

    async def events(self) -> AsyncIterator[ServerSentEvent]:
        yield ServerSentEvent(event="open", id=self.id(), data="{}")
        while not self._log.closed:
            changed = self._log.changed
            async for event in self._from_history():
                yield event
            entries = self._log.after(self._places)
            for entry in entries:
                if self._log.closed:
                    return
                if entry.is_for(self._tenant, self._person_id):
                    yield self._event(entry)
                self._places[entry.partition] = entry.offset + 1
            if not entries and not self._log.behind(self._places):
                await changed.wait()

    async def _from_history(self) -> AsyncIterator[ServerSentEvent]:
        for partition, place in list(self._places.items()):
            while place < (floor := self._log.floor(partition)):
                batch = await self._history.read(partition, place, floor)
                if place < batch.low:
                    yield self._gap(partition, place, batch.low, "older alerts are not kept any more (retention)")
                for entry in batch.entries:
                    if entry.is_for(self._tenant, self._person_id):
                        yield self._event(entry)
                    self._places[partition] = entry.offset + 1
                if batch.next <= place:
                    break  # the topic ends before what memory had of it: see below, once that is read again
                place = self._places[partition] = batch.next
            if place > self._log.ends()[partition]:
                batch = await self._history.read(partition, place, place)
                if place > batch.high:  # not merely newer than what this gateway has read
                    yield self._gap(partition, place, batch.low, "the feed ends before that: it was made anew")

    def _event(self, entry: Entry) -> ServerSentEvent:
        """An alert; its id is its own place for one person, whose alerts share a partition, and everybody's else."""
        places = {entry.partition: entry.offset}
        if self._person_id is None:
            places = {partition: place - 1 for partition, place in self._places.items()} | places
        metrics.STREAMED.inc()
        return ServerSentEvent(event="alert", id=positions.write(places), data=entry.json)

    def _gap(self, partition: int, asked: int, first: int, reason: str) -> ServerSentEvent:
        self._places[partition] = first
        gap = Gap(partition=partition, asked=asked, first=first, reason=reason)
        return ServerSentEvent(event="gap", id=self.id(), data=jsonl.dumps(gap))
