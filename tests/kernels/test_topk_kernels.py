"""The three top-k operators against the specification: what they find is the same, id for id and bit for bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.kernels.filtered_topk import autotune as autotune_module
from penstock.kernels.filtered_topk import run, sampling
from penstock.kernels.filtered_topk.autotune import Tunings, key_of
from penstock.kernels.filtered_topk.triton import Workspace, autotune, filtered_topk
from penstock.kernels.filtered_topk.tuning import tuning_for
from penstock.kernels.gather_topk.triton import gather_topk
from penstock.kernels.gather_topk.tuning import gather_tuning
from penstock.kernels.int8_topk.triton import int8_topk
from penstock.kernels.slabs import program
from penstock.kernels.slabs.batch import FILTERS, Queries
from tests.support.device_pages import Clause, Seen, Tree, World

OPERATORS = [filtered_topk, int8_topk, gather_topk]
every_operator = pytest.mark.parametrize("operator", OPERATORS)
EVERYTHING = Seen()


class Poisoned(Workspace):
    """Memory that holds what would show in a result, had a kernel not written it."""

    def take(self, name, shape, dtype):
        held = super().take(name, shape, dtype)
        if not held.is_contiguous():
            raise AssertionError("expected memory in one piece")
        return held.fill_(torch.nan if dtype.is_floating_point else torch.iinfo(dtype).max // 3)


def found(operator, world, seen, queries, k, **options):
    """What the operator finds, in memory that was poisoned: of each query rows and scores."""
    slabs, filters = world.slabs(), world.filters(seen)
    options.setdefault("workspace", Poisoned(torch.device("cpu")))
    out = operator(slabs, filters, queries, k, hashes="id", **options)
    assert out.settled.all()
    assert out.totals.tolist() == [int(world.passes(one).sum()) for one in seen]
    rows = [
        (out.slots[query, :n].tolist(), (out.dense + out.lexical)[query, :n].tolist())
        for query, n in enumerate(out.counts)
    ]
    return rows, out


clauses = st.one_of(
    st.builds(Clause, st.just(program.CODES), st.lists(st.integers(0, 7), max_size=6, unique=True).map(tuple)),
    st.builds(Clause, st.just(program.SYMBOLS), st.integers(0, 15).map(lambda mask: (mask & ~1,))),
    st.builds(
        Clause,
        st.just(program.RANGE),
        st.tuples(st.integers(-1, 21), st.integers(-1, 21)).map(lambda ends: (ends[0] * 1e3, ends[1] * 1e3)),
    ),
    st.builds(
        Clause, st.just(program.MANY), st.lists(st.sampled_from([0, 3, 7, 11, 21, 50, 60]), unique=True).map(tuple)
    ),
    st.builds(
        Clause,
        st.just(program.PLACE),
        st.tuples(st.floats(-70, 70), st.floats(-179, 179), st.sampled_from([10.0, 3_000.0, 9_000.0])),
    ),
)
flagged = st.builds(
    lambda clause, negated, lacking: Clause(clause.op, clause.operands, negated, lacking),
    clauses,
    st.booleans(),
    st.booleans(),
)
trees = st.recursive(
    flagged,
    lambda inner: st.builds(Tree, st.booleans(), st.lists(inner, min_size=1, max_size=3).map(tuple)),
    max_leaves=5,
)
views = st.builds(
    Seen, st.none() | trees, st.sampled_from([5, 10]), st.sampled_from([500, 1_000]), st.sampled_from([0, 1, 2])
)


@every_operator
@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 1_000),
    pages=st.integers(1, 3),
    shape=st.sampled_from([(20, 12), (16, 0), (130, 8), (0, 12)]),
    alike=st.booleans(),
    seen=st.lists(views, min_size=1, max_size=3),
    k=st.sampled_from([1, 7, 40, 300]),
    sampled=st.sampled_from([2, 64]),
    room=st.sampled_from([512, 1_024]),
)
def test_every_query_gets_what_the_specification_says(operator, seed, pages, shape, alike, seen, k, sampled, room):
    """Three pages have more rows than the lesser room: they are seeded."""
    world = World(pages=pages, dense=shape[0], sketch=shape[1], seed=seed, alike=alike)
    queries = world.queries([number % len(seen) for number in range(len(seen) + 1)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "room_for", lambda *_: room)
        rows, _ = found(operator, world, seen, queries, k, sampled=sampled)
    assert rows == world.oracle(queries, seen, k)


@every_operator
def test_ids_may_be_asked_for_and_excluded(operator):
    world = World()
    some = tuple(world.hashes[::50].tolist())
    seen = [
        Seen(Clause(program.HASHES, some)),
        Seen(Clause(program.HASHES, some, negated=True)),
        Seen(Clause(program.HASHES)),
    ]
    queries = world.queries([0, 1, 2])
    rows, _ = found(operator, world, seen, queries, 20)
    assert rows == world.oracle(queries, seen, 20)
    assert rows[2] == ([], [])


@every_operator
def test_rows_that_all_tie_come_by_their_hashes(operator):
    """More rows tie than a query has room for: it is asked again, with room for all."""
    world = World(pages=6, free=0)
    world.planes[:] = 1
    world.sketches[:] = 1
    world.arenas = [world._arena(number) for number in range(world.pages)]
    queries = world.queries([0, 0])
    rows, out = found(operator, world, [EVERYTHING], queries, 5, sampled=64)
    assert rows == world.oracle(queries, [EVERYTHING], 5)
    best = sorted(world.hashes[world.passes(EVERYTHING)].tolist())[:5]
    assert [int(world.hashes[row]) for row in rows[0][0]] == best
    assert out.rescored[0] == int(world.passes(EVERYTHING).sum())


@every_operator
def test_rows_that_float32_cannot_tell_apart_keep_their_order(operator):
    """Scores of 1 and a little that float64 holds: some rows tie there too, most do not."""
    world = World(dense=16, sketch=0, free=0)
    world.planes[:] = 0
    world.planes[:, 0] = 1
    world.planes[:, 1] = torch.arange(world.count).fmod(97).bfloat16()
    world.arenas = [world._arena(number) for number in range(world.pages)]
    queries = world.queries([0, 0], alike=True)
    queries.dense[:] = 0
    queries.dense[:, 0], queries.dense[:, 1] = 1, torch.tensor([2.0**-40, -(2.0**-44)])
    rows, _ = found(operator, world, [EVERYTHING], queries, 60)
    assert rows == world.oracle(queries, [EVERYTHING], 60)


@every_operator
def test_a_seed_that_promised_too_much_is_asked_again(operator, monkeypatch):
    """With no doubt left in it a seed is too high half of the time."""
    monkeypatch.setattr(sampling, "DOUBT", 0.0)
    reruns = 0
    for seed in range(2):
        world = World(pages=6, seed=seed, free=0)
        queries = world.queries([0] * 3)
        rows, out = found(operator, world, [EVERYTHING], queries, 6, sampled=2)
        assert rows == world.oracle(queries, [EVERYTHING], 6)
        reruns += out.reruns
    assert reruns > 0


@every_operator
def test_more_survivors_than_room_are_asked_again(operator, monkeypatch):
    monkeypatch.setattr(run, "room_for", lambda *_: 64)
    monkeypatch.setattr(sampling, "seed_rank", lambda *_: 1 << 20)  # which no seed has
    world = World(pages=3)
    queries = world.queries([0] * 3)
    rows, out = found(operator, world, [EVERYTHING], queries, 4, sampled=64)
    assert rows == world.oracle(queries, [EVERYTHING], 4)
    assert out.reruns == 3


@every_operator
def test_a_k_of_thousands_is_narrowed_one_query_after_the_other(operator, monkeypatch):
    """Among them queries whose seed promised too much, and some that had no room."""
    monkeypatch.setattr(run, "WIDEST", 32)
    monkeypatch.setattr(sampling, "DOUBT", 0.0)
    world = World(pages=6, seed=2, free=0)
    queries = world.queries([0] * 3)
    rows, _ = found(operator, world, [EVERYTHING], queries, 6, sampled=2)
    assert rows == world.oracle(queries, [EVERYTHING], 6)
    monkeypatch.setattr(run, "room_for", lambda *_: 64)
    monkeypatch.setattr(sampling, "seed_rank", lambda *_: 1 << 20)
    rows, out = found(operator, world, [EVERYTHING], queries, 6, sampled=64)
    assert rows == world.oracle(queries, [EVERYTHING], 6)
    assert out.reruns > 0


@every_operator
@pytest.mark.parametrize("sampled", [2, 64])
def test_rows_that_do_not_fit_whole_come_in_parts(operator, sampled):
    """As wide rows do on a device: also in a seed, with another program's part between two."""
    wide = gather_tuning(1_024, 16) if operator is gather_topk else tuning_for(1_024, 16, 16)
    assert wide.parts > 1
    world = World(pages=3, dense=1_000, seed=7)
    queries = world.queries([0, 1, 0])
    seen = [EVERYTHING, Seen(Clause(program.CODES, (1, 2, 3)))]
    tuning = replace(wide, programs=2)
    rows, _ = found(operator, world, seen, queries, 12, sampled=sampled, tuning=tuning)
    assert rows == world.oracle(queries, seen, 12)


