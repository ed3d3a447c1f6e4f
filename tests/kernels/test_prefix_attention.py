"""Attention over shared prefixes against its oracle: by tiles, and by two calls that are merged."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.kernels.prefix_attention import check, reference, two_calls
from penstock.kernels.prefix_attention.check import packed
from penstock.kernels.prefix_attention.merge import merged
from penstock.kernels.prefix_attention.triton import prefix_attention
from penstock.kernels.prefix_attention.tuning import TILE_TOKENS, Tuning, tuning_for
from penstock.kernels.rowwise.rounding import beyond
from penstock.ranker.engine import plan

SHAPES = [(4, 2, 16), (3, 1, 16), (2, 2, 32), (7, 1, 16)]  # heads, kv_heads, size: groups of 2, 3, 1 and 7
DTYPES = [torch.float64, torch.float32, torch.bfloat16]
MIXED = ((70, (1, 1, 2, 130)), (0, (3, 64)), (5, (40, 41)))  # longer than a block, than a tile; none; split tiles

# numpy, under the interpreter, on what these tests are about: exp(88.8) and infinity times 0
pytestmark = pytest.mark.filterwarnings(
    "ignore:overflow encountered:RuntimeWarning", "ignore:invalid value:RuntimeWarning"
)

every_dtype = pytest.mark.parametrize("dtype", DTYPES)
groups_of = st.lists(
    st.tuples(
        st.sampled_from([0, 1, 31, 32, 64, 100]), st.lists(st.sampled_from([1, 2, 17, 64, 70]), min_size=1, max_size=4)
    ),
    min_size=1,
    max_size=2,
)


def shape_of(heads, kv_heads, size):
    return {"heads": heads, "kv_heads": kv_heads, "size": size}


def random_qkv(tokens, shape, dtype, seed=0, spread=1.0):
    width = (shape["heads"] + 2 * shape["kv_heads"]) * shape["size"]
    return (spread * torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed))).to(dtype)


@settings(max_examples=12, deadline=None)
@given(
    groups=groups_of,
    shape=st.sampled_from(SHAPES).map(lambda each: shape_of(*each)),
    dtype=st.sampled_from(DTYPES),
    spread=st.sampled_from([0.0, 1.0, 20.0]),
    seed=st.integers(0, 99),
)
def test_every_token_sees_its_prefix_and_itself(groups, shape, dtype, spread, seed):
    starts, tiles, _, _ = packed(groups)
    qkv = random_qkv(len(starts), shape, dtype, seed, spread)
    assert check.differing(qkv, starts, tiles, **shape) == 0
    assert check.differing_in_two_calls(qkv, groups, **shape) == 0


@pytest.mark.parametrize(("heads", "kv_heads", "size"), SHAPES)
def test_what_a_device_is_given_to_run_is_right_too(heads, kv_heads, size):
    """Programs of fewer tokens than a tile, and blocks of fewer keys."""
    shape = shape_of(heads, kv_heads, size)
    starts, tiles, _, _ = packed(MIXED[:2])
    tuning = tuning_for(heads // kv_heads, size)
    qkv = random_qkv(len(starts), shape, torch.float32)
    assert check.differing(qkv, starts, tiles, **shape, tuning=tuning) == 0


@every_dtype
@pytest.mark.parametrize("way", ["tiles", "two_calls"])
@pytest.mark.parametrize("rising", [True, False])
def test_scores_of_ten_thousand_either_side_are_scaled_again_from_block_to_block(dtype, way, rising):
    shape = shape_of(2, 1, 16)
    starts, tiles, _, _ = packed(MIXED)
    qkv = random_qkv(len(starts), shape, torch.float32, spread=0.01)
    qkv[:, 0] = 200.0  # of a query's first head
    along = torch.linspace(-200.0, 200.0, len(starts))
    qkv[:, 32] = along if rising else along.flip(0)  # of a key: scores from -10,000 to 10,000
    qkv = qkv.to(dtype)
    if way == "tiles":
        assert check.differing(qkv, starts, tiles, **shape, tuning=Tuning(group=2, tokens=64)) == 0
    else:
        assert check.differing_in_two_calls(qkv, MIXED, **shape) == 0


@every_dtype
def test_equal_scores_give_the_mean_and_one_key_its_value(dtype):
    shape = shape_of(2, 1, 16)
    groups = ((0, [1] * 70), (3, [1]))  # a tile of 64 segments, of which each sees one key, and a tile of one token
    starts, tiles, _, _ = packed(groups)
    qkv = random_qkv(len(starts), shape, dtype)
    qkv[:, :32] = 0.0
    assert check.differing(qkv, starts, tiles, **shape) == 0
    out = prefix_attention(qkv, starts, tiles, torch.full((len(starts), 32), torch.nan, dtype=dtype), **shape)
    alone = qkv[:70, 48:].repeat(1, 2)
    assert torch.equal(out[:70], alone)
    mean = qkv[70:74, 48:].double().mean(0).repeat(2)
    assert (out[73].double() - mean).abs().max() <= 2 * torch.finfo(dtype).eps * qkv[70:74].double().abs().max()


@every_dtype
def test_denormal_values_and_zeros(dtype):
    shape = shape_of(3, 1, 16)
    starts, tiles, _, _ = packed(MIXED)
    for spread in (1e-39, 0.0):
        assert check.differing(random_qkv(len(starts), shape, dtype, spread=spread), starts, tiles, **shape) == 0


@every_dtype
def test_rows_that_no_tile_names_reach_nobody_and_stay(dtype):
    """A captured graph's forward is padded behind its tokens, and has tiles to spare."""
    shape = shape_of(3, 1, 16)
    starts, tiles, _, _ = packed(MIXED)
    padding = 40
    qkv = random_qkv(len(starts) + padding, shape, dtype)
    qkv[len(starts) :] = torch.nan
    starts = torch.cat([starts, torch.zeros(padding, dtype=torch.int32)])
    tiles = torch.cat([tiles, torch.zeros(5, 4, dtype=torch.int32)])
    assert check.differing(qkv, starts, tiles, **shape) == 0


