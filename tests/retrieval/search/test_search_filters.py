"""Filters over columns against filters read off the record; three values; words, places and expiry of meaning."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_inputs import attributes, trees, upsert
from store_oracle import passes

from penstock.retrieval.store.store import Store
from penstock.schemas.errors import InvalidRecord
from penstock.schemas.events import Filter, FilterKind, Location, Missing, Remote, Salary
from penstock.schemas.filters import all_of, any_of, in_range, is_in, near, negate, parse


def store_of(*updates):
    store = Store(capacity=2)
    store.apply(updates, now_ms=0)
    return store


def found(store, tree):
    return {hit.posting_id for hit in store.search(None, tree, 100, now_ms=0).hits}


@given(rows=st.lists(attributes, max_size=10), tree=trees)
def test_any_tree_on_any_rows(rows, tree):
    batch = [upsert(f"p{i}", expires_at=None if i % 2 else 10 + i, **row) for i, row in enumerate(rows)]
    wanted = {update.posting_id for update in batch if passes(update, tree)}
    assert found(store_of(*batch), tree) == wanted


@pytest.mark.parametrize("nots", range(4))
@pytest.mark.parametrize("missing", [Missing.EXCLUDE, Missing.INCLUDE])
def test_missing_decides_whatever_nots_stand_above(nots, missing):
    tree = is_in("company", "Acme", missing=missing)
    for _ in range(nots):
        tree = negate(tree)
    store = store_of(upsert("acme", company="ACME"), upsert("other", company="Initech"), upsert("none"))
    known = {"acme"} if nots % 2 == 0 else {"other"}
    assert found(store, tree) == known | ({"none"} if missing is Missing.INCLUDE else set())


def test_a_negated_group_is_pushed_to_its_clauses():
    store = store_of(upsert("a", company="Acme", grade="1"), upsert("b", company="Acme"), upsert("c", grade="1"))
    inner = all_of(is_in("company", "Acme"), is_in("grade", "1", missing=Missing.INCLUDE))
    assert found(store, negate(inner)) == {"b"}  # "b" lacks a grade, which INCLUDE lets through; "c" lacks a company


def test_an_unknown_symbol_is_missing():
    store = store_of(upsert("r", remote=Remote.REMOTE), upsert("u", remote=Remote.UNKNOWN))
    assert found(store, is_in("remote", "REMOTE")) == {"r"}
    assert found(store, negate(is_in("remote", "REMOTE"))) == set()
    assert found(store, is_in("remote", "ONSITE", missing=Missing.INCLUDE)) == {"u"}


def test_title_words_match_by_stem_as_people_type_them():
    store = store_of(upsert("p", title="Nursing Assistants, GS 05"), upsert("q", title="Cook"))
    for typed in ("nurse", "Nurses", "assistant", "gs-5"):
        assert found(store, is_in("title.terms", typed)) == {"p"}, typed
    assert found(store, negate(is_in("title.terms", "cooking"))) == {"p"}


def test_pay_is_compared_by_the_year():
    store = store_of(
        upsert("hour", salary=Salary(min=30.0, period="HOUR")),  # 62,400 a year
        upsert("month", salary=Salary(min=5_000.0, period="MONTH")),  # 60,000
        upsert("what", salary=Salary(min=99_999.0)),
    )
    assert found(store, parse("salary.annual_min>=60001")) == {"hour"}


def test_a_radius_crosses_the_date_line_and_the_pole():
    store = store_of(
        upsert("east", location=Location(lat=0.0, lon=179.95)),
        upsert("pole", location=Location(lat=89.95, lon=100.0)),
        upsert("far", location=Location(lat=0.0, lon=0.0)),
        upsert("none"),
    )
    assert found(store, near(0.0, -179.95, 20)) == {"east"}
    assert found(store, near(89.95, -80.0, 20)) == {"pole"}
    assert found(store, near(90.0, 0.0, 20_038)) == {"east", "pole", "far"}


def test_many_values_of_one_posting_are_all_searched():
    store = store_of(upsert("p", skills=tuple(f"skill {i}" for i in range(100))), upsert("q", skills=("Skill 3",)))
    assert found(store, is_in("skills", "SKILL 99", "nothing")) == {"p"}
    assert found(store, is_in("skills", "skill 3")) == {"p", "q"}


def test_holds_asks_for_values_and_ignores_nots_and_missing():
    store = store_of(upsert("p", company="Acme", location=Location(region="OH", city="Columbus")), upsert("q"))
    store.apply([upsert("late", company="Hooli", expires_at=5)], now_ms=0)

    def held(tree, now_ms=0, tenant="default"):
        return store.holds(tree, now_ms=now_ms, tenant=tenant)

    assert held(is_in("company", "acme"))
    assert held(negate(is_in("company", "acme")))
    assert not held(is_in("company", "Initech", missing=Missing.INCLUDE))
    assert held(all_of(is_in("location.region", "OH"), is_in("location.city", "columbus")))
    assert not held(all_of(is_in("location.region", "GA"), is_in("location.city", "columbus")))
    assert held(any_of(is_in("company", "Initech"), is_in("company", "Hooli")), now_ms=4)
    assert not held(is_in("company", "Hooli"), now_ms=5)
    assert not held(is_in("company", "acme"), tenant="other")


def test_explain_counts_clause_by_clause():
    store = store_of(upsert("a", company="Acme", posted_at=5), upsert("b", company="Initech"), upsert("c", posted_at=9))
    tree = all_of(negate(is_in("company", "Acme", missing=Missing.INCLUDE)), in_range("posted_at", minimum=6))
    said = store.explain(tree, now_ms=0)
    assert (said.rows, said.passed) == (3, 1)
    assert [(c.clause, c.passed, c.missing) for c in said.clauses] == [
        ("!(company?=Acme)", 2, 1),
        ("posted_at>=6", 1, 1),
    ]


@pytest.mark.parametrize(
    ("tree", "field"),
    [
        (is_in("colour", "red"), "filters.field"),
        (in_range("company", minimum=1), "filters (company)"),
        (is_in("remote", "MOON"), "remote"),
        (Filter(kind=FilterKind.ALL), "filters"),
    ],
)
def test_a_filter_that_is_wrong_names_its_field(tree, field):
    with pytest.raises(InvalidRecord) as error:
        Store().search(None, tree, 1, now_ms=0)
    assert error.value.field == field
