"""Depth, pages, order and strictness: decisions on plain values."""

import base64
import struct
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.ranker import policy
from penstock.ranker.policy import DepthLimits, decide_window, next_cursor, order
from penstock.ranker.strictness import decide_strictness
from penstock.schemas import filters, validate
from penstock.schemas.errors import InvalidRecord
from penstock.schemas.events import Missing, Page, QueryVector, RankClass, RankQuery, RankRequest, Understood

LIMITS = DepthLimits(default=250, ceiling=2_000)


def request(**changes):
    made = RankRequest(request_id="r", deadline=10**13, query=RankQuery(text="nurse in ohio"))
    return replace(made, **changes)


def pages(available, size, depth, limits=LIMITS):
    """Page through `available` candidates as the pipeline does; what each page returned, by place in the ranking."""
    asked, out = request(page=Page(size=size), depth=depth), []
    while True:
        window = decide_window(asked, limits)
        in_block = max(0, min(window.stop, available) - window.start)
        out.append(range(window.start + window.first, window.start + min(window.last, in_block)))
        cursor = next_cursor(asked, window, in_block=in_block, lm_items=5, epoch=7, limits=limits)
        if cursor is None:
            return out
        asked = replace(asked, page=Page(size=size, cursor=cursor))
        assert decide_window(asked, limits).epoch == 7


@given(st.integers(0, 300), st.integers(1, 40), st.one_of(st.none(), st.integers(1, 60)), st.integers(1, 100))
def test_pages_cover_every_candidate_once_up_to_the_ceiling(available, size, depth, ceiling):
    limits = DepthLimits(default=30, ceiling=max(ceiling, size))
    seen = [place for page in pages(available, size, depth, limits) for place in page]
    assert seen == list(range(min(available, limits.ceiling)))


@given(st.integers(1, 1_000), st.one_of(st.none(), st.integers(1, 5_000)))
def test_depth_is_at_least_what_was_asked_and_the_page_and_at_most_the_ceiling(size, depth):
    window = decide_window(request(page=Page(size=size), depth=depth), LIMITS)
    assert window.asked == (depth or LIMITS.default)
    assert min(max(window.asked, size), LIMITS.ceiling) <= window.depth <= LIMITS.ceiling
    assert (window.first, window.last) == (0, size)
    assert window.stop == window.depth


@given(st.integers(1, 40), st.integers(1, 120), st.integers(0, 64))
def test_the_pages_of_a_block_are_ordered_alike_and_the_next_block_anew(size, available, lm_items):
    asked, limits = request(page=Page(size=size), depth=50), DepthLimits(50, 100)
    while asked is not None:
        window = decide_window(asked, limits)
        assert window.lm_items == (None if window.first == 0 else lm_items)
        in_block = max(0, min(window.stop, available) - window.start)
        cursor = next_cursor(asked, window, in_block=in_block, lm_items=lm_items, epoch=7, limits=limits)
        asked = None if cursor is None else replace(asked, page=Page(size=size, cursor=cursor))


def test_a_page_lies_in_one_block_so_that_no_page_scores_two():
    assert all(len(page) == 20 for page in pages(1_000, 20, 250))


def test_candidates_are_one_block_whatever_their_number():
    asked = request(candidates=("a", "b", "b", "c"), page=Page(size=2))
    window = decide_window(asked, LIMITS)
    assert (window.depth, window.stop) == (3, 3)
    cursor = next_cursor(asked, window, in_block=3, lm_items=5, epoch=1, limits=LIMITS)
    again = replace(asked, page=Page(size=2, cursor=cursor))
    window = decide_window(again, LIMITS)
    assert (window.start, window.first, window.last) == (0, 2, 4)
    assert next_cursor(again, window, in_block=3, lm_items=5, epoch=1, limits=LIMITS) is None


@pytest.mark.parametrize(
    "cursor",
    ["", "no cursor", "AAAA", "ä", base64.urlsafe_b64encode(struct.pack("<BIIIQ8s", 2, 5, 0, 0, 0, b"")).decode()],
)
def test_a_cursor_that_is_not_ours_is_refused_by_name(cursor):
    with pytest.raises(InvalidRecord, match=r"page\.cursor"):
        decide_window(request(page=Page(cursor=cursor)), LIMITS)