def test_queries_and_keys_of_a_neighbour_may_be_anything():
    shape = shape_of(3, 1, 16)
    starts, tiles, _, items = packed([(9, (6, 7, 8))])
    qkv = random_qkv(len(starts), shape, torch.float32)
    wanted, _ = reference.prefix_attention(qkv, starts, tiles, **shape)
    first, end = items[1].tolist()
    qkv[first:end, :64] = torch.tensor([torch.nan, torch.inf, -torch.inf, 3e38]).repeat(16)
    out = prefix_attention(qkv, starts, tiles, torch.full((len(qkv), 48), torch.nan), **shape)
    others = [at for at in range(len(qkv)) if not first <= at < end]
    assert beyond(out[others], wanted[others], 1e-5) == 0
    assert out[first:end].isnan().any()


@every_dtype
def test_a_key_too_few_or_too_many_is_more_than_rounding(dtype):
    """What the bounds are worth."""
    shape = shape_of(2, 1, 16)
    starts, tiles, _, _ = packed(MIXED)
    qkv = random_qkv(len(starts), shape, dtype)
    bound = check.allowed(qkv, starts, tiles, **shape, keys=32)
    wanted, _ = reference.prefix_attention(qkv, starts, tiles, **shape)
    for shift in (0, 1):
        other = tiles.clone()
        other[(tiles[:, 3] == 70) & (tiles[:, 2] == 0), 2 + shift] = 1 if shift == 0 else 71
        out = prefix_attention(qkv, starts, other, torch.full((len(qkv), 32), torch.nan, dtype=dtype), **shape)
        hit = slice(70, 72)  # items of one token behind that prefix
        assert beyond(out[hit], wanted[hit], bound[hit]) > 8  # of 64
        assert beyond(out[:70], wanted[:70], bound[:70]) == 0


def tokens(count, start=1):
    return np.arange(start, start + count, dtype=np.int32)


