"""The rules a well-formed event must also keep. Pure: the caller passes the time.

Each function returns nothing and raises InvalidRecord naming the field. Over-long input is refused, never cut.

Where it stands: life-of-an-alert.md, step 2.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from zoneinfo import ZoneInfo

from penstock.schemas import filters
from penstock.schemas.errors import InvalidRecord
from penstock.schemas.events import (
    Attributes,
    Cadence,
    EnrichedPosting,
    Location,
    Op,
    Posting,
    PostingText,
    RankClass,
    Salary,
    SearchQuery,
    Subscription,
    SubscriptionState,
)
from penstock.schemas.records import to_plain
from penstock.schemas.times import EARLIEST, LATEST
from penstock.schemas.wire import codec

MAX_ID_BYTES = 256
MAX_TITLE_BYTES = 1024
MAX_DESCRIPTION_BYTES = 64 * 1024
MAX_TEXT_BYTES = 1024  # company, category, place, grade, url and the like
MAX_QUERY_BYTES = 8 * 1024
MAX_SKILLS = 100
MAX_PAGE = 1_000
MAX_DEADLINE_MS = 3_600_000
MAX_URL_BYTES = 4096
MAX_TRACE_BYTES = 512  # a W3C traceparent has 55
MAX_MODEL_TEXT_BYTES = 64 * 1024  # a summary, or what a ranking model reads
MAX_PLANE_BYTES = 64 * 1024
MAX_ALERTS_A_DAY = 10_000
MAX_ECHO_BYTES = 64 * 1024  # what a rank request wants back in its result

_CLOCK = re.compile(r"([01][0-9]|2[0-3]):[0-5][0-9]")


def check_id(field: str, value: str) -> None:
    size = len(value.encode("utf-8", "surrogatepass"))
    if not 0 < size <= MAX_ID_BYTES:
        raise InvalidRecord(field, value, f"an id of 1 to {MAX_ID_BYTES} bytes (this one has {size})")


def check_text(field: str, value: str | None, limit: int = MAX_TEXT_BYTES) -> None:
    if value is None:
        return
    size = len(value.encode("utf-8", "surrogatepass"))
    if size > limit:
        raise InvalidRecord(field, value, f"at most {limit} bytes (this one has {size})")


def check_posting(event: Posting, *, now_ms: int, max_life_ms: int) -> None:
    """A posting event as its producer must write it. `now_ms` is the moment of processing."""
    check_id("posting_id", event.posting_id)
    check_id("tenant", event.tenant)
    _check_change(event, "posting")
    if event.op is Op.DELETE:
        return
    for field, value, limit in (
        ("title", event.title, MAX_TITLE_BYTES),
        ("description", event.description, MAX_DESCRIPTION_BYTES),
    ):
        if value is None or not value.strip():
            raise InvalidRecord(field, value, "text: an UPSERT needs title and description")
        check_text(field, value, limit)
    for field in ("company", "grade", "category", "source"):
        check_text(field, getattr(event, field))
    check_text("url", event.url, MAX_URL_BYTES)
    if len(event.skills) > MAX_SKILLS:
        raise InvalidRecord("skills", f"{len(event.skills)} skills", f"at most {MAX_SKILLS}")
    for position, skill in enumerate(event.skills):
        check_text(f"skills[{position}]", skill)
    if event.location is not None:
        _check_location(event.location)
    if event.salary is not None:
        _check_salary(event.salary)
    if event.posted_at is not None:
        _check_time("posted_at", event.posted_at)
    if event.expires_at is not None:
        _check_time("expires_at", event.expires_at)
        if event.expires_at > now_ms + max_life_ms:
            days = max_life_ms // 86_400_000
            raise InvalidRecord("expires_at", event.expires_at, f"at most {days} days ahead (postings.max_life_ms)")
    if event.promotion is not None:
        check_id("promotion.campaign_id", event.promotion.campaign_id)
        for field in ("bid", "daily_budget"):
            _check_amount(f"promotion.{field}", getattr(event.promotion, field))


def _check_change(event: Posting | Subscription, what: str) -> None:
    """What every change of something carries beside its ids."""
    check_text("trace", event.trace, MAX_TRACE_BYTES)
    if event.version < 0:
        raise InvalidRecord("version", event.version, f"at least 0, growing with every change of the {what}")
    if event.op is Op.UNKNOWN:
        raise InvalidRecord("op", event.op, "UPSERT or DELETE")


def _check_location(place: Location) -> None:
    for field in ("text", "region", "city"):
        check_text(f"location.{field}", getattr(place, field))
    if place.country is not None and not (len(place.country) == 2 and place.country.isalpha()):
        raise InvalidRecord("location.country", place.country, "two letters (ISO 3166-1 alpha-2)")
    if (place.lat is None) != (place.lon is None):
        raise InvalidRecord("location", f"lat {place.lat}, lon {place.lon}", "both latitude and longitude, or neither")
    if place.lat is not None and not -90 <= place.lat <= 90:
        raise InvalidRecord("location.lat", place.lat, "degrees north in [-90, 90]")
    if place.lon is not None and not -180 <= place.lon <= 180:
        raise InvalidRecord("location.lon", place.lon, "degrees east in [-180, 180]")


def _check_salary(salary: Salary) -> None:
    _check_amount("salary.min", salary.min)
    _check_amount("salary.max", salary.max)
    if salary.min is not None and salary.max is not None and salary.min > salary.max:
        raise InvalidRecord("salary", f"min {salary.min}, max {salary.max}", "min not above max")
    if salary.currency is not None and not (len(salary.currency) == 3 and salary.currency.isalpha()):
        raise InvalidRecord("salary.currency", salary.currency, "three letters (ISO 4217)")


def _check_amount(field: str, amount: float | None) -> None:
    if amount is not None and not (math.isfinite(amount) and amount >= 0):
        raise InvalidRecord(field, amount, "a finite amount of at least 0")


def _check_time(field: str, millis: int) -> None:
    if not EARLIEST <= millis <= LATEST:
        raise InvalidRecord(field, millis, "epoch milliseconds between 1970 and 9999")


def check_query(event: SearchQuery) -> None:
    """A search query as its producer must write it."""
    check_id("request_id", event.request_id)
    check_id("tenant", event.tenant)
    if event.person_id is not None:
        check_id("person_id", event.person_id)
    check_text("trace", event.trace, MAX_TRACE_BYTES)
    check_text("text", event.text, MAX_QUERY_BYTES)
    if not event.text.strip() and event.filters is None:
        raise InvalidRecord("text", event.text, "words, filters or both")
    if event.filters is not None:
        filters.check(event.filters)
    if event.class_ is RankClass.UNKNOWN:
        raise InvalidRecord("class", event.class_, "INTERACTIVE, RECOMMENDATION or ALERT")
    if not 0 < event.deadline_ms <= MAX_DEADLINE_MS:
        raise InvalidRecord("deadline_ms", event.deadline_ms, f"milliseconds from 1 to {MAX_DEADLINE_MS}")
    if not 0 < event.page.size <= MAX_PAGE:
        raise InvalidRecord("page.size", event.page.size, f"1 to {MAX_PAGE}")
    if event.min_version is not None:
        check_id("min_version.posting_id", event.min_version.posting_id)


def check_subscription(event: Subscription) -> None:
    """A subscription as its producer must write it. A DELETE needs only its ids and version."""
    check_id("subscription_id", event.subscription_id)
    check_id("tenant", event.tenant)
    check_id("person_id", event.person_id)
    _check_change(event, "subscription")
    if event.op is Op.DELETE:
        return
    check_text("text", event.text, MAX_QUERY_BYTES)
    if not event.text.strip() and event.filters is None:
        raise InvalidRecord("text", event.text, "words, filters or both")
    if event.filters is not None:
        filters.check(event.filters)
    if event.cadence is Cadence.UNKNOWN:
        raise InvalidRecord("cadence", event.cadence, "INSTANT, HOURLY, DAILY, WEEKLY or AUTO")
    if event.state is SubscriptionState.UNKNOWN:
        raise InvalidRecord("state", event.state, "ACTIVE, PAUSED or SNOOZED")
    if event.snoozed_until is not None:
        _check_time("snoozed_until", event.snoozed_until)
    elif event.state is SubscriptionState.SNOOZED:
        raise InvalidRecord("snoozed_until", None, "when the snooze ends, since state is SNOOZED")
    if event.max_per_day is not None and not 0 < event.max_per_day <= MAX_ALERTS_A_DAY:
        raise InvalidRecord("max_per_day", event.max_per_day, f"1 to {MAX_ALERTS_A_DAY} alerts, or none for no cap")
    if event.min_score is not None:
        if not 0 <= event.min_score <= 1:
            raise InvalidRecord("min_score", event.min_score, "a probability in [0, 1]")
        if not event.text.strip():
            raise InvalidRecord("min_score", event.min_score, "none without words in text: there is nothing to score")
    check_time_zone("time_zone", event.time_zone)
    if event.quiet_hours is not None:
        check_clock("quiet_hours.start", event.quiet_hours.start)
        check_clock("quiet_hours.end", event.quiet_hours.end)
        if event.quiet_hours.start == event.quiet_hours.end:
            raise InvalidRecord("quiet_hours.end", event.quiet_hours.end, "another time than quiet_hours.start")
    if event.digest_at is not None:
        check_clock("digest_at", event.digest_at)
    check_text("channel", event.channel)
    check_text("locale", event.locale)


def check_time_zone(field: str, name: str) -> None:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:  # not found; "../x" and the like; a folder's name
        raise InvalidRecord(field, name, "an IANA time zone such as America/New_York or UTC") from error


def check_clock(field: str, value: str) -> None:
    if not _CLOCK.fullmatch(value):
        raise InvalidRecord(field, value, "HH:MM from 00:00 to 23:59")


def check_enriched(event: EnrichedPosting) -> None:
    """A slow-lane answer: it must carry something, whole planes, and no more than an index update can hold."""
    check_id("posting_id", event.posting_id)
    check_id("tenant", event.tenant)
    check_text("trace", event.trace, MAX_TRACE_BYTES)
    check_text("enrichment.summary", event.enrichment.summary, MAX_MODEL_TEXT_BYTES)
    check_text("enrichment.item_text", event.enrichment.item_text, MAX_MODEL_TEXT_BYTES)
    vector = event.enrichment.vector
    if vector is None:
        if event.enrichment.summary is None:
            raise InvalidRecord("enrichment", None, "a vector, a summary or both")
        return
    check_id("enrichment.vector.space_id", vector.space_id)
    check_text("enrichment.vector.encoder_id", vector.encoder_id)
    if not vector.dense or len(vector.dense) % 2:
        raise InvalidRecord("enrichment.vector.dense", f"{len(vector.dense)} bytes", "bfloat16 values, two bytes each")
    for plane in ("dense", "sketch"):
        size = len(getattr(vector, plane) or b"")
        if size > MAX_PLANE_BYTES:
            raise InvalidRecord(f"enrichment.vector.{plane}", f"{size} bytes", f"at most {MAX_PLANE_BYTES} bytes")


# --- identity of content -----------------------------------------------------------------------------------------


def event_hash(event: Posting | Subscription) -> bytes:
    """16 bytes that are equal when two events of a kind say the same (trace aside): exact repeats."""
    values = to_plain(event)
    values["trace"] = None
    plain = codec(type(event)).encode_plain(values)
    return hashlib.blake2b(plain, digest_size=16).digest()


def text_of(event: Posting) -> PostingText:
    """What encoders and summarisers read of an UPSERT."""
    place = event.location
    named = None
    if place is not None:
        named = place.text or ", ".join(part for part in (place.city, place.region, place.country) if part) or None
    return PostingText(
        title=event.title or "",
        company=event.company,
        location=named,
        grade=event.grade,
        category=event.category,
        skills=event.skills,
        description=event.description or "",
    )


def text_hash(text: PostingText) -> str:
    """32 hex digits, equal when the text that models read is equal: their answer can be used again."""
    parts = to_plain(text)
    digest = hashlib.blake2b(digest_size=16)
    for value in parts.values():
        for part in value if isinstance(value, list | tuple) else (value,):
            digest.update(b"\x00" if part is None else b"\x01" + part.encode("utf-8", "surrogatepass") + b"\x00")
        digest.update(b"\x02")
    return digest.hexdigest()


def material_class(attributes: Attributes) -> str:
    """32 hex digits, equal when a person who was told of a posting need not be told again.

    What counts is what somebody decides by: title, company, place, terms and pay. Case and spacing do not.
    """
    place, salary = attributes.location or Location(), attributes.salary or Salary()
    parts = (
        attributes.title,
        attributes.company,
        place.country,
        place.region,
        place.city or place.text,
        attributes.remote.value,
        attributes.employment_type.value,
        attributes.seniority.value,
        attributes.grade,
        salary.min,
        salary.max,
        salary.currency,
        salary.period.value,
    )
    said = json.dumps([" ".join(part.casefold().split()) if isinstance(part, str) else part for part in parts])
    return hashlib.blake2b(said.encode(), digest_size=16).hexdigest()
