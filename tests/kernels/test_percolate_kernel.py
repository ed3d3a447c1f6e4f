"""Percolation on a device finds every pair of the oracle's, and besides only what bfloat16 queries may cost."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.kernels.percolate import check, rows
from penstock.kernels.percolate.check import drawn, found
from penstock.kernels.percolate.postings import staged
from penstock.kernels.percolate.reference import pairs, passing, scores
from penstock.kernels.percolate.room import Room
from penstock.kernels.percolate.rows import Queries, RowLayout, encoded, padded
from penstock.kernels.percolate.standing import Standing
from penstock.kernels.percolate.triton import percolate
from penstock.kernels.percolate.tuning import PLACE

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TERMS = 4


def held(case, terms=TERMS, **more):
    """What was found, after it was held to the oracle."""
    got, wanted = found(case, terms, device=DEVICE, **more), pairs(case, terms)
    assert not (wanted.must & ~got).any(), "left out"
    assert not (got & ~wanted.may).any(), "found, and may not be"
    return got


def test_the_check_of_the_benchmark_finds_nothing_wrong():
    assert check.mismatches() == 0


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    queries=st.sampled_from([0, 1, 63, 64, 65, 300]),
    postings=st.sampled_from([1, 2, 15, 16, 17, 31, 33, 63, 64]),
    width=st.sampled_from([0, 1, 16, 17, 64, 65, 129]),
    sketch=st.sampled_from([0, 1, 40]),
    terms=st.sampled_from([0, 1, 4, 8, 11, 16]),
    most_terms=st.sampled_from([3, 8, 14]),
)
def test_against_the_oracle(seed, queries, postings, width, sketch, terms, most_terms):
    held(drawn(seed, queries, postings, width, sketch, most_terms=most_terms), terms)


@pytest.mark.parametrize("width", [384, 512, 640, 1_024])
def test_widths_of_more_than_a_chunk(width):
    assert held(drawn(width, 150, 20, width, 16)).any()


def test_several_places_and_tiles_that_are_not_full():
    case = drawn(5, 2 * PLACE + 17, 40, 16, 8)
    assert held(case)[2 * PLACE :].any()


def integral(seed, queries=130, postings=30):
    """A case in which every value and every sum is a small integer: no rounding anywhere, and many ties."""
    g, case = torch.Generator().manual_seed(seed), drawn(seed, queries, postings, 16, 8)
    return replace(
        case,
        dense=torch.randint(-3, 4, case.dense.shape, generator=g).float(),
        lexical=(torch.rand(case.lexical.shape, generator=g) < 0.3).float() * 2,
        posting_dense=torch.randint(-3, 4, case.posting_dense.shape, generator=g).bfloat16(),
        posting_sketch=torch.randint(-3, 4, case.posting_sketch.shape, generator=g).to(torch.int8),
    )


@pytest.mark.parametrize("seed", range(4))
def test_a_pair_exactly_at_its_threshold_is_found(seed):
    case = integral(seed)
    exact = scores(case)
    case = replace(case, thresholds=exact[torch.arange(len(exact)), torch.arange(len(exact)) % exact.shape[1]])
    got = held(case, terms=8)
    ties = passing(case) & (exact == case.thresholds[:, None])
    assert ties.sum() > 20 and (got & ties).sum() == ties.sum()


def test_what_scores_well_below_is_not_found():
    case = integral(9)
    exact = scores(case)
    case = replace(case, thresholds=torch.full((len(exact),), float(exact.median()) + 0.5, dtype=torch.float64))
    norms = [torch.linalg.vector_norm(part.double(), dim=1).max() for part in (case.dense, case.posting_dense)]
    norms += [torch.linalg.vector_norm(part.double(), dim=1).max() for part in (case.lexical, case.posting_sketch)]
    certain = exact < case.thresholds[:, None] - 2.5 * 2.0**-9 * float(norms[0] * norms[1] + norms[2] * norms[3])
    assert not (held(case, terms=8) & certain).any() and certain.float().mean() > 0.3


def test_no_survivors():
    case = drawn(2, 200, 20, 16, 8)
    assert not held(replace(case, thresholds=torch.full((200,), 1e30, dtype=torch.float64))).any()
    nobody = case.holds.clone()
    nobody[1:] = False
    assert not held(replace(case, holds=nobody, demands=torch.ones_like(case.demands))).any()
    assert not held(replace(case, tenants=case.tenants + 2)).any()


def test_a_threshold_of_minus_infinity_finds_whatever_passes():
    case = drawn(3, 200, 64, 16, 8)
    case = replace(case, thresholds=torch.full((200,), -torch.inf, dtype=torch.float64))
    assert (found(case, TERMS, device=DEVICE) == passing(case)).all()


def everything(queries=100, postings=64):
    case = drawn(4, queries, postings, 16, 8)
    return replace(
        case,
        thresholds=torch.full((queries,), -1e30, dtype=torch.float64),
        tenants=torch.zeros_like(case.tenants),
        posting_tenants=torch.zeros_like(case.posting_tenants),
        demands=torch.zeros_like(case.demands),
    )


def test_all_survive_bit_63_included():
    assert held(everything()).all()


def test_past_the_capacity_it_counts_and_writes_nothing():
    case = everything()
    with pytest.raises(ValueError, match=r"6400 pairs in a room for 6399: percolate again with a Room\(6400\)"):
        found(case, TERMS, capacity=6_399, device=DEVICE)
    standing, place = small(case)
    guarded = Room(DEVICE, 1_000)
    for name in ("slots", "postings", "scores"):
        whole = getattr(guarded, name).new_full((1_200,), check.POISON)
        setattr(guarded, name, whole[:1_000])
        setattr(guarded, f"whole_{name}", whole)
    survivors = percolate(standing, place, batch_of(case, standing.layout), guarded)
    assert survivors.count() == 6_400
    for name in ("slots", "postings", "scores"):
        whole = getattr(guarded, f"whole_{name}")
        assert (whole[1_000:] == check.POISON).all() and (whole[:1_000] != check.POISON).all()


def small(case):
    standing = Standing(RowLayout(16, TERMS), DEVICE, slab=1)
    number = standing.put(check._queries(case, slice(0, PLACE)), case.tenants.int().numpy(), case.demands.int().numpy())
    return standing, torch.tensor([number], dtype=torch.int32, device=DEVICE)


def batch_of(case, layout, device=DEVICE):
    norms = (check._norm(case.posting_dense), check._norm(case.posting_sketch))
    tenants = torch.stack([case.posting_tenants == tenant for tenant in range(2)])
    held_by = check.words(case.holds), check.words(tenants)
    return staged(layout, case.posting_dense, case.posting_sketch, norms, *held_by, device)


def test_an_empty_batch_and_no_places():
    case = drawn(6, 50, 1, 16, 8)
    standing, place = small(case)
    nobody = replace(
        case,
        posting_dense=case.posting_dense[:0],
        posting_sketch=case.posting_sketch[:0],
        posting_tenants=case.posting_tenants[:0],
        holds=case.holds[:, :0],
    )
    room = Room(DEVICE, 10)
    assert percolate(standing, place, batch_of(nobody, standing.layout), room).count() == 0
    assert percolate(standing, place[:0], batch_of(case, standing.layout), room).count() == 0


def test_a_room_is_used_again_and_a_score_is_the_pair_s():
    case = integral(7)
    standing, place = small(case)
    room = Room(DEVICE, 10_000)
    first = percolate(standing, place, batch_of(case, standing.layout), room).read()
    again = percolate(standing, place, batch_of(case, standing.layout), room).read()
    assert len(first[0]) and all((a == b).all() for a, b in zip(first, again, strict=True))
    # Few terms fit a record: where all do, an integral score has no error.
    fits = (case.lexical != 0).sum(dim=1).numpy() <= TERMS
    exact = scores(case).numpy()[first[0] % PLACE, first[1]]
    assert (np.abs(first[2] - exact) < 1e-30)[fits[first[0] % PLACE]].all(), "but for what a score begins with"


def test_places_are_replaced_freed_and_used_again():
    one, other = everything(40), everything(30)
    standing, place = small(one)
    batch = batch_of(one, standing.layout)
    room = Room(DEVICE, 10_000)
    queries = check._queries(other, slice(0, PLACE))
    whose, what = other.tenants.int().numpy(), other.demands.int().numpy()
    assert standing.put(queries, whose, what, int(place)) == int(place)
    assert percolate(standing, place, batch, room).count() == 30 * 64, "fewer queries than there were"
    second = standing.put(queries, whose, what)
    assert second != int(place) and standing.rows == 2 * PLACE, "a slab was added"
    both = torch.tensor([int(place), second], dtype=torch.int32, device=DEVICE)
    assert percolate(standing, both, batch, room).count() == 60 * 64
    standing.free(int(place))
    assert percolate(standing, both, batch, room).count() == 30 * 64
    assert standing.put(queries, whose, what) == int(place) and standing.rows == 2 * PLACE


def test_slabs_that_nobody_is_in_are_let_go_of_but_one_and_made_again():
    case = everything(20)
    standing = Standing(RowLayout(16, TERMS), DEVICE, slab=2)
    given_ = check._queries(case, slice(0, PLACE)), case.tenants.int().numpy(), case.demands.int().numpy()
    batch, room = batch_of(case, standing.layout), Room(DEVICE, 20_000)

    def found(*places):
        return percolate(standing, torch.tensor(places, dtype=torch.int32, device=DEVICE), batch, room).count()

    assert [standing.put(*given_) for _ in range(8)] == list(range(8))
    assert standing.nbytes == 4 * standing.slab_bytes and standing.full
    for place in (2, 3, 4, 5, 6):
        standing.free(place)
    standing.trim()
    assert standing.rows == 6 * PLACE and found(0, 1, 7) == 3 * 20 * 64
    with pytest.raises(ValueError, match="place 4: its slab has been let go of"):
        standing.put(*given_, 4)
    standing.trim()
    assert standing.rows == 6 * PLACE
    assert [standing.put(*given_) for _ in range(5)] == [2, 3, 6, 4, 5]
    assert found(*range(8)) == 8 * 20 * 64 and standing.nbytes == 4 * standing.slab_bytes
    for place in range(2, 8):
        standing.free(place)
    standing.trim()
    assert standing.rows == 4 * PLACE and standing.nbytes == 2 * standing.slab_bytes


def test_a_query_with_more_terms_than_a_record_has_is_never_left_out():
    case = drawn(8, 120, 30, 16, 64, most_terms=40)
    case = replace(case, lexical=case.lexical * 5, thresholds=scores(case)[torch.arange(120), torch.arange(120) % 30])
    held(case, terms=4)


@pytest.mark.parametrize("terms", [3, 8, 9, 16])
def test_every_word_of_a_record_counts(terms):
    """Query i has i + 1 terms, each of which it needs: with one fewer it would not reach its threshold."""
    case = everything(queries=terms, postings=2)
    case = replace(
        case,
        dense=torch.zeros((terms, 0)),
        posting_dense=torch.zeros((2, 0), dtype=torch.bfloat16),
        lexical=torch.ones((terms, terms)).tril(),
        posting_sketch=torch.ones((2, terms), dtype=torch.int8),
        thresholds=torch.arange(1, terms + 1, dtype=torch.float64),
    )
    assert held(case, terms=terms).all()
    assert not held(replace(case, thresholds=case.thresholds + 0.5), terms=terms).any()


def extreme(values):
    case = drawn(1, len(values), 4, 16, 8)
    scale = torch.tensor(values)
    posting = torch.tensor([2.0**64, -(2.0**127), 2.0**-126, 1.0])
    return replace(
        case,
        dense=torch.ones_like(case.dense) * scale[:, None],
        lexical=case.lexical * 0,
        posting_dense=(torch.ones((4, 16)) * posting[:, None]).bfloat16(),
        thresholds=torch.zeros(len(values), dtype=torch.float64),
        tenants=torch.zeros_like(case.tenants),
        posting_tenants=torch.zeros_like(case.posting_tenants),
        demands=torch.zeros_like(case.demands),
    )


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, whose products overflow as they are meant to
def test_values_at_the_ends_of_float32():
    case = extreme([2.0**64, -(2.0**127), 3.4e38, -3.4e38, 2.0**-126, -(2.0**-140), 1.0])
    for threshold in (0.0, 1e38, -1e38, 1e77, -1e77, 5e-324):
        got = found(replace(case, thresholds=torch.full((7,), threshold, dtype=torch.float64)), TERMS, device=DEVICE)
        assert not ((scores(case) >= threshold) & ~got).any()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    ("query", "posting"),
    [
        ([2.0**64] * 16, [2.0**64, -(2.0**64)] * 8),  # infinities of both signs: no number
        ([2.0**64] * 16, [-(2.0**63)] * 7 + [2.0**63] * 9),  # below float32's range on the way to a sum above 0
        ([2.0**64] * 16, [2.0**63] * 7 + [-(2.0**63)] * 7 + [2.0**63] * 2),
        ([-3.4e38] + [3.3e38] * 15, [2.0**-40] * 16),  # the first is infinite as bfloat16
    ],
)
def test_a_product_that_leaves_float32_s_range_says_nothing(query, posting):
    case = everything(queries=1, postings=1)
    case = replace(
        case,
        dense=torch.tensor([query]),
        posting_dense=torch.tensor([posting]).bfloat16(),
        lexical=case.lexical * 0,
        thresholds=torch.zeros(1, dtype=torch.float64),
    )
    assert scores(case).item() >= 0 and held(case).all()


@settings(max_examples=60)
@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=20))
def test_a_lowered_threshold_is_lower(thresholds):
    given_ = np.clip(thresholds, -3e38, 3e38)
    low = rows.lowered(given_).astype(np.float64)
    assert (low < given_).all() and (low >= given_ - np.abs(given_) * 2.0**-21 - 1e-44).all()
    assert (rows.lowered(np.asarray(thresholds)) < np.asarray(thresholds)).all()


def test_a_record_is_laid_out_as_it_says():
    queries = Queries(
        dense=torch.tensor([[1.0, -2.0]]),
        starts=np.asarray([0, 3]),
        terms=np.asarray([7, 65_535, 3]),
        weights=np.asarray([0.5, -4.0, 2.0], np.float32),
        norms=np.asarray([[5.0**0.5, 20.25**0.5]]),
        thresholds=np.asarray([0.25]),
    )
    layout = RowLayout(padded(2), 2)
    (record,) = encoded(layout, queries)
    assert layout.stride == len(record) == 64
    assert record[:32].view(torch.bfloat16).tolist() == [1.0, -2.0] + [0.0] * 14
    words = record[32:40].view(torch.int32)
    assert (words & 0xFFFF).tolist() == [65_535, 3], "the greatest weights first, and no more than there is room for"
    assert (words & -65_536).view(torch.float32).tolist() == [-4.0, 2.0]
    least, dense, lexical = record[40:52].view(torch.float32).tolist()
    assert 0.2499 < least < 0.25 and 5**0.5 / 512 < dense < 5**0.5 / 500
    assert 0.5 + 4.5 / 512 < lexical < 0.5 + 4.5 / 500, "the norm of the term that was left out is part of it"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: RowLayout(48, 4), "48 dense values: expected 0, 16, 32, 64 or a multiple of 128"),
        (lambda: batch_of(drawn(1, 1, 65, 16, 8), RowLayout(16, 4)), "65 postings in a batch: expected at most 64"),
        (lambda: batch_of(drawn(1, 1, 5, 32, 8), RowLayout(16, 4)), "postings of 32 values for records of 16"),
        (lambda: small(drawn(1, 5, 1, 32, 8)), "queries of 32 values for records of 16"),
        (lambda: Room(DEVICE, 0), "room for 0 pairs"),
    ],
)
def test_what_cannot_be_is_refused_in_words(wrong, said):
    with pytest.raises(ValueError, match=said):
        wrong()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here: tensor cores were not tried")
@pytest.mark.parametrize("width", [0, 16, 64, 128, 256, 384, 512, 768, 1_024])
def test_on_a_device(width):
    for postings in (16, 32, 64):
        assert held(drawn(width + postings, 5_000, postings, width, 1_024), terms=16).any()
