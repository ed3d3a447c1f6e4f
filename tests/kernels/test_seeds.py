"""What is short is seeded as well: whatever passes, nothing is asked again for want of a threshold or of room."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.kernels.filtered_topk.run import WIDEST, room_for
from penstock.kernels.filtered_topk.sampling import FINE, GROUP, SAMPLED, Sampling, enough
from penstock.kernels.filtered_topk.triton import filtered_topk
from penstock.kernels.gather_topk.triton import gather_topk
from penstock.kernels.slabs import program
from tests.kernels.test_topk_kernels import EVERYTHING, found
from tests.support.device_pages import Clause, Seen, World

KS = (1, 10, 100, 1_000, 2_048, 4_096)
units = st.sampled_from([64, 128])


@given(k=st.integers(1, 4_096), unit=units, count=st.integers(0, 40_000), sampled=st.sampled_from([1, 2, 16, SAMPLED]))
def test_a_sample_has_twice_what_it_is_asked_for_or_is_of_everything(k, unit, count, sampled):
    sampling = Sampling(k, sampled, unit)
    level = sampling.chosen(count)
    stride, rank, groups = sampling.strides[level], sampling.ranks[level], sampling.groups(count)
    if stride == 1:
        assert groups == count * (unit // FINE) and rank == k
    else:
        assert groups >= 2 * rank
        mean = k / stride  # of the best k in the sample; the rank lies five of its deviations above
        assert rank - mean >= 5 * math.sqrt(rank) - 1e-6
    assert groups <= sampling.width(max(count, 1))


@given(k=st.sampled_from(KS), unit=units, rows=st.integers(1, 200_000))
def test_lists_without_a_threshold_have_room_for_all_their_rows(k, unit, rows):
    capacity = room_for(k, 1 << 24)
    assert capacity <= WIDEST
    sampling, count = Sampling(k, SAMPLED, unit), -(-rows // unit)
    level = sampling.chosen(count)
    if sampling.strides[level] == 1:
        threshold = -(-rows // FINE) >= sampling.ranks[level]  # so many groups have a row
        assert threshold or rows <= capacity
    else:
        assert rows // unit // sampling.strides[level] * (unit // GROUP) >= sampling.ranks[level]


@given(k=st.sampled_from(KS), unit=units, most=st.integers(1, 100_000), count=st.integers(0, 100_000))
def test_no_seed_of_fewer_units_leaves_more_maxima_than_there_is_width_for(k, unit, most, count):
    sampling = Sampling(k, SAMPLED, unit)
    assert sampling.groups(min(count, most)) <= sampling.width(most)


def test_a_scan_of_enough_rows_samples_as_thinly_as_it_may():
    for k in KS:
        assert Sampling(k, SAMPLED, 128).chosen(-(-enough(k) // 128)) == 0
        assert Sampling(k, SAMPLED, 128).chosen(enough(k) // 128 - 1) == 1


def wide(rows):
    """A store of so many rows, of 16 values each, and all alike free."""
    return World(pages=-(-rows // 1_024), rows=1_024, dense=16, sketch=0, free=0)


@pytest.mark.parametrize("operator", [filtered_topk, gather_topk])
@pytest.mark.parametrize(("rows", "k"), [(4_096, 10), (5_120, 10), (8_192, 10), (5_120, 1_000), (9_216, 1_000)])
def test_nothing_short_is_asked_again(operator, rows, k):
    world = wide(rows)
    queries = world.queries([0])
    seen = [Seen(epoch=12)]
    mine, out = found(operator, world, seen, queries, k)
    assert mine == world.oracle(queries, seen, k)
    assert out.reruns == 0


def test_lists_of_one_batch_are_seeded_each_by_its_length():
    """Some thousand rows, a few, none, and all: of one launch, and none of them is asked again."""
    world = wide(5_120)
    seen = [
        Seen(Clause(program.CODES, (1, 2, 3))),
        Seen(Clause(program.HASHES, tuple(world.hashes[:40].tolist()))),
        Seen(Clause(program.HASHES)),
        EVERYTHING,
    ]
    queries = world.queries([0, 1, 2, 3])
    mine, out = found(gather_topk, world, seen, queries, 10)
    assert mine == world.oracle(queries, seen, 10)
    assert out.reruns == 0


@pytest.mark.parametrize("room", [1_024, 4_096, 16_384])
def test_a_list_longer_than_was_expected_is_made_again_and_seeded(room):
    world = wide(6_144)
    queries = world.queries([0])
    mine, out = found(gather_topk, world, [Seen(epoch=12)], queries, 10, room=room)
    assert mine == world.oracle(queries, [Seen(epoch=12)], 10)
    assert out.reruns == 0