@every_operator
def test_a_score_depends_on_nothing_but_its_row_and_query(operator):
    """Alone, in a batch, with the rows in another order: the same bytes."""
    world = World(pages=2, seed=3)
    queries = world.queries([0] * 4)
    rows, _ = found(operator, world, [EVERYTHING], queries, 30)
    for query in (0, 3):
        begin, end = queries.starts[query : query + 2].tolist()
        alone = Queries(
            queries.dense[query : query + 1],
            torch.tensor([0, end - begin], dtype=torch.int32),
            queries.terms[begin:end],
            queries.weights[begin:end],
            torch.zeros(1, dtype=torch.int32),
        )
        assert found(operator, world, [EVERYTHING], alone, 30)[0][0] == rows[query]
    order = torch.randperm(world.count, generator=torch.Generator().manual_seed(1))
    for name in ("planes", "sketches", "hashes", "birth", "death", "expires", "tenant"):
        setattr(world, name, getattr(world, name)[order])
    world.taken = world.taken[order.numpy()]
    world.arenas = [world._arena(number) for number in range(world.pages)]
    moved, _ = found(operator, world, [EVERYTHING], queries, 30)
    assert [([int(order[row]) for row in mine], scores) for mine, scores in moved] == rows


def test_a_batch_has_up_to_63_filters():
    operator, world = filtered_topk, World(pages=1)
    seen = [Seen(Clause(program.CODES, (number % 6,), negated=number % 2 == 0)) for number in range(FILTERS - 1)]
    queries = world.queries([FILTERS - 2, 0, 33])
    rows, _ = found(operator, world, seen, queries, 9)
    assert rows == world.oracle(queries, seen, 9)
    with pytest.raises(ValueError, match="64 filters: expected 1 to 63"):
        operator(world.slabs(), world.filters([*seen, EVERYTHING]), queries, 9, hashes="id")