def test_a_plan_attends_as_its_prompts_do_one_by_one():
    requests = [
        plan.Request(tokens(70), tuple(plan.Text(tokens(count)) for count in (1, 3, 3, 90))),
        plan.Request(tokens(0), (plan.Text(tokens(5)), plan.Text(tokens(2)))),
        plan.Request(
            tokens(12, start=7), (plan.Text(tokens(60)), plan.Vectors(np.ones((1, 4), np.float32), tokens(1)))
        ),
    ]
    heads, kv_heads, size = 4, 2, 16
    shape = shape_of(heads, kv_heads, size)
    prompts = 0
    for forward in plan.plan(requests, 200, 200):
        starts, tiles = torch.from_numpy(forward.starts), torch.from_numpy(forward.tiles)
        qkv = random_qkv(len(forward), shape, torch.float64, seed=prompts)
        ways = [torch.full((len(forward), heads * size), torch.nan, dtype=torch.float64) for _ in range(2)]
        prefix_attention(qkv, starts, tiles, ways[0], **shape)
        spans = two_calls.Spans.of(forward.prefixes, forward.items, torch.device("cpu"))
        two_calls.two_calls(qkv, spans, ways[1], **shape)
        for item, of in zip(forward.items.tolist(), forward.prefix_of.tolist(), strict=True):
            places = [*range(*forward.prefixes[of]), *range(*item)]
            q, k, v = qkv[places].view(len(places), -1, size).transpose(0, 1).split([heads, kv_heads, kv_heads])
            k, v = (each.repeat_interleave(heads // kv_heads, 0) for each in (k, v))
            alone = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            for out in ways:
                found = out[places].view(len(places), heads, size).transpose(0, 1)
                assert (found - alone).abs().max() < 1e-12
            prompts += 1
    assert prompts == 8


@every_dtype
@settings(max_examples=10, deadline=None)
@given(rows=st.sampled_from([1, 5, 70]), heads=st.sampled_from([1, 3, 4]), seed=st.integers(0, 99))
def test_two_attentions_are_merged_by_the_shares_of_their_sums(dtype, rows, heads, seed):
    chance = torch.Generator().manual_seed(seed)
    mine, theirs = (torch.randn(rows, heads, 16, generator=chance).to(dtype) for _ in range(2))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    lse, lse_theirs = (
        torch.tensor([0.0, 1.0, -5.0, 1e4, -1e4, 88.0])[torch.randint(0, 6, (heads, rows), generator=chance)].to(wide)
        for _ in range(2)
    )
    none = torch.rand(heads, rows, generator=chance) < 0.3
    lse_theirs[none] = -torch.inf
    theirs[none.T] = torch.nan
    assert check.differing_merge(mine, theirs, lse, lse_theirs) == 0


def test_torch_takes_the_calls_as_they_are_made_and_says_log_sum_exps_by_heads():
    """On no device torch computes nothing, but it checks arguments and says shapes."""

    def empty(*shape, dtype=torch.bfloat16):
        return torch.empty(*shape, dtype=dtype, device="meta")

    q, bounds, limits = empty(20, 4, 16), empty(5, dtype=torch.int32), empty(5, dtype=torch.int32)
    for kv_heads in (4, 2):
        k, v = empty(9, kv_heads, 16), empty(9, kv_heads, 16)
        out, lse = two_calls.varlen(q, k, v, bounds, limits, 7, 9, causal=False)
        assert out.shape == q.shape
        assert (lse.shape, lse.dtype) == ((4, 20), torch.float32)


def refused(said, tokens_=8, **changes):
    given = {
        "qkv": torch.zeros(tokens_, 64),
        "starts": torch.zeros(tokens_, dtype=torch.int32),
        "tiles": torch.zeros(1, 4, dtype=torch.int32),
        "out": torch.zeros(tokens_, 32),
        **shape_of(2, 1, 16),
        **changes,
    }
    with pytest.raises(ValueError, match=said):
        prefix_attention(**given)


def test_what_does_not_fit_is_refused():
    refused("2 heads of 12 over 1: expected heads of a power of two", size=12)
    refused("3 heads of 16 over 2: .* in equal groups", heads=3, kv_heads=2)
    refused(r"qkv \[8, 48\] and out \[8, 32\]: expected rows of 64 and 32", qkv=torch.zeros(8, 48))
    refused(r"starts \[7\]", starts=torch.zeros(7, dtype=torch.int32))
    refused(r"tiles \[1, 3\]", tiles=torch.zeros(1, 3, dtype=torch.int32))
    refused("expected one dtype", out=torch.zeros(8, 32, dtype=torch.bfloat16))
    refused(r"qkv \[8, 64\] has strides \[128, 1\]", qkv=torch.zeros(8, 128)[:, :64])
    many = (1 << 31) // 64
    rows = {"qkv": torch.zeros(1, 64).expand(many, -1), "out": torch.zeros(1, 32).expand(many, -1)}
    refused("expected less than 2,147,483,648 values", starts=torch.zeros(1, dtype=torch.int32).expand(many), **rows)


def test_two_calls_and_merge_refuse_what_does_not_fit():
    _, _, prefixes, items = packed([(3, (4,))])
    spans = two_calls.Spans.of(prefixes.numpy(), items.numpy(), torch.device("cpu"))
    with pytest.raises(ValueError, match=r"qkv \[8, 64\] and out \[7, 32\]: expected 7 rows of 64 and 32"):
        two_calls.two_calls(torch.zeros(8, 64), spans, torch.zeros(7, 32), **shape_of(2, 1, 16))
    rows = torch.zeros(7, 2, 16)
    with pytest.raises(ValueError, match=r"expected \[R, heads, size\] twice and \[heads, R\] twice"):
        merged(rows, rows, torch.zeros(7, 2), torch.zeros(7, 2))
    with pytest.raises(ValueError, match="heads of 12: expected a power of two"):
        merged(torch.zeros(7, 2, 12), torch.zeros(7, 2, 12), torch.zeros(2, 7), torch.zeros(2, 7))


def test_a_forward_without_tiles_writes_nothing():
    out = torch.full((4, 32), 5.0)
    none = torch.zeros(0, 4, dtype=torch.int32)
    assert (
        prefix_attention(torch.zeros(4, 64), torch.zeros(4, dtype=torch.int32), none, out, **shape_of(2, 1, 16)) == 5
    ).all()


def test_a_plan_makes_the_tiles_that_the_kernel_takes():
    assert plan.TILE_TOKENS == TILE_TOKENS
