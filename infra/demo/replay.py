"""Publishes a plan at its rate, queries in between, and tells the oracle and the watch what left in which order."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from penstock.infra.demo.accounting import Oracle, Published
from penstock.infra.demo.plan import PlannedEvent
from penstock.infra.demo.sample import Query
from penstock.infra.kafka_clients import Publisher
from penstock.schemas.topics import POSTINGS, QUERIES


@dataclass(slots=True)
class Replay:
    """What was published. `asked` has each query's publishing time (epoch ms) by request id.

    `probes` are ids published before the clock started: judged like all others, and in no count.
    """

    oracle: Oracle = field(default_factory=Oracle)
    probes: set[str] = field(default_factory=set)
    published: int = 0  # records, those of the probes apart
    first_ms: int | None = None
    last_ms: int | None = None
    asked: dict[str, int] = field(default_factory=dict)


def replay(
    out: Replay,
    publisher: Publisher,
    events: Sequence[PlannedEvent],
    queries: Sequence[Query],
    *,
    run_id: str,
    rate: float,
    seconds: float | None,
    track: Callable[[str, int], None],
    tell: Callable[[], None],
    clock: Callable[[], int],
) -> None:
    """Publish `events` at `rate` a second (0: as fast as the broker takes them), at most `seconds` long.

    The queries are spread over the events. `track` hears of every version that should become searchable, `tell` is
    called often for the view. Raises PublishFailed.
    """
    started, asked = time.monotonic(), 0
    for position, event in enumerate(events):
        while rate and (wait := started + position / rate - time.monotonic()) > 0:
            publisher.poll(min(wait, 0.05))
            tell()
        if seconds is not None and not rate and time.monotonic() - started > seconds:
            break
        _publish(out, publisher, event, track, clock())
        while asked < len(queries) and asked * len(events) <= position * len(queries):
            _ask(out, publisher, queries[asked], run_id, clock())
            asked += 1
        tell()
    publisher.flush()


def _publish(
    out: Replay, publisher: Publisher, event: PlannedEvent, track: Callable[[str, int], None], now_ms: int
) -> None:
    # The oracle first: what is on the broker must never be unknown to it, not even after Ctrl-C.
    before = out.oracle.version_of(event.posting_id)
    out.oracle.apply(Published(event.posting_id, event.value, event.posting, event.refused))
    version = out.oracle.version_of(event.posting_id)
    publisher.publish_raw(POSTINGS.name, event.posting_id.encode(), event.value, timestamp_ms=now_ms)
    if event.posting_id not in out.probes:
        out.published += 1
        out.first_ms = now_ms if out.first_ms is None else out.first_ms
        out.last_ms = now_ms
    if version is not None and version != before:
        track(event.posting_id, version)


def _ask(out: Replay, publisher: Publisher, query: Query, run_id: str, now_ms: int) -> None:
    request_id = f"{run_id}-{query.query_id}"
    publisher.publish(QUERIES, replace(query.event, request_id=request_id))
    out.asked[request_id] = now_ms
