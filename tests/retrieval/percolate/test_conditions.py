"""What a batch is told of the conditions of standing queries is what their clause programs say, and so are scores."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from store_inputs import attributes, query, trees, upsert, vector

from penstock.kernels.filtered_topk.reference import exact_dot
from penstock.retrieval.percolate import scan
from penstock.retrieval.percolate.batch import Batch
from penstock.retrieval.percolate.blocks import build
from penstock.retrieval.percolate.conditions import Conditions, pack, unpack
from penstock.retrieval.percolate.entries import CONDITIONS, Trees, draft_of
from penstock.retrieval.percolate.exact import Exact
from penstock.retrieval.percolate.store import StandingQueries
from penstock.retrieval.search.evaluate import evaluate
from penstock.retrieval.search.filters import Group, pushed
from penstock.retrieval.store.columns import Columns
from penstock.schemas.filters import all_of, any_of, is_in, negate

from standing_inputs import ended, shown, standing  # isort: skip


@st.composite
def postings(draw):
    return [upsert(f"P{i} ", **draw(attributes)) for i in range(draw(st.integers(1, 70)))]


@settings(max_examples=150, deadline=None)
@given(batch=postings(), several=st.lists(trees, min_size=1, max_size=8))
def test_conditions_say_what_clause_programs_say(batch, several):
    columns, conditions, known = Columns(len(batch)), Conditions(batch), Trees()
    for row, update in enumerate(batch):
        columns.write(row, update)
    compiled = [known.of(tree) for tree in several]
    asked = list(dict.fromkeys(one for tree in compiled for one in tree.conditions))
    found = dict(zip(asked, unpack(conditions.rows(asked), len(batch)), strict=True))
    for tree, given_ in zip(compiled, several, strict=True):
        wanted = evaluate(pushed(given_), columns, len(batch))
        assert np.array_equal(np.logical_and.reduce([found[one] for one in tree.conditions]), wanted)
        bits = conditions.bits(tree.node)
        assert [bits >> row & 1 == 1 for row in range(len(batch))] == wanted.tolist()


@given(st.integers(0, 5), st.integers(1, 200), st.integers(0, 99))
def test_bits_hold_what_was_packed(rows, count, seed):
    mask = np.random.default_rng(seed).random((rows, count)) < 0.3
    packed = pack(mask, -(-count // 64))
    assert packed.shape == (rows, -(-count // 64)) and np.array_equal(unpack(packed, count), mask)


def test_numbers_of_conditions_come_back_once_nobody_has_them():
    known = Trees()
    first = known.of(all_of(is_in("company", "x"), is_in("grade", "y")))
    numbers = {one.number for one in first.conditions}
    assert len(numbers) == 2 and 0 not in numbers
    second = known.of(is_in("company", "x"))
    assert second.conditions[0] is first.conditions[0]
    del first
    third = known.of(is_in("company", "z"))
    assert third.conditions[0].number in numbers - {second.conditions[0].number}


def test_many_conditions_of_one_tree_are_a_few():
    known = Trees()
    tree = known.of(all_of(*(is_in("company", f"c{i}", "all") for i in range(9))))
    assert len(tree.conditions) == CONDITIONS and isinstance(tree.conditions[-1].node, Group)
    store = StandingQueries()
    store.apply([standing("s", filters=tree.filter)], now_ms=0)
    (one, other) = store.percolate([upsert("p", company="all"), upsert("p", company="c3")], now_ms=0)[0].found
    assert len(one.matches) == 1 and not other.matches


@pytest.mark.parametrize("tile", [1, 3, 2_048])
def test_tiles_do_not_show(monkeypatch, tile):
    rng = np.random.default_rng(tile)
    queries = [
        standing(
            f"s{i:03}",
            vector=query(rng.choice([0.0, 1.0, -1.0], 6), rng.choice([0.0, 0.5], 16) if i % 2 else None),
            filters=is_in("company", f"c{i % 3}") if i % 4 else None,
            threshold=1.0,
        )
        for i in range(50)
    ]
    batch = [upsert(f"p{i}", vector=vector(rng.choice([0.0, 1.0], 6), [1] * 16), company=f"c{i % 4}") for i in range(9)]
    stores = [StandingQueries(block=size) for size in (7, 64)]
    for store in stores:
        store.apply(queries, now_ms=0)
    whole = [shown(one.matches) for one in stores[1].percolate(batch, now_ms=0)[0].found]
    monkeypatch.setattr(scan, "TILE", tile)
    assert [shown(one.matches) for one in stores[0].percolate(batch, now_ms=0)[0].found] == whole
    assert any(whole)


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    width=st.sampled_from([1, 2, 6, 384]),
    spread=st.sampled_from([0, 3, 30]),
    scale=st.sampled_from([1.0, 2.0**-60, 2.0**50]),
)
def test_scores_are_the_correctly_rounded_ones(seed, width, spread, scale):
    """Whatever the exponents: values of one size, whose sums tie half way, and of sizes that no grid holds."""
    rng = np.random.default_rng(seed)

    def values(count):
        return rng.standard_normal((count, width)) * 2.0 ** rng.integers(-spread, spread + 1, (count, width)) * scale

    batch = Batch([upsert(f"p{i}", vector=vector(row, [3] * 16)) for i, row in enumerate(values(9))], 0)
    known = Trees()
    terms = np.where(rng.random((20, 16)) < 0.5, rng.standard_normal((20, 16)) * 2.0 ** (2 * spread), 0)
    drafts = [
        draft_of(standing(f"s{i}", vector=query(row.astype(np.float32), terms[i])), known, 0)
        for i, row in enumerate(values(20))
    ]
    scored = build(0, 1, drafts[0].entry.space, None, np.zeros(0, np.int64), drafts).scored
    (group,) = batch.groups
    rows, columns = (each.ravel() for each in np.indices((20, 9)))
    dense, lexical = Exact(group).scores(scored, rows, columns)
    asked = torch.from_numpy(scored.dense.numpy()[rows])
    assert np.array_equal(dense, exact_dot(group.dense[torch.from_numpy(columns)], asked).numpy())
    asked = torch.from_numpy(terms.astype(np.float32)[rows])
    assert np.array_equal(lexical, exact_dot(group.sketch[torch.from_numpy(columns)], asked).numpy())


# --- bad input: each its own outcome -----------------------------------------------------------------------------


def test_of_one_subscription_in_one_batch_the_newest_stands_and_of_one_version_the_later():
    store = StandingQueries()
    batch = [standing("s", 2, threshold=0.1), standing("s", 1), standing("t", 1), ended("t", 1)]
    applied = store.apply([*batch, standing("s", 2, filters=is_in("company", "x"))], now_ms=0)
    assert (applied.stale, applied.refused, store.epoch) == (1, (), 1)
    assert store.standing(["s", "t"], tenant="default") == ((2, True), (1, False))
    assert not store.percolate([upsert("p")], now_ms=0)[0].found[0].matches


def test_removing_the_unknown_leaves_a_tombstone_that_older_records_do_not_pass():
    store = StandingQueries()
    assert store.apply([ended("s", 3)], now_ms=0).accepted == (0,)
    assert store.apply([standing("s", 2)], now_ms=0).stale == 1
    counts = store.counts()
    assert (counts.live, counts.tombstones) == (0, 1)


def test_vectors_of_other_widths_meet_nothing_and_are_counted():
    store = StandingQueries()
    store.apply([standing("s", vector=query([1.0] * 6), threshold=-1.0), standing("t")], now_ms=0)
    found = store.percolate([upsert("p", vector=vector([1.0] * 5)), upsert("q")], now_ms=0)[0]
    assert [[m.subscription_id for m in one.matches] for one in found.found] == [["t"], ["s", "t"]]
    assert found.other_space == 1


@pytest.mark.parametrize("bad", [[float("nan")] * 6, [float("inf")] + [0.0] * 5])
def test_a_posting_without_a_finite_vector_meets_filters_alone(bad):
    store = StandingQueries()
    store.apply([standing("s", vector=query([1.0] * 6), threshold=-1.0), standing("t")], now_ms=0)
    found = store.percolate([upsert("p", vector=vector(bad)), upsert("q", vector=vector([1.0] * 6))], now_ms=0)[0]
    assert [[m.subscription_id for m in one.matches] for one in found.found] == [["t"], ["s", "t"]]
    assert found.vectors_refused == 1


def test_zero_vectors_score_zero():
    store = StandingQueries()
    nothing, something = query([0.0] * 6, [0.0] * 16), query([1.0] * 6)
    store.apply(
        [
            standing("a", vector=nothing, threshold=0.0),
            standing("b", vector=nothing, threshold=1e-300),
            standing("c", vector=something, threshold=0.0),
        ],
        now_ms=0,
    )
    found = store.percolate([upsert("p", vector=vector([0.0] * 6)), upsert("q", vector=vector([1.0] * 6))], now_ms=0)
    first, second = (shown(one.matches) for one in found[0].found)
    assert first == [("a", 1, 0.0, 0.0), ("c", 1, 0.0, 0.0)]
    assert second == [("a", 1, 0.0, 0.0), ("c", 1, 6.0, 0.0)]


def test_trees_are_counted():
    store = StandingQueries()
    store.apply([standing("s")], now_ms=0)
    before = store.counts().nbytes
    tree = any_of(is_in("company", "x"), negate(is_in("grade", "y")))
    store.apply([standing("s", 2, filters=tree)], now_ms=0)
    assert store.counts().nbytes > before + 1_000
    store.apply([ended("s", 3)], now_ms=0)
    assert store.counts().nbytes < before