def test_one_batch_may_look_at_several_epochs_moments_and_tenants():
    world = World(seed=5)
    seen = [
        Seen(epoch=4),
        Seen(epoch=10),
        Seen(epoch=12),
        Seen(now=900),
        Seen(now=1_001),
        Seen(tenant=1),
        Seen(tenant=7),
    ]
    queries = world.queries(list(range(len(seen))))
    rows, _ = found(filtered_topk, world, seen, queries, 25)
    assert rows == world.oracle(queries, seen, 25)
    assert rows[-1] == ([], [])
    assert len({tuple(mine) for mine, _ in rows}) == len(seen)


def test_blocks_that_cannot_pass_are_not_looked_at():
    world = World(pages=4, free=0)
    world.company[:] = 1
    world.company[BLOCK_OF_INTEREST] = 5
    world.arenas = [world._arena(number) for number in range(world.pages)]
    seen = [Seen(Clause(program.CODES, (5,)))]
    queries = world.queries([0])
    rows, out = found(filtered_topk, world, seen, queries, 3)
    assert rows == world.oracle(queries, seen, 3)
    assert out.looked_at == 128
    assert found(filtered_topk, world, [EVERYTHING], queries, 3)[1].looked_at == world.count


BLOCK_OF_INTEREST = slice(640, 768)


@every_operator
def test_more_terms_than_a_tile_holds_are_left_to_the_bound(operator):
    """The lightest terms are only in the exact scores; the bound has room for them."""
    world = World(sketch=400, dense=16)
    queries = world.queries([0, 0], terms=390)
    rows, _ = found(operator, world, [EVERYTHING], queries, 10)
    assert rows == world.oracle(queries, [EVERYTHING], 10)


