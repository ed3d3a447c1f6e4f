"""What the planner looks at, what it leaves out, what it chooses and how it says so."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_pages import SmallPages
from store_inputs import attributes, trees, upsert
from store_oracle import passes

from penstock.retrieval.search.plan import GATHER_BELOW, Choice, estimate, plan
from penstock.retrieval.search.program import compile_tree
from penstock.retrieval.store.page import BLOCK
from penstock.schemas.events import Remote
from penstock.schemas.filters import all_of, in_range, is_in, negate

SLOTS = 6 * BLOCK
rows = st.lists(
    st.tuples(
        st.integers(0, SLOTS - 1),
        attributes,
        st.none() | st.integers(0, 60),
        st.sampled_from(["default", "default", "other"]),
    ),
    max_size=12,
    unique_by=lambda row: row[0],
)


def planned(pages, tree=None, now_ms=0, tenant="default"):
    program = None if tree is None else compile_tree(tree, pages)
    return plan(program, pages.pages, pages.zones, now_ms, pages.tenants.get(tenant))


@given(drawn=rows, tree=st.none() | trees, now_ms=st.integers(0, 70))
def test_every_row_that_can_be_an_answer_is_looked_at(drawn, tree, now_ms):
    updates = [upsert(f"p{slot}", tenant=tenant, expires_at=expires, **row) for slot, row, expires, tenant in drawn]
    pages = SmallPages(updates, [slot for slot, *_ in drawn])
    made = planned(pages, tree, now_ms)
    looked, in_blocks = set(), set()
    for part in made.parts:
        first = pages.pages[part.page].first
        looked |= {first + row for row in np.arange(pages.page_rows)[part.rows].tolist()}
        in_blocks |= {first // BLOCK + block for block in part.blocks.tolist()}
        assert part.blocks.dtype == np.int64 and sorted(part.blocks.tolist()) == part.blocks.tolist()
    for slot, update in pages.updates.items():
        live = update.expires_at is None or update.expires_at > now_ms
        if update.tenant == "default" and live and (tree is None or passes(update, tree)):
            assert slot in looked and slot // BLOCK in in_blocks
    filled = {slot // BLOCK for slot in pages.updates}
    assert in_blocks <= filled
    assert (made.blocks, made.held) == (len(filled), len(pages.updates))
    assert made.blocks - made.skipped - made.pruned == len(in_blocks)
    assert made.rows == sum(slot // BLOCK in in_blocks for slot in pages.updates)
    assert 0 <= made.share <= 1
    assert (made.choice is Choice.NOTHING) == (not in_blocks)


@given(drawn=rows, tree=trees)
def test_estimates_are_shares_and_nothing_is_expected_where_nothing_is_possible(drawn, tree):
    pages = SmallPages([upsert(f"p{slot}", **row) for slot, row, *_ in drawn], [slot for slot, *_ in drawn])
    program = compile_tree(tree, pages)
    for zones in pages.zones:
        shares = estimate(program, zones, len(drawn))
        assert shares.shape == (len(zones.rows),) and ((shares >= 0) & (shares <= 1)).all()


def shelf():
    """Six blocks, a thousand milliseconds each; in every block half of the rows are remote."""
    return SmallPages(
        [
            upsert(
                f"p{slot}",
                posted_at=slot // BLOCK * 1_000 + slot % BLOCK * 7,
                remote=Remote.REMOTE if slot % 2 else Remote.ONSITE,
                expires_at=5_000 if slot < BLOCK else None,
                company=f"company {slot}",
            )
            for slot in range(SLOTS)
        ]
    )


@pytest.mark.parametrize(
    ("tree", "choice", "pruned"),
    [
        (None, Choice.DENSE, 0),
        (is_in("remote", "REMOTE"), Choice.DENSE, 0),
        (in_range("posted_at", minimum=1_000), Choice.PRUNED, 1),
        (all_of(in_range("posted_at", minimum=5_000), is_in("remote", "REMOTE")), Choice.PRUNED, 5),
        (in_range("posted_at", 5_000, 5_050), Choice.GATHER, 5),
        (is_in("posting_id", "p7"), Choice.GATHER, 0),
        (is_in("company", "nobody"), Choice.NOTHING, 6),
        (negate(is_in("remote", "REMOTE", "ONSITE")), Choice.NOTHING, 6),
    ],
)
def test_what_is_chosen(tree, choice, pruned):
    made = planned(shelf(), tree)
    assert (made.choice, made.pruned, made.skipped) == (choice, pruned, 0)


def test_estimates_come_near_on_even_values():
    pages = shelf()
    for tree, rate in (
        (is_in("remote", "REMOTE"), 0.5),
        (in_range("posted_at", 0, 444), 0.5 / 6),
        (all_of(is_in("remote", "REMOTE"), in_range("posted_at", minimum=3_000)), 0.25),
        (negate(in_range("posted_at", minimum=3_000)), 0.5),
        (is_in("posting_id", "p1", "p2"), 2 / SLOTS),
    ):
        passed = sum(passes(update, tree) for update in pages.updates.values())
        assert passed / SLOTS == pytest.approx(rate, rel=0.1)
        assert planned(pages, tree).pass_rate == pytest.approx(rate, rel=0.1)


def test_expired_blocks_and_other_tenants_are_skipped():
    pages = shelf()
    assert planned(pages, now_ms=4_999).skipped == 0
    made = planned(pages, now_ms=5_000)
    assert (made.skipped, made.pruned, [part.blocks.tolist() for part in made.parts]) == (1, 0, [[1, 2], [0, 1, 2]])
    nobody = planned(pages, tenant="nobody")
    assert (nobody.choice, nobody.parts, nobody.skipped) == (Choice.NOTHING, (), 6)


def test_rows_are_a_slice_where_blocks_lie_close_and_places_where_they_do_not():
    updates = [upsert("a", posted_at=1), upsert("b", posted_at=1)]
    close = SmallPages(updates, [0, 2 * BLOCK], pages=1, blocks=8)
    assert planned(close).parts[0].rows == slice(0, 3 * BLOCK)
    apart = SmallPages(updates, [0, 5 * BLOCK], pages=1, blocks=8)
    (part,) = planned(apart).parts
    assert part.rows.tolist() == [*range(BLOCK), *range(5 * BLOCK, 6 * BLOCK)]


def test_a_plan_is_revised_once_the_rows_are_counted():
    made = planned(shelf(), is_in("remote", "REMOTE"))
    few = made.revised(int(SLOTS * GATHER_BELOW) - 1)
    assert (made.choice, few.choice) == (Choice.DENSE, Choice.GATHER)
    assert few.reasons == (
        "6 of 6 blocks are looked at",
        "an estimated 50.00% of their rows pass: dense scan",
        "29.82% of their rows pass, less than 30%: gather",
    )
    assert few.revised(SLOTS).choice is Choice.DENSE


def test_a_plan_says_what_is_left_out_and_why():
    made = planned(shelf(), in_range("posted_at", minimum=4_000), now_ms=5_000)
    assert made.reasons == (
        "2 of 6 blocks are looked at; 1 hold nothing that the tenant can see now; 3 are ruled out by their zone maps",
        "an estimated 100.00% of their rows pass, and 67% of the blocks are left out: zone-pruned scan",
    )
    empty = planned(SmallPages([]), in_range("posted_at", minimum=4_000))
    assert empty.reasons == ("0 of 0 blocks are looked at", "no block can hold a row that passes")
