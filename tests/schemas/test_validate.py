"""The rules of events: bounds at their edges, every refusal naming its field, and the identity of content."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.schemas import validate
from penstock.schemas.errors import InvalidRecord
from penstock.schemas.events import (
    Cadence,
    EnrichedPosting,
    Enrichment,
    Location,
    Op,
    Page,
    Posting,
    Promotion,
    QuietHours,
    RankClass,
    Salary,
    SearchQuery,
    Subscription,
    SubscriptionState,
    Vector,
)
from penstock.schemas.filters import is_in

NOW = 1_763_718_000_000
YEAR = 365 * 86_400_000
GOOD = Posting(posting_id="p", version=0, title="Nurse", description="Cares for people.")


def check(event: Posting) -> None:
    validate.check_posting(event, now_ms=NOW, max_life_ms=YEAR)


@pytest.mark.parametrize(
    "event",
    [
        GOOD,
        Posting(posting_id="p", version=9, op=Op.DELETE),
        replace(GOOD, posting_id="x" * 256),
        replace(GOOD, title="x" * validate.MAX_TITLE_BYTES, description="x" * validate.MAX_DESCRIPTION_BYTES),
        replace(GOOD, expires_at=NOW + YEAR),
        replace(GOOD, expires_at=NOW - 1),
        replace(GOOD, location=Location(country="US", lat=-90.0, lon=180.0)),
        replace(GOOD, salary=Salary(min=0.0, max=0.0, currency="USD")),
        replace(GOOD, skills=("a",) * validate.MAX_SKILLS),
    ],
)
def test_good_postings_pass(event):
    check(event)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"posting_id": ""}, "posting_id"),
        ({"posting_id": "é" * 129}, "posting_id"),
        ({"tenant": ""}, "tenant"),
        ({"version": -1}, "version"),
        ({"op": Op.UNKNOWN}, "op"),
        ({"title": None}, "title"),
        ({"title": "  "}, "title"),
        ({"description": None}, "description"),
        ({"description": "x" * (validate.MAX_DESCRIPTION_BYTES + 1)}, "description"),
        ({"title": "é" * 513}, "title"),
        ({"company": "x" * 1025}, "company"),
        ({"skills": ("a",) * 101}, "skills"),
        ({"skills": ("a", "x" * 1025)}, "skills[1]"),
        ({"location": Location(country="USA")}, "location.country"),
        ({"location": Location(lat=1.0)}, "location"),
        ({"location": Location(lat=90.1, lon=0.0)}, "location.lat"),
        ({"location": Location(lat=0.0, lon=float("nan"))}, "location.lon"),
        ({"salary": Salary(min=2.0, max=1.0)}, "salary"),
        ({"salary": Salary(max=float("inf"))}, "salary.max"),
        ({"salary": Salary(currency="dollars")}, "salary.currency"),
        ({"expires_at": NOW + YEAR + 1}, "expires_at"),
        ({"posted_at": -1}, "posted_at"),
        ({"promotion": Promotion(campaign_id="c", bid=-1.0)}, "promotion.bid"),
    ],
)
def test_a_broken_rule_names_its_field(change, field):
    with pytest.raises(InvalidRecord) as error:
        check(replace(GOOD, **change))
    assert error.value.field == field


QUERY = SearchQuery(request_id="q", text="nurse")


def test_good_queries_pass():
    validate.check_query(QUERY)
    validate.check_query(replace(QUERY, text="", filters=is_in("remote", "REMOTE")))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"request_id": ""}, "request_id"),
        ({"text": " "}, "text"),
        ({"text": "x" * (validate.MAX_QUERY_BYTES + 1)}, "text"),
        ({"filters": is_in("colour", "red")}, "filters.field"),
        ({"class_": RankClass.UNKNOWN}, "class"),
        ({"deadline_ms": 0}, "deadline_ms"),
        ({"deadline_ms": validate.MAX_DEADLINE_MS + 1}, "deadline_ms"),
        ({"page": Page(size=0)}, "page.size"),
        ({"page": Page(size=1001)}, "page.size"),
        ({"person_id": ""}, "person_id"),
    ],
)
def test_a_broken_query_names_its_field(change, field):
    with pytest.raises(InvalidRecord) as error:
        validate.check_query(replace(QUERY, **change))
    assert error.value.field == field


def test_enriched_answers_carry_whole_planes():
    vector = Vector(space_id="s", encoder_id="e", dense=b"\x00\x01")
    good = EnrichedPosting(posting_id="p", version=1, text_hash="h", enrichment=Enrichment(vector=vector))
    validate.check_enriched(good)
    with pytest.raises(InvalidRecord, match="bfloat16"):
        validate.check_enriched(replace(good, enrichment=Enrichment(vector=replace(vector, dense=b"\x00\x01\x02"))))
    with pytest.raises(InvalidRecord, match="enrichment"):
        validate.check_enriched(replace(good, enrichment=Enrichment()))


def test_the_event_hash_leaves_only_the_trace_out():
    assert validate.event_hash(GOOD) == validate.event_hash(replace(GOOD, trace="00-1-2-01"))
    for change in ({"title": "Doctor"}, {"version": 1}, {"skills": ("a",)}, {"expires_at": NOW}, {"tenant": "t"}):
        assert validate.event_hash(GOOD) != validate.event_hash(replace(GOOD, **change))


def test_the_text_hash_sees_text_and_nothing_else():
    base = validate.text_hash(validate.text_of(GOOD))
    assert base == validate.text_hash(validate.text_of(replace(GOOD, version=8, expires_at=NOW, url="u")))
    for change in ({"title": "Doctor"}, {"grade": "GS-5"}, {"location": Location(city="Dayton")}, {"skills": ("a",)}):
        assert base != validate.text_hash(validate.text_of(replace(GOOD, **change)))


@given(st.lists(st.text(max_size=5), max_size=4), st.lists(st.text(max_size=5), max_size=4))
def test_the_text_hash_keeps_parts_apart(first, second):
    one, two = (validate.text_of(replace(GOOD, skills=tuple(skills))) for skills in (first, second))
    assert (validate.text_hash(one) == validate.text_hash(two)) == (first == second)


WANTED = Subscription(subscription_id="s", version=0, person_id="p", text="nurse")


@pytest.mark.parametrize(
    "event",
    [
        WANTED,
        replace(WANTED, text="", filters=is_in("company", "x")),
        replace(WANTED, min_score=0.0, max_per_day=1, time_zone="Asia/Kathmandu", digest_at="23:59"),
        replace(WANTED, min_score=1.0, quiet_hours=QuietHours(start="22:00", end="07:00"), cadence=Cadence.AUTO),
        replace(WANTED, state=SubscriptionState.SNOOZED, snoozed_until=NOW),
        # Whoever leaves need not know what they had asked for.
        Subscription(subscription_id="s", version=1, person_id="p", op=Op.DELETE, time_zone="Mars/Olympus"),
    ],
)
def test_good_subscriptions_pass(event):
    validate.check_subscription(event)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"subscription_id": ""}, "subscription_id"),
        ({"subscription_id": "é" * 129}, "subscription_id"),
        ({"person_id": ""}, "person_id"),
        ({"tenant": ""}, "tenant"),
        ({"version": -1}, "version"),
        ({"op": Op.UNKNOWN}, "op"),
        ({"text": " "}, "text"),
        ({"text": "x" * (validate.MAX_QUERY_BYTES + 1)}, "text"),
        ({"filters": is_in("colour", "red")}, "filters.field"),
        ({"cadence": Cadence.UNKNOWN}, "cadence"),
        ({"state": SubscriptionState.UNKNOWN}, "state"),
        ({"state": SubscriptionState.SNOOZED}, "snoozed_until"),
        ({"snoozed_until": -1}, "snoozed_until"),
        ({"max_per_day": 0}, "max_per_day"),
        ({"min_score": 1.1}, "min_score"),
        ({"min_score": float("nan")}, "min_score"),
        ({"min_score": 0.5, "text": "", "filters": is_in("company", "x")}, "min_score"),
        ({"time_zone": "Mars/Olympus"}, "time_zone"),
        ({"time_zone": ""}, "time_zone"),
        ({"time_zone": "../../etc/passwd"}, "time_zone"),
        ({"time_zone": "America"}, "time_zone"),
        ({"time_zone": "x\0"}, "time_zone"),
        ({"time_zone": "é" * 5_000}, "time_zone"),
        ({"quiet_hours": QuietHours(start="7:00", end="08:00")}, "quiet_hours.start"),
        ({"quiet_hours": QuietHours(start="07:00", end="24:00")}, "quiet_hours.end"),
        ({"quiet_hours": QuietHours(start="07:00", end="07:00")}, "quiet_hours.end"),
        ({"digest_at": "07:00 "}, "digest_at"),
        ({"digest_at": "٠٧:٠٠"}, "digest_at"),
        ({"channel": "x" * 2_000}, "channel"),
        ({"locale": "x" * 2_000}, "locale"),
        ({"trace": "x" * 1_000}, "trace"),
    ],
)
def test_bad_subscriptions_name_the_field(change, field):
    with pytest.raises(InvalidRecord) as caught:
        validate.check_subscription(replace(WANTED, **change))
    assert caught.value.field == field


@given(st.text(max_size=60))
def test_any_time_zone_is_known_or_refused(name):
    try:
        validate.check_subscription(replace(WANTED, time_zone=name))
    except InvalidRecord as error:
        assert error.field == "time_zone"


def test_two_subscriptions_are_the_same_event_when_they_differ_in_their_trace_alone():
    assert validate.event_hash(WANTED) == validate.event_hash(replace(WANTED, trace="t"))
    assert validate.event_hash(WANTED) != validate.event_hash(replace(WANTED, text="doctor"))