def test_a_sum_that_float64_cannot_settle_is_said_not_guessed():
    world = World(dense=16, sketch=0, free=0)
    world.planes[:] = 0
    world.planes[:, 0], world.planes[:, 1], world.planes[:, 2] = 2.0**60, 1.0, 2.0**-60
    world.arenas = [world._arena(number) for number in range(world.pages)]
    queries = world.queries([0], alike=True)
    queries.dense[:] = 0
    queries.dense[0, 0], queries.dense[0, 1], queries.dense[0, 2] = 2.0**60, 1.0, 2.0**-60
    out = filtered_topk(world.slabs(), world.filters([EVERYTHING]), queries, 4, hashes="id")
    assert out.settled.tolist() == [False]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda w: w.queries([0]).__class__(torch.zeros(1, 7), *_lexical(w)), "queries of 7 dense values: expected 20"),
        (
            lambda w: w.queries([0]).__class__(torch.zeros(1, 20), *_lexical(w, term=12)),
            "terms 12 to 12: expected 0 to 11",
        ),
    ],
)
def test_queries_of_other_shapes_are_refused(wrong, said):
    world = World()
    with pytest.raises(ValueError, match=said):
        filtered_topk(world.slabs(), world.filters([EVERYTHING]), wrong(world), 3, hashes="id")


def _lexical(world, term=0):
    one = torch.tensor([term], dtype=torch.int32)
    return torch.tensor([0, 1], dtype=torch.int32), one, torch.ones(1), torch.zeros(1, dtype=torch.int32)


def test_an_int8_scan_needs_pages_with_an_int8_plane():
    world = World()
    slabs = world.slabs()
    bare = slabs.__class__(slabs.layout.__class__(256, 20, 12, slabs.layout.columns), slabs.table, slabs.offsets)
    with pytest.raises(ValueError, match="quantised=True"):
        int8_topk(bare, world.filters([EVERYTHING]), world.queries([0]), 3, hashes="id")


def test_a_tuning_is_measured_once_and_taken_from_then_on(tmp_path, monkeypatch):
    """Every tuning gives the same answer; which one is kept is the clock's to say."""
    monkeypatch.setattr(autotune_module, "RUNS", 1)
    monkeypatch.setattr(autotune_module, "WARM", 0)
    world, tunings = World(pages=1), Tunings(tmp_path / "tunings.json")
    queries = world.queries([0])
    chosen = autotune(world.slabs(), world.filters([EVERYTHING]), queries, 3, hashes="id", tunings=tunings)
    shape = (world.layout.width, 16, 16, torch.device("cpu"))
    assert tunings.get(key_of("filtered_topk", *shape)) == chosen
    rows, _ = found(filtered_topk, world, [EVERYTHING], queries, 3, tuning=chosen)
    assert rows == world.oracle(queries, [EVERYTHING], 3)


@every_operator
def test_terms_that_are_left_out_count_towards_a_query_s_scale(operator):
    """A query whose heavy terms have no place in the tile, beside one tiny term that has."""
    world = World(sketch=600, dense=16, free=0)
    common = torch.arange(256, dtype=torch.int32)
    own = torch.cat([torch.tensor([0]), torch.arange(256, 596)]).int()
    weights = torch.cat([torch.ones(256), torch.tensor([1e-37]), torch.ones(340)])
    queries = Queries(
        300 * torch.randn(2, 16, generator=torch.Generator().manual_seed(1)),
        torch.tensor([0, 256, 256 + 341], dtype=torch.int32),
        torch.cat([common, own]),
        weights,
        torch.zeros(2, dtype=torch.int32),
    )
    rows, _ = found(operator, world, [EVERYTHING], queries, 5)
    assert rows == world.oracle(queries, [EVERYTHING], 5)
    assert len(rows[1][0]) == 5


@every_operator
def test_values_that_no_score_can_hold_are_refused_not_guessed(operator):
    world = World()
    queries = world.queries([0])
    queries.dense[:] = 3e38
    queries.weights[:] = 1e-30
    with pytest.raises(ValueError, match="leave bfloat16's range"):
        operator(world.slabs(), world.filters([EVERYTHING]), queries, 3, hashes="id")


@every_operator
@pytest.mark.parametrize("power", [-60, 60])
def test_great_and_small_values_are_scored_alike(operator, power):
    world = World(seed=4, alike=True)
    queries = world.queries([0, 0])
    queries.dense.mul_(2.0**power)
    queries.weights.mul_(2.0**power)
    rows, _ = found(operator, world, [EVERYTHING], queries, 9)
    assert rows == world.oracle(queries, [EVERYTHING], 9)