def test_a_cursor_that_somebody_changed_costs_nothing():
    asked = request()
    cursor = next_cursor(asked, decide_window(asked, LIMITS), in_block=250, lm_items=5, epoch=3, limits=LIMITS)

    def changed(place, value):
        fields = list(struct.unpack("<BIIIQ8s", base64.urlsafe_b64decode(cursor + "==")))
        fields[place] = value
        return base64.urlsafe_b64encode(struct.pack("<BIIIQ8s", *fields)).rstrip(b"=").decode()

    for offset in (2_000, 2**32 - 1):
        with pytest.raises(InvalidRecord, match=r"page\.cursor.*within the first 2000 candidates"):
            decide_window(request(page=Page(cursor=changed(1, offset))), LIMITS)
    assert decide_window(request(page=Page(cursor=changed(3, 2**32 - 2))), LIMITS).lm_items == 2_000


def test_a_cursor_belongs_to_its_query_and_not_to_its_request_id_or_vector():
    asked = request()
    cursor = next_cursor(asked, decide_window(asked, LIMITS), in_block=250, lm_items=5, epoch=3, limits=LIMITS)
    vector = QueryVector(space_id="s", encoder_id="e", dense=b"\0\0\0\0")
    same = request(request_id="other", page=Page(cursor=cursor), query=RankQuery(text="nurse in ohio", vector=vector))
    assert decide_window(same, LIMITS).epoch == 3
    with pytest.raises(InvalidRecord, match="this very query"):
        decide_window(request(page=Page(cursor=cursor), query=RankQuery(text="nurse in iowa")), LIMITS)


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("request_id", {"request_id": ""}),
        ("tenant", {"tenant": "t" * 257}),
        ("class", {"class_": RankClass.UNKNOWN}),
        ("query.text", {"query": RankQuery(text="x" * 9_000)}),
        ("query", {"query": RankQuery(text=" ")}),
        (
            "query.vector.dense",
            {"query": RankQuery(text="", vector=QueryVector(space_id="", encoder_id="", dense=b"123"))},
        ),
        (
            "query.vector.dense",
            {
                "query": RankQuery(
                    text="", vector=QueryVector(space_id="", encoder_id="", dense=np.float32("nan").tobytes())
                )
            },
        ),
        ("query.filters.field", {"query": RankQuery(text="x", filters=filters.is_in("colour", "red"))}),
        ("echo", {"echo": b"x" * (validate.MAX_ECHO_BYTES + 1)}),
        ("depth", {"depth": 0}),
        ("page.size", {"page": Page(size=1_001)}),
        ("candidates", {"candidates": ()}),
        ("candidates", {"candidates": ("x",) * 2_001}),
        ("candidates[1]", {"candidates": ("x", "")}),
    ],
)
def test_a_bad_request_is_refused_naming_the_field(field, changes):
    policy.check_request(request(echo=b"x" * validate.MAX_ECHO_BYTES), LIMITS)
    with pytest.raises(InvalidRecord) as caught:
        policy.check_request(request(**changes), LIMITS)
    assert caught.value.field == field


@given(
    st.lists(st.tuples(st.text(max_size=5), st.sampled_from([0.0, 0.25, 0.5])), unique_by=lambda x: x[0]), st.randoms()
)
def test_order_does_not_depend_on_how_candidates_came(pairs, random):
    def ranked(pairs):
        return [pairs[at][0] for at in order(np.array([score for _, score in pairs]), [name for name, _ in pairs])]

    shuffled = list(pairs)
    random.shuffle(shuffled)
    assert ranked(pairs) == ranked(shuffled)
    by_score = [dict(pairs)[name] for name in ranked(pairs)]
    assert by_score == sorted(by_score, reverse=True)


def understood(label, **changes):
    clause = filters.is_in("location.region", label, missing=Missing.INCLUDE)
    return Understood(label=label, span=label, filter=clause, **changes)


def test_only_what_needs_values_is_asked_for_and_what_no_posting_has_is_dropped_and_said():
    asked = []

    def holds(clauses):
        asked.append(clauses)
        return tuple(clause.values == ("OH",) for clause in clauses)

    own = filters.is_in("remote", "REMOTE")
    given = (
        understood("OH", needs_values=True),
        understood("ZZ", needs_values=True),
        understood("plain"),
        understood("off", needs_values=True, applied=False),
    )
    decided = decide_strictness(given, own, holds)
    assert asked == [(given[0].filter, given[1].filter)]
    assert [one.applied for one in decided.understood] == [True, False, True, False]
    assert decided.filters == filters.all_of(own, given[0].filter, given[2].filter)


def test_nothing_to_ask_asks_nothing():
    def holds(_):
        raise AssertionError("asked")

    assert decide_strictness((), None, holds).filters is None
