"""The rules of events: bounds at their edges, every refusal naming its field, and the identity of content."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.schemas import validate
from penstock.schemas.errors import InvalidRecord
from penstock.schemas.events import (
    EnrichedPosting,
    Enrichment,
    Location,
    Op,
    Page,
    Posting,
    Promotion,
    RankClass,
    Salary,
    SearchQuery,
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
