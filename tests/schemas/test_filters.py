"""The filter tree's own rules and its text form."""

import pytest

from penstock.schemas import filters
from penstock.schemas.errors import InvalidRecord
from penstock.schemas.events import Filter, FilterKind, Missing, PayPeriod
from penstock.schemas.filters import all_of, any_of, check, describe, in_range, is_in, near, negate, parse


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("remote=remote", is_in("remote", "REMOTE")),
        ("employment_type=full-time, CONTRACT", is_in("employment_type", "FULL_TIME", "CONTRACT")),
        ("salary.annual_max>=60_000", in_range("salary.annual_max", minimum=60000.0)),
        ("posted_at>=2025-11-21T09:40:00Z", in_range("posted_at", minimum=1_763_718_000_000.0)),
        ("posted_at<=1763718000000", in_range("posted_at", maximum=1_763_718_000_000.0)),
        ("location~39.96,-82.99,50km", near(39.96, -82.99, 50.0)),
        ("!company=Initech", negate(is_in("company", "Initech"))),
        ("grade?=GS-12", is_in("grade", "GS-12", missing=Missing.INCLUDE)),
    ],
)
def test_the_text_form(text, tree):
    assert parse(text) == tree


@pytest.mark.parametrize(
    ("text", "field", "expected"),
    [
        ("salary>=60000", "filter", "salary.annual_max"),
        ("salary.annual_max>=lots", "salary.annual_max", "a number"),
        ("remote=MARS", "remote", "ONSITE, HYBRID, REMOTE"),
        ("remote=UNKNOWN", "remote", "ONSITE"),
        ("remote>=1", "filter (remote)", "IN on a symbol field"),
        ("salary.annual_min=5", "filter (salary.annual_min)", "RANGE"),
        ("company=", "filter.values", "at least one"),
        ("location~1,2", "location", "LATITUDE"),
        ("location~95,2,3km", "filter.lat", "degrees north"),
        ("location~1,2,0km", "filter.radius_km", "kilometres"),
        ("posted_at>=2025-11-21", "posted_at", "offset"),
        ("words only", "filter", "FIELD=VALUE"),
    ],
)
def test_a_bad_text_names_field_and_expectation(text, field, expected):
    with pytest.raises(InvalidRecord) as error:
        parse(text)
    assert error.value.field == field
    assert expected in error.value.expected


@pytest.mark.parametrize(
    ("tree", "field"),
    [
        (Filter(kind=FilterKind.UNKNOWN), "filters.kind"),
        (Filter(kind=FilterKind.ALL), "filters"),
        (Filter(kind=FilterKind.NOT, children=(is_in("grade", "a"), is_in("grade", "b"))), "filters"),
        (Filter(kind=FilterKind.ALL, field="grade", children=(is_in("grade", "a"),)), "filters.field"),
        (all_of(is_in("grade", "a"), is_in("colour", "red")), "filters.children[1].field"),
        (Filter(kind=FilterKind.IN, field="grade", values=("a",), missing=Missing.UNKNOWN), "filters.missing"),
        (in_range("salary.annual_min"), "filters (salary.annual_min)"),
        (in_range("salary.annual_min", minimum=float("nan")), "filters (salary.annual_min)"),
    ],
)
def test_a_bad_tree_names_its_node(tree, field):
    with pytest.raises(InvalidRecord) as error:
        check(tree)
    assert error.value.field == field


def test_trees_are_bounded():
    deep = is_in("grade", "a")
    for _ in range(filters.MAX_DEPTH):
        deep = negate(deep)
    with pytest.raises(InvalidRecord, match="deep"):
        check(deep)
    with pytest.raises(InvalidRecord, match="nodes"):
        check(any_of(*[is_in("grade", str(n)) for n in range(filters.MAX_NODES)]))


@pytest.mark.parametrize(
    "text",
    ["remote=REMOTE", "!company=Initech", "grade?=GS-12", "salary.annual_max>=60000", "location~39.96,-82.99,50km"],
)
def test_describe_is_the_inverse_of_parse(text):
    assert describe(parse(text)) == text


def test_describe_groups():
    tree = all_of(is_in("remote", "REMOTE"), any_of(is_in("grade", "a"), negate(is_in("grade", "b"))))
    assert describe(tree) == "remote=REMOTE AND (grade=a OR !grade=b)"


def test_annual_pay():
    assert filters.annual(20.0, PayPeriod.HOUR) == 41_600.0
    assert filters.annual(20.0, PayPeriod.UNKNOWN) is None
    assert filters.annual(None, PayPeriod.YEAR) is None
    assert all_of(None, None) is None
