"""Records that jobs keep in Flink state. They evolve as events do: a savepoint of an older version must restore."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from penstock.schemas.events import (
    Attributes,
    Cadence,
    IndexUpdate,
    Match,
    Op,
    QuietHours,
    StandingQuery,
    Subscription,
    SubscriptionState,
    Trace,
)
from penstock.schemas.records import Millis


@dataclass(frozen=True, slots=True, kw_only=True)
class PostingState:
    """What the postings job knows of one posting id, packed into one value: a read is one round trip."""

    update: Annotated[IndexUpdate, "the newest one emitted; its tenant owns the id"]
    event_hash: Annotated[bytes, "of the posting event behind it, to tell repeats from conflicts"]
    text_hash: Annotated[str | None, "of the text that models read; null once deleted or expired"] = None
    refined: Annotated[bool, "whether the vector and summary came from the slow lane"] = False
    clear_at: Annotated[Millis | None, "when the tombstone may be forgotten; null while live"] = None


# --- alerts ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldSubscription:
    """What the alerts job knows of one subscription id on its way to becoming a standing query."""

    subscription: Annotated[Subscription, "the newest accepted one; its tenant and person own the id"]
    event_hash: Annotated[bytes, "of its event, to tell repeats from conflicts"]
    produced_at: Annotated[Millis, "Kafka timestamp of its event"]
    attempts: Annotated[int, "how often the models role was asked in vain"] = 0
    ask_at: Annotated[Millis | None, "when to ask it again; null: nothing is owed"] = None
    clear_at: Annotated[Millis | None, "when a deleted one may be forgotten; null while it stands"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """The posting that an alert is about: encoded once, carried to each of its persons."""

    posting_id: str
    version: int
    tenant: str = "default"
    material_class: str = ""
    attributes: Attributes
    produced_at: Millis
    expires_at: Millis | None = None
    trace: Trace = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A posting that may become an alert for one person. Also what a rank request of the alerts job echoes."""

    tenant: str = "default"
    person_id: str
    subject: Annotated[bytes, "an encoded Subject"]
    matches: tuple[Match, ...]
    queries: Annotated[tuple[StandingQuery, ...], "of the matches that want a score and have not been asked about"] = ()
    asked: Annotated[str | None, "subscription_id that the ranker is being asked about"] = None
    degraded: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownSubscription:
    """What a person's alerts are decided by, of one of their subscriptions."""

    subscription_id: str
    version: int
    asks: Annotated[bytes, "hash of words, filters and min_score: a match of an older version with the same holds"]
    matches_from: Annotated[int, "the oldest version that asked the same"]
    op: Op
    state: SubscriptionState = SubscriptionState.ACTIVE
    snoozed_until: Millis | None = None
    min_score: float | None = None
    max_per_day: int | None = None
    full_at: Annotated[Millis | None, "when the ledger last said that its cap is reached"] = None
    cadence: Cadence = Cadence.INSTANT
    time_zone: str = "UTC"
    quiet_hours: QuietHours | None = None
    digest_at: str | None = None
    channel: str | None = None
    locale: str | None = None
    forget_at: Annotated[Millis | None, "of a deleted one"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingCandidate:
    """A candidate of a subscription that its person is not known to have: it may be on its way."""

    candidate: Candidate
    until: Millis


@dataclass(frozen=True, slots=True, kw_only=True)
class PersonAlerts:
    """What the alerts job knows of one person, packed into one value."""

    subscriptions: tuple[KnownSubscription, ...] = ()
    sent: Annotated[bytes, "12 bytes an alert: 8 of its id, 4 of the minute to forget it, big endian"]
    full_at: Annotated[Millis | None, "when the ledger last said that the person's cap is reached"] = None
    waiting: tuple[WaitingCandidate, ...] = ()
    prune_at: Annotated[Millis | None, "when a timer is armed to forget what may be forgotten"] = None
