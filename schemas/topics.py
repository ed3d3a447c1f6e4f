"""The only place that names topics: what each carries, its key, partitions, retention and compaction.

Where it stands: life-of-a-posting.md, step 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from penstock.schemas import events

HOUR = 3_600_000  # milliseconds
DAY = 24 * HOUR

# The longest life a posting may have (expires_at - now) unless settings say less; index.update.v1 outlives it.
LONGEST_POSTING_LIFE = 365 * DAY

# A dead letter holds a whole refused record, which may itself be as large as a broker lets through by default.
DEAD_LETTER_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic and the promise of what is in it."""

    name: str
    record: type
    key: Callable[[Any], str]
    key_name: str  # for people: the fields the key is made of
    partitions: int = 4
    retention_ms: int = 7 * DAY
    compacted: bool = False
    compacted_after_ms: int = 0  # a consumer that is behind by less sees every record, not only the newest of a key
    max_message_bytes: int | None = None  # None: the broker's own bound

    @property
    def dead_letters(self) -> str:
        return f"{self.name}.dlq"

    def config(self) -> dict[str, str]:
        """Topic configuration as Kafka's admin client takes it."""
        out = {"retention.ms": str(self.retention_ms)}
        if self.compacted:
            out["cleanup.policy"] = "compact,delete"
            out["min.compaction.lag.ms"] = str(self.compacted_after_ms)
        if self.max_message_bytes is not None:
            out["max.message.bytes"] = str(self.max_message_bytes)
        return out


POSTINGS = Topic("jobs.posting.v1", events.Posting, lambda e: e.posting_id, "posting_id")
ENRICH = Topic("posting.enrich.v1", events.EnrichRequest, lambda e: e.posting_id, "posting_id")
ENRICHED = Topic("posting.enriched.v1", events.EnrichedPosting, lambda e: e.posting_id, "posting_id")
INDEX = Topic(
    "index.update.v1",
    events.IndexUpdate,
    lambda e: e.posting_id,
    "posting_id",
    retention_ms=LONGEST_POSTING_LIFE + 30 * DAY,
    compacted=True,
    compacted_after_ms=DAY,  # the update that says `percolate` is followed by others: the alerts job must meet it
)
QUERIES = Topic("search.query.v1", events.SearchQuery, lambda e: e.request_id, "request_id", retention_ms=DAY)
RANK_REQUESTS = Topic(
    "rank.request.v1",
    events.RankRequest,
    lambda e: f"{e.tenant}/{e.request_id}",
    "tenant/request_id",
    retention_ms=DAY,
)
RANK_RESULTS = Topic(
    "rank.result.v1",
    events.RankResult,
    lambda e: f"{e.tenant}/{e.request_id}",
    "tenant/request_id",
    retention_ms=DAY,
)
SUBSCRIPTIONS = Topic(
    "alerts.subscription.v1",
    events.Subscription,
    lambda e: e.subscription_id,
    "subscription_id",
    retention_ms=10 * LONGEST_POSTING_LIFE,
    compacted=True,
)
STANDING_QUERIES = Topic(
    "alerts.query.v1",
    events.StandingQuery,
    lambda e: e.subscription_id,
    "subscription_id",
    retention_ms=10 * LONGEST_POSTING_LIFE,
    compacted=True,
)
ALERTS = Topic("alerts.feed.v1", events.Alert, lambda e: e.person_id, "person_id")
PROFILES = Topic(
    "person.profile.v1",
    events.Profile,
    lambda e: e.person_id,
    "person_id",
    retention_ms=10 * LONGEST_POSTING_LIFE,
    compacted=True,
)
ENGAGEMENT = Topic("engagement.event.v1", events.Engagement, lambda e: e.person_id, "person_id")
RECOMMENDATIONS = Topic("recommendation.feed.v1", events.Recommendation, lambda e: e.person_id, "person_id")

TOPICS: tuple[Topic, ...] = (
    POSTINGS,
    ENRICH,
    ENRICHED,
    INDEX,
    QUERIES,
    RANK_REQUESTS,
    RANK_RESULTS,
    SUBSCRIPTIONS,
    STANDING_QUERIES,
    ALERTS,
    PROFILES,
    ENGAGEMENT,
    RECOMMENDATIONS,
)


def dead_letter_topic(topic: Topic) -> Topic:
    """Where records of `topic` go that could not be used. Keyed as the refused record was; kept twice as long."""
    return Topic(
        topic.dead_letters,
        events.DeadLetter,
        lambda letter: letter.key.decode("utf-8", "replace") if letter.key else "",
        "the refused record's key",
        partitions=1,
        retention_ms=2 * 7 * DAY,
        max_message_bytes=DEAD_LETTER_BYTES,
    )


def topic_named(name: str) -> Topic:
    """The topic (or dead-letter topic) of that name; KeyError lists what there is."""
    for topic in TOPICS:
        if topic.name == name:
            return topic
        if topic.dead_letters == name:
            return dead_letter_topic(topic)
    raise KeyError(f"no topic {name!r}; there are: {', '.join(topic.name for topic in TOPICS)}")
