"""Every event on the topics, as a frozen record. The Avro schemas in `avro/` are made from these classes.

Common to all: `tenant`; ids are strings of at most 256 bytes; times are epoch milliseconds; every enum has UNKNOWN,
which an unknown symbol becomes; `trace` is a W3C traceparent. When an event was produced is its Kafka timestamp.

Where it stands: life-of-a-posting.md, step 1; life-of-an-alert.md, step 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from penstock.schemas.records import Millis, Symbol

Trace = Annotated[str | None, "W3C traceparent of whoever caused this event"]


class Op(Symbol):
    UNKNOWN = "UNKNOWN"
    UPSERT = "UPSERT"
    DELETE = "DELETE"


class Remote(Symbol):
    UNKNOWN = "UNKNOWN"
    ONSITE = "ONSITE"
    HYBRID = "HYBRID"
    REMOTE = "REMOTE"


class EmploymentType(Symbol):
    UNKNOWN = "UNKNOWN"
    FULL_TIME = "FULL_TIME"
    PART_TIME = "PART_TIME"
    CONTRACT = "CONTRACT"
    TEMPORARY = "TEMPORARY"
    INTERNSHIP = "INTERNSHIP"
    PERMANENT_OTHER = "PERMANENT_OTHER"


class Seniority(Symbol):
    UNKNOWN = "UNKNOWN"
    INTERN = "INTERN"
    ENTRY = "ENTRY"
    MID = "MID"
    SENIOR = "SENIOR"
    LEAD = "LEAD"
    EXECUTIVE = "EXECUTIVE"


class PayPeriod(Symbol):
    UNKNOWN = "UNKNOWN"
    HOUR = "HOUR"
    DAY = "DAY"
    WEEK = "WEEK"
    MONTH = "MONTH"
    YEAR = "YEAR"


class RankClass(Symbol):
    """Who waits for the answer: the class decides deadline, priority and who is shed first."""

    UNKNOWN = "UNKNOWN"
    INTERACTIVE = "INTERACTIVE"
    RECOMMENDATION = "RECOMMENDATION"
    ALERT = "ALERT"


# --- postings --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """Where the work is. Any part may be absent."""

    text: Annotated[str | None, "as the producer wrote it"] = None
    country: Annotated[str | None, "ISO 3166-1 alpha-2"] = None
    region: Annotated[str | None, "state or province, as in ISO 3166-2 without the country (OH)"] = None
    city: str | None = None
    lat: Annotated[float | None, "degrees north, WGS 84"] = None
    lon: Annotated[float | None, "degrees east, WGS 84"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Salary:
    """Pay as advertised, in `currency` per `period`."""

    min: float | None = None
    max: float | None = None
    currency: Annotated[str | None, "ISO 4217"] = None
    period: PayPeriod = PayPeriod.UNKNOWN


@dataclass(frozen=True, slots=True, kw_only=True)
class Promotion:
    """A paid campaign behind a posting."""

    campaign_id: str
    bid: Annotated[float | None, "per click, in the tenant's currency"] = None
    daily_budget: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Posting:
    """jobs.posting.v1: a posting published, changed or withdrawn by its producer."""

    posting_id: str
    version: Annotated[int, "monotone per posting id: the producer's clock or sequence"]
    op: Op = Op.UPSERT
    tenant: str = "default"
    title: Annotated[str | None, "required on UPSERT"] = None
    company: str | None = None
    description: Annotated[str | None, "required on UPSERT, at most 64 KiB"] = None
    location: Location | None = None
    remote: Remote = Remote.UNKNOWN
    employment_type: EmploymentType = EmploymentType.UNKNOWN
    seniority: Seniority = Seniority.UNKNOWN
    salary: Salary | None = None
    grade: Annotated[str | None, "pay grade as text, for instance GS-12"] = None
    category: str | None = None
    skills: tuple[str, ...] = ()
    posted_at: Millis | None = None
    expires_at: Annotated[Millis | None, "from this moment on the posting is never shown"] = None
    source: str | None = None
    url: str | None = None
    promotion: Promotion | None = None
    trace: Trace = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PostingText:
    """What an encoder and a summariser read of a posting."""

    title: str
    company: str | None = None
    location: Annotated[str | None, "the place as text"] = None
    grade: str | None = None
    category: str | None = None
    skills: tuple[str, ...] = ()
    description: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Vector:
    """A posting's row in the vector store: two planes, one inner product."""

    space_id: Annotated[str, "which vectors may be compared with each other"]
    encoder_id: Annotated[str, "who made it: model, template, tokenizer and table hashes"]
    dense: Annotated[bytes, "unit vector, bfloat16 little endian"]
    sketch: Annotated[bytes | None, "signed hash of weighted terms, int8"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrichment:
    """What a model adds to a posting's text."""

    vector: Vector | None = None
    summary: Annotated[str | None, "extractive, token-bounded"] = None
    item_text: Annotated[str | None, "what the ranking model reads of this posting"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrichRequest:
    """posting.enrich.v1: the slow lane's order to enrich one version of a posting."""

    posting_id: str
    version: int
    tenant: str = "default"
    text_hash: Annotated[str, "of `text`, hex: an answer to another text is void"]
    text: PostingText
    bare: Annotated[bool, "published without a vector: the fast lane's enrichment is wanted first, and soon"] = False
    expires_at: Millis | None = None
    trace: Trace = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrichedPosting:
    """posting.enriched.v1: the slow lane's answer."""

    posting_id: str
    version: int
    tenant: str = "default"
    text_hash: str
    enrichment: Enrichment
    heals: Annotated[bool, "the fast lane's enrichment, late: void once the posting has a vector"] = False
    trace: Trace = None


class IndexOp(Symbol):
    UNKNOWN = "UNKNOWN"
    UPSERT = "UPSERT"
    DELETE = "DELETE"
    EXPIRE = "EXPIRE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attributes:
    """The typed attributes of a posting that filters and displays use."""

    title: str
    company: str | None = None
    location: Location | None = None
    remote: Remote = Remote.UNKNOWN
    employment_type: EmploymentType = EmploymentType.UNKNOWN
    seniority: Seniority = Seniority.UNKNOWN
    salary: Salary | None = None
    grade: str | None = None
    category: str | None = None
    skills: tuple[str, ...] = ()
    posted_at: Millis | None = None
    source: str | None = None
    url: str | None = None
    promotion: Promotion | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexUpdate:
    """index.update.v1: the whole state of one posting, ordered by (version, revision). The newest replaces the rest."""

    posting_id: str
    version: int
    revision: Annotated[int, "-1 without a vector, 0 from the fast lane, 1 and on refined, 1000 expired"] = 0
    op: IndexOp
    tenant: str = "default"
    attributes: Annotated[Attributes | None, "null on DELETE and EXPIRE"] = None
    summary: str | None = None
    item_text: str | None = None
    vector: Annotated[Vector | None, "null: findable by filters and words only, until the slow lane heals it"] = None
    produced_at: Annotated[Millis, "Kafka timestamp of the posting event behind this version"]
    expires_at: Millis | None = None
    material_class: Annotated[str, "hash of what makes a change worth a new alert; empty on DELETE and EXPIRE"] = ""
    percolate: Annotated[bool, "alerts look at it: a new posting, a material change, or its first vector"] = False
    trace: Trace = None


# --- filters ---------------------------------------------------------------------------------------------------


class FilterKind(Symbol):
    UNKNOWN = "UNKNOWN"
    ALL = "ALL"
    ANY = "ANY"
    NOT = "NOT"
    IN = "IN"
    RANGE = "RANGE"
    NEAR = "NEAR"


class Missing(Symbol):
    """What a clause says of a posting that lacks the attribute."""

    UNKNOWN = "UNKNOWN"
    EXCLUDE = "EXCLUDE"
    INCLUDE = "INCLUDE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """One node of the filter tree: a group (ALL, ANY, NOT over `children`) or a clause (IN, RANGE, NEAR on `field`)."""

    kind: FilterKind
    children: tuple[Filter, ...] = ()
    field: str | None = None
    values: Annotated[tuple[str, ...], "IN: the attribute equals one of these"] = ()
    minimum: Annotated[float | None, "RANGE: inclusive"] = None
    maximum: Annotated[float | None, "RANGE: inclusive"] = None
    lat: Annotated[float | None, "NEAR: centre, degrees north"] = None
    lon: Annotated[float | None, "NEAR: centre, degrees east"] = None
    radius_km: Annotated[float | None, "NEAR: great-circle radius"] = None
    missing: Missing = Missing.EXCLUDE


@dataclass(frozen=True, slots=True, kw_only=True)
class Understood:
    """One thing read out of a query's words, and the filter it became."""

    label: Annotated[str, "for people: 'remote', 'in Ohio', 'pays at least 60,000 a year'"]
    span: Annotated[str, "the words it was read from"]
    filter: Filter
    needs_values: Annotated[
        bool, "strict only if the index holds values for it (places); otherwise dropped and said so"
    ] = False
    applied: Annotated[bool, "whether the ranking used it"] = True


# --- queries and ranking ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    size: int = 10
    cursor: Annotated[str | None, "of the previous result"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MinVersion:
    """Read your writes: wait until this version of this posting is searchable."""

    posting_id: str
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchQuery:
    """search.query.v1: somebody's query, as a producer publishes it."""

    request_id: str
    tenant: str = "default"
    person_id: str | None = None
    text: str
    filters: Filter | None = None
    class_: RankClass = RankClass.INTERACTIVE
    deadline_ms: Annotated[int, "how long the answer is of use, from the event's timestamp"] = 2000
    page: Page = Page()
    min_version: MinVersion | None = None
    trace: Trace = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryVector:
    """A query's side of the inner product."""

    space_id: str
    encoder_id: str
    dense: Annotated[bytes, "unit vector, float32 little endian"]
    lexical: Annotated[bytes | None, "float32 little endian; carries the hybrid weight and the sketch's scale"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RankQuery:
    """A query as the ranker takes it. Without a vector the ranker has it analysed first."""

    text: str
    vector: QueryVector | None = None
    filters: Annotated[Filter | None, "the caller's own: hard"] = None
    understood: Annotated[tuple[Understood, ...], "read from the words: exclude known violations only"] = ()
    person_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RankRequest:
    """rank.request.v1: rank for this query by this deadline."""

    request_id: str
    tenant: str = "default"
    class_: RankClass = RankClass.INTERACTIVE
    deadline: Annotated[Millis, "an answer after this is of no use"]
    query: RankQuery
    candidates: Annotated[tuple[str, ...] | None, "rank exactly these (alerts name theirs); null: retrieve"] = None
    depth: Annotated[int | None, "candidates to retrieve; null: the ranker decides"] = None
    page: Page = Page()
    min_version: MinVersion | None = None
    produced_at: Millis | None = None
    echo: Annotated[bytes | None, "given back untouched in the result: what its asker needs to go on"] = None
    trace: Trace = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedItem:
    posting_id: str
    version: int
    revision: int = 0
    score: Annotated[float, "calibrated probability that the person would find it good, [0, 1]"]
    parts: Annotated[Mapping[str, float], "what the score is made of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankResult:
    """rank.result.v1: the ranked postings, what was asked for, what was served and why less."""

    request_id: str
    tenant: str = "default"
    class_: RankClass = RankClass.INTERACTIVE
    items: tuple[RankedItem, ...] = ()
    total: Annotated[int, "postings that passed the filters"] = 0
    depth_asked: int = 0
    depth_served: int = 0
    depth_reason: Annotated[str, "what bound the depth; empty: nothing was ranked"] = ""
    lm_scored: Annotated[int, "how many the language model scored"] = 0
    cache_hits: int = 0
    model_id: str = ""
    epoch: Annotated[str, "the index epochs read, by shard"] = ""
    understood: tuple[Understood, ...] = ()
    degraded: Annotated[tuple[str, ...], "every fallback taken, by name and reason"] = ()
    error: Annotated[str | None, "why there is no answer at all"] = None
    next_cursor: str | None = None
    timings: Annotated[Mapping[str, float], "milliseconds by stage"]
    echo: Annotated[bytes | None, "of the request"] = None
    trace: Trace = None


# --- alerts ----------------------------------------------------------------------------------------------------


class Cadence(Symbol):
    UNKNOWN = "UNKNOWN"
    INSTANT = "INSTANT"
    HOURLY = "HOURLY"
    DAILY = "DAILY"
    WEEKLY = "WEEKLY"
    AUTO = "AUTO"


class SubscriptionState(Symbol):
    UNKNOWN = "UNKNOWN"
    ACTIVE = "ACTIVE"
    PAUSED = "PAUSED"
    SNOOZED = "SNOOZED"


@dataclass(frozen=True, slots=True, kw_only=True)
class QuietHours:
    """Local times between which nothing is sent; `start` after `end` spans midnight."""

    start: Annotated[str, "HH:MM in the subscription's time zone"]
    end: Annotated[str, "HH:MM in the subscription's time zone"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """alerts.subscription.v1: what a person wants to be told about."""

    subscription_id: str
    version: int
    op: Op = Op.UPSERT
    tenant: str = "default"
    person_id: str
    text: str = ""
    filters: Filter | None = None
    cadence: Cadence = Cadence.INSTANT
    state: SubscriptionState = SubscriptionState.ACTIVE
    snoozed_until: Millis | None = None
    max_per_day: Annotated[int | None, "alerts of this subscription a day of its time zone"] = None
    min_score: Annotated[
        float | None, "calibrated probability in [0, 1] that the ranker must give; null: the match itself is enough"
    ] = None
    time_zone: Annotated[str, "IANA name"] = "UTC"
    quiet_hours: QuietHours | None = None
    digest_at: Annotated[str | None, "HH:MM in time_zone"] = None
    channel: str | None = None
    locale: str | None = None
    trace: Trace = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StandingQuery:
    """alerts.query.v1: a subscription compiled for percolation, as retrieval shards keep it."""

    subscription_id: str
    version: int
    op: Annotated[Op, "DELETE also for a paused subscription"]
    tenant: str = "default"
    person_id: str
    text: Annotated[str, "as the person wrote it"] = ""
    vector: Annotated[QueryVector | None, "null: filters alone decide, every match scores 0"] = None
    filters: Annotated[Filter | None, "the subscription's own and what was understood of its words, as one tree"] = None
    threshold: Annotated[float, "smallest hybrid score that counts as a match"] = 0.0
    min_score: Annotated[float | None, "of the subscription: with it every match goes to the ranker first"] = None
    produced_at: Annotated[Millis, "Kafka timestamp of the subscription event behind it"]
    trace: Trace = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """One posting that satisfies one standing query."""

    subscription_id: str
    version: Annotated[int, "of the subscription"]
    person_id: str
    match_score: Annotated[float, "hybrid: dense + lexical, float64 on the stored values"]
    dense: float
    lexical: float
    score: Annotated[float | None, "calibrated probability from the ranker; null: not asked, or not answered"] = None
    reason: Annotated[str, "for people: what of the subscription it satisfies"] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """alerts.feed.v1: one posting for one person. `alert_id` is a function of content, never of processing order."""

    alert_id: Annotated[str, "hash(tenant, person, posting, material class)"]
    tenant: str = "default"
    person_id: str
    posting_id: str
    version: int
    material_class: str = ""
    matches: Annotated[tuple[Match, ...], "every subscription of this person that it satisfies, best first"]
    attributes: Annotated[Attributes, "of the posting: enough to show it"]
    deliver_after: Annotated[
        Millis | None, "quiet hours or a digest: not to be shown to the person before; null: at once"
    ] = None
    digest_id: Annotated[str | None, "hash(person, window): alerts with the same one belong together"] = None
    channel: str | None = None
    locale: str | None = None
    produced_at: Annotated[Millis, "of the posting"]
    alerted_at: Millis
    expires_at: Annotated[Millis | None, "of the posting"] = None
    degraded: Annotated[tuple[str, ...], "every fallback taken, by name and reason"] = ()
    trace: Trace = None


# --- recommendations -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """person.profile.v1: what is known of a person who looks for work."""

    person_id: str
    version: int
    op: Op = Op.UPSERT
    tenant: str = "default"
    headline: str | None = None
    text: str | None = None
    skills: tuple[str, ...] = ()
    seniority: Seniority = Seniority.UNKNOWN
    location: Location | None = None
    filters: Annotated[Filter | None, "what this person never wants to be shown otherwise"] = None
    trace: Trace = None


class EngagementKind(Symbol):
    UNKNOWN = "UNKNOWN"
    IMPRESSION = "IMPRESSION"
    CLICK = "CLICK"
    APPLY = "APPLY"
    DISMISS = "DISMISS"


@dataclass(frozen=True, slots=True, kw_only=True)
class Engagement:
    """engagement.event.v1: what a person did with a posting they were shown."""

    event_id: str
    tenant: str = "default"
    person_id: str
    posting_id: str
    kind: EngagementKind
    position: Annotated[int | None, "rank at which it was shown, from 0"] = None
    request_id: str | None = None
    trace: Trace = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """recommendation.feed.v1: a person's refreshed list."""

    recommendation_id: str
    tenant: str = "default"
    person_id: str
    items: tuple[RankedItem, ...]
    reason: Annotated[str, "what made it due: profile, postings, cadence"]
    recommended_at: Millis
    trace: Trace = None


# --- dead letters ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """<topic>.dlq: a record that could not be used, its bytes untouched."""

    topic: str
    key: bytes | None = None
    raw: Annotated[bytes, "the record's value as it arrived"]
    stage: Annotated[str, "where it was refused: decode, validate, order, index, rank"]
    error_class: str
    message: Annotated[str, "what was given, what was expected, what to do"]
    attempt: Annotated[int, "how often the stage tried before it gave up"] = 1
    produced_at: Annotated[Millis | None, "Kafka timestamp of the refused record"] = None
    failed_at: Millis
    trace: Trace = None
