"""Clause programs over rows and over zone maps, against filters read off the record."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from packed_programs import run
from small_pages import SmallPages
from store_inputs import attributes, trees, upsert
from store_oracle import passes

from penstock.retrieval.search.filters import leaves, pushed
from penstock.retrieval.search.program import Op, compile_tree, passing, possible
from penstock.retrieval.store.page import BLOCK
from penstock.retrieval.store.zones import signature_bits
from penstock.schemas.errors import InvalidRecord
from penstock.schemas.events import Location, Missing, Remote
from penstock.schemas.filters import all_of, any_of, in_range, is_in, near, negate

SLOTS = 6 * BLOCK  # of two pages with three blocks

ids = st.builds("{}{}".format, st.sampled_from("pP"), st.integers(0, 5))
rows = st.lists(
    st.tuples(ids, st.integers(0, SLOTS - 1), attributes, st.none() | st.integers(0, 60)),
    max_size=12,
    unique_by=(lambda row: row[0], lambda row: row[1]),
)
# Words get these codes: one after the other, or all with one bit of a signature.
SAME_BIT = [
    code for code in range(9_000) if signature_bits(np.asarray([code], np.int32)) == signature_bits(np.int32([5]))
]
codings = st.sampled_from([None, SAME_BIT])


def pages_of(drawn, **more):
    updates = [upsert(id_, expires_at=expires, **row) for id_, _, row, expires in drawn]
    return SmallPages(updates, [slot for _, slot, _, _ in drawn], **more)


def found(pages, tree):
    """The slots that pass and hold a row."""
    program = compile_tree(tree, pages)
    out = set()
    for page in pages.pages:
        mask = passing(program, page, pages, slice(0, page.rows))
        assert mask.dtype == bool and mask.shape == (page.rows,)
        out |= {page.first + row for row in np.flatnonzero(mask).tolist()}
    return out & set(pages.updates)


def wanted(pages, tree):
    return {slot for slot, update in pages.updates.items() if passes(update, tree)}


@given(drawn=rows, tree=trees, codes=codings)
def test_any_program_on_any_rows(drawn, tree, codes):
    pages = pages_of(drawn, codes=codes)
    assert found(pages, tree) == wanted(pages, tree)


@given(drawn=rows, tree=trees, data=st.data())
def test_a_subset_of_rows_is_judged_as_the_whole_is(drawn, tree, data):
    pages = pages_of(drawn)
    program = compile_tree(tree, pages)
    for page in pages.pages:
        whole = passing(program, page, pages, slice(None))
        some = data.draw(st.lists(st.integers(0, page.rows - 1), max_size=20))
        some = np.asarray(some + [slot - page.first for slot in pages.slots_of(page)], np.int64)
        assert passing(program, page, pages, some).tolist() == whole[some].tolist()
        start, stop = sorted(data.draw(st.tuples(*[st.integers(0, page.rows)] * 2)))
        assert passing(program, page, pages, slice(start, stop)).tolist() == whole[start:stop].tolist()


@given(drawn=rows, tree=trees, codes=codings)
def test_no_block_with_a_row_that_passes_is_ruled_out(drawn, tree, codes):
    pages = pages_of(drawn, codes=codes)
    program = compile_tree(tree, pages)
    needed = wanted(pages, tree)
    for page, zones in zip(pages.pages, pages.zones, strict=True):
        blocks = {(slot - page.first) // BLOCK for slot in needed if slot in pages.slots_of(page)}
        assert blocks <= set(np.flatnonzero(possible(program, zones)).tolist())


@given(drawn=rows, tree=trees)
def test_a_packed_program_says_the_same_row_by_row(drawn, tree):
    pages = pages_of(drawn)
    packed = compile_tree(tree, pages).packed()
    assert (packed.steps.dtype, packed.codes.dtype) == (np.int32, np.int32)
    assert (packed.numbers.dtype, packed.hashes.dtype) == (np.float64, np.uint64)
    agreed = set()
    for slot in pages.updates:
        page = pages.pages[slot // pages.page_rows]
        more = {}
        for field, code, at in pages._past_eight:
            if at == slot:
                more.setdefault(field, []).append(code)
        if run(packed, page, slot - page.first, more):
            agreed.add(slot)
    assert agreed == wanted(pages, tree)


@given(tree=trees)
def test_a_program_is_as_long_as_its_tree_at_most(tree):
    pages = SmallPages([])
    program = compile_tree(tree, pages)
    clauses = [one for one in program.instructions if one.op not in (Op.ALL, Op.ANY)]
    assert len(clauses) == len(list(leaves(pushed(tree))))
    assert all(one.count > 1 for one in program.instructions if one.op in (Op.ALL, Op.ANY))
    assert sum(len(one.instructions) for one in program.conjuncts) in (
        len(program.instructions),
        len(program.instructions) - 1,
    )


# --- by hand -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [Missing.EXCLUDE, Missing.INCLUDE])
@pytest.mark.parametrize("nots", range(3))
@pytest.mark.parametrize(
    ("field", "clause"),
    [
        ("company", lambda missing: is_in("company", "acme", missing=missing)),
        ("skills", lambda missing: is_in("skills", "sql", missing=missing)),
        ("remote", lambda missing: is_in("remote", "REMOTE", missing=missing)),
        ("posted_at", lambda missing: in_range("posted_at", minimum=0, missing=missing)),
        ("location", lambda missing: near(0.0, 0.0, 20_000, missing=missing)),
    ],
)
def test_of_rows_that_all_lack_the_attribute_missing_decides(field, clause, nots, missing):
    tree = clause(missing)
    for _ in range(nots):
        tree = negate(tree)
    pages = SmallPages([upsert("a"), upsert("b")], [0, 5 * BLOCK])
    said = missing is Missing.INCLUDE
    assert found(pages, tree) == ({0, 5 * BLOCK} if said else set()), field
    program = compile_tree(tree, pages)
    assert [possible(program, zones).tolist() for zones in pages.zones] == [[said, False, False], [False, False, said]]


def test_empty_dictionaries_match_nothing_and_rule_everything_out():
    pages = SmallPages([upsert("a")])
    for tree in (is_in("company", "acme"), is_in("skills", "sql"), is_in("posting_id", "b")):
        program = compile_tree(tree, pages)
        assert found(pages, tree) == set()
        assert not possible(program, pages.zones[0]).any()
    assert found(pages, negate(is_in("posting_id", "b"))) == {0}


def test_values_past_the_eighth_are_found_and_their_blocks_stay():
    skills = tuple(f"skill {i}" for i in range(100))
    slots = [BLOCK, 3 * BLOCK, 5 * BLOCK]  # the last two in the second page
    pages = SmallPages([upsert("a", skills=skills), upsert("b", skills=skills[:8]), upsert("c", skills=skills)], slots)
    for number in (0, 7, 8, 99):
        tree = is_in("skills", skills[number], "nothing")
        having = set(slots) if number < 8 else {slots[0], slots[2]}
        assert found(pages, tree) == having
        assert found(pages, negate(tree)) == set(slots) - having
        program = compile_tree(tree, pages)
        assert [possible(program, zones)[i] for zones, i in zip(pages.zones, (1, 2), strict=True)] == [True, True]
        for page in pages.pages:
            mine = np.asarray([slot - page.first for slot in slots if slot in pages.slots_of(page)], np.int64)
            told = passing(program, page, pages, mine[::-1])
            assert told.tolist() == [page.first + row in having for row in mine[::-1]]


def test_more_values_than_are_compared_one_by_one():
    pages = SmallPages([upsert(f"p{i}", company=f"c{i}", skills=(f"s{i}",)) for i in range(40)])
    for field, letter in (("company", "c"), ("skills", "s"), ("posting_id", "P")):
        tree = is_in(field, *(f"{letter}{i}" for i in range(3, 60)))
        assert found(pages, tree) == set(range(3, 40)), field
        assert found(pages, negate(tree)) == set(range(3)), field


def test_bounds_may_be_infinite_and_not_numbers_are_refused():
    pages = SmallPages([upsert("a", posted_at=3), upsert("b")])
    for low, high in ((-np.inf, np.inf), (3, np.inf), (-np.inf, 3), (3, 3)):
        tree = in_range("posted_at", low, high)
        assert found(pages, tree) == {0}
        assert possible(compile_tree(tree, pages), pages.zones[0]).tolist() == [True, False, False]
    assert found(pages, in_range("posted_at", 4, 3)) == set()
    with pytest.raises(InvalidRecord, match="a number"):
        compile_tree(in_range("posted_at", minimum=np.nan), pages)


def test_a_place_far_from_the_circle_rules_its_block_out_across_the_date_line_and_the_pole():
    places = [(39.96, -82.99), (0.0, 179.9), (0.0, -179.9), (89.9, 10.0), (52.5, 13.4)]
    updates = [upsert(f"p{i}", location=Location(lat=lat, lon=lon)) for i, (lat, lon) in enumerate(places)]
    pages = SmallPages(updates, [i * BLOCK for i in range(5)])

    def blocks(tree):
        program = compile_tree(tree, pages)
        return [i for i, can in enumerate(np.concatenate([possible(program, z) for z in pages.zones])) if can]

    assert blocks(near(40.0, -83.1, 100)) == [0]
    assert blocks(near(0.0, 179.95, 50)) == [1, 2]
    assert blocks(near(0.0, -179.95, 50)) == [1, 2]
    assert blocks(near(89.95, -170.0, 50)) == [3]
    assert blocks(negate(near(52.5, 13.4, 50))) == [0, 1, 2, 3, 4]


def test_conditions_are_met_cheapest_first_and_a_refused_row_is_not_looked_at_again():
    tree = all_of(
        is_in("skills", "sql"),
        any_of(is_in("company", "acme"), near(0, 0, 5)),
        all_of(in_range("posted_at", 1, 2), is_in("remote", "REMOTE")),
    )
    pages = SmallPages([upsert("a", remote=Remote.REMOTE, posted_at=1, company="acme", skills=("sql",))])
    program = compile_tree(tree, pages)
    ops = [[step.op for step in part.instructions] for part in program.conjuncts]
    assert ops == [[Op.IN_SYMBOLS], [Op.RANGE], [Op.ANY_CODE], [Op.IN_CODES, Op.WITHIN, Op.ANY]]
    looked = []

    class Watched:
        def rows_with(self, field, codes):
            looked.append(field)
            return np.zeros(0, np.int64)

    nobody = all_of(is_in("company", "nobody"), is_in("skills", "sql"))
    assert not passing(compile_tree(nobody, pages), pages.pages[0], Watched(), slice(None)).any()
    assert looked == []
    assert found(pages, tree) == {0}


@pytest.mark.parametrize("seed", range(5))
def test_clustered_rows_are_pruned_and_nothing_is_lost(seed):
    """A block a country and a week, as the store places rows."""
    rng = np.random.default_rng(seed)
    countries = ["US", "DE", "FR", "GB", "IN", "JP"]
    updates = [
        upsert(
            f"p{slot}",
            posted_at=int(1_000 * block + rng.integers(0, 1_000)),
            location=Location(country=countries[block % 6]),
            remote=Remote.REMOTE if block == 2 else Remote.ONSITE,
        )
        for block, slot in itertools.product(range(6), range(BLOCK))
    ]
    pages = SmallPages(updates)
    for tree, kept in (
        (is_in("location.country", "de"), 1),
        (in_range("posted_at", minimum=2_000, maximum=2_999), 1),
        (in_range("posted_at", minimum=4_000), 2),
        (all_of(is_in("location.country", "us", "jp"), in_range("posted_at", maximum=999)), 1),
        (any_of(is_in("remote", "REMOTE"), is_in("location.country", "in")), 2),
        (negate(is_in("remote", "ONSITE")), 1),
    ):
        program = compile_tree(tree, pages)
        assert sum(int(possible(program, zones).sum()) for zones in pages.zones) == kept
        assert found(pages, tree) == wanted(pages, tree) != set()
