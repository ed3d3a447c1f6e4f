"""What only HTTP says: bodies and answers that are not themselves records of a topic, in the same form as those.

JSON comes from `schemas/jsonl.py` and OpenAPI from `openapi.py`, both by these fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from penstock.schemas.events import Alert, Attributes, Filter, MinVersion, Subscription, Understood
from penstock.schemas.records import Millis
from penstock.schemas.rpc import ExplainReply, RowState


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """Words, filters or both."""

    text: Annotated[str, "what to look for, in words; what is understood of them excludes known violations only"] = ""
    filters: Annotated[Filter | None, "hard: never relaxed, never approximated"] = None
    size: Annotated[int, "postings a page, 1 to 1000"] = 10
    cursor: Annotated[str | None, "next_cursor of the page before, with everything else the same"] = None
    deadline_ms: Annotated[int | None, "how long the answer is of use; at most and by default gateway.timeout_ms"] = (
        None
    )
    person_id: Annotated[str | None, "who asks"] = None
    min_version: Annotated[MinVersion | None, "wait until this version of this posting is searchable"] = None
    explain: Annotated[bool, "also say what each score is made of and what each filter clause does"] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchItem:
    posting_id: str
    version: int
    score: Annotated[float, "calibrated probability that the person would find it good, [0, 1]"]
    state: Annotated[RowState, "now; the page itself is of its epoch"]
    posting: Annotated[Attributes | None, "as it is now; absent once withdrawn or expired"] = None
    parts: Annotated[Mapping[str, float] | None, "with explain: what the score is made of"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchAnswer:
    request_id: str
    items: Annotated[tuple[SearchItem, ...], "best first"]
    total: Annotated[int, "postings that pass the filters"]
    next_cursor: Annotated[str | None, "of the next page; absent on the last"] = None
    epoch: Annotated[str, "the index epochs read, by shard"] = ""
    understood: tuple[Understood, ...] = ()
    degraded: Annotated[tuple[str, ...], "every fallback taken, by name and reason"] = ()
    depth_asked: int = 0
    depth_served: int = 0
    lm_scored: Annotated[int, "how many the language model scored"] = 0
    cache_hits: int = 0
    model_id: str = ""
    timings: Annotated[Mapping[str, float], "milliseconds by stage"]
    explanation: Annotated[ExplainReply | None, "with explain: what each clause that was applied does"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """The broker has it. What becomes of it is seen by reading it back."""

    id: str
    version: int
    topic: str
    partition: int
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldPosting:
    """What the index holds of one posting."""

    posting_id: str
    version: int
    revision: int
    state: RowState
    posting: Annotated[Attributes | None, "absent once deleted or expired"] = None
    summary: str | None = None
    searchable_at: Millis | None = None
    expires_at: Millis | None = None
    degraded: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldSubscription:
    subscription: Subscription
    in_force: Annotated[bool | None, "whether new postings meet this version; absent: nobody could say"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscriptions:
    subscriptions: Annotated[tuple[HeldSubscription, ...], "by id"]
    next_after: Annotated[str | None, "there are more: ask again with after= this id"] = None
    degraded: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedItem:
    id: Annotated[str, "its place in the feed, as the stream's event id"]
    alert: Alert


@dataclass(frozen=True, slots=True, kw_only=True)
class RecentAlerts:
    alerts: Annotated[tuple[FeedItem, ...], "newest first"]
    since: Annotated[Millis | None, "what came before this moment the gateway no longer has at hand"] = None
    resume: Annotated[str, "for the stream: `after` this, everything newer follows"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Data of a stream's `gap` event: alerts between what was asked for and what there still is are lost to it."""

    partition: int
    asked: Annotated[int, "offset from which the stream was to go on"]
    first: Annotated[int, "offset from which it does"]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    ready: bool
    checks: Annotated[Mapping[str, str], "empty: well; otherwise the reason it is not"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorBody:
    message: Annotated[str, "what was given, what is expected, what to do"]
    request_id: Annotated[str, "to be found in the gateway's log; also the header X-Request-Id"]
    field: Annotated[str | None, "dotted name of the field at fault"] = None
    given: Annotated[str | None, "what was given, cut where it is long"] = None
    expected: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorAnswer:
    error: ErrorBody
