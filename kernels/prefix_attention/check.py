"""A handful of seeded forwards against the oracle, for benchmarks and tests."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from penstock.kernels.prefix_attention import reference
from penstock.kernels.prefix_attention.merge import merged
from penstock.kernels.prefix_attention.triton import prefix_attention
from penstock.kernels.prefix_attention.tuning import TILE_TOKENS, Tuning, tuning_for
from penstock.kernels.prefix_attention.two_calls import Spans, two_calls
from penstock.kernels.rowwise.rounding import SMALLEST, beyond, sums, unit

Groups = Sequence[tuple[int, Sequence[int]]]  # prefixes' lengths, each with those of its items

UNTOUCHED = -77.0  # where no tile has a token; NaN where one has, so that either fault shows


def packed(groups: Groups) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(starts [T], tiles [S, 4], prefixes [P, 2], items [N, 2]) of a forward, as ranker/engine/plan.py lays it out."""
    starts: list[int] = []
    tiles: list[tuple[int, int, int, int]] = []
    prefixes: list[tuple[int, int]] = []
    items: list[tuple[int, int]] = []
    for length, lengths in groups:
        first = len(starts)
        starts += [first] * length
        prefixes.append((first, first + length))
        for item in lengths:
            items.append((len(starts), len(starts) + item))
            starts += [len(starts)] * item
        for begin, end, prefix in ((first, first + length, 0), (first + length, len(starts), length)):
            tiles += [(at, min(at + TILE_TOKENS, end), first, first + prefix) for at in range(begin, end, TILE_TOKENS)]
    shaped = ((starts, (-1,)), (tiles, (-1, 4)), (prefixes, (-1, 2)), (items, (-1, 2)))
    found = [torch.tensor(values, dtype=torch.int32).reshape(shape) for values, shape in shaped]
    return found[0], found[1], found[2], found[3]


def allowed(qkv: Tensor, starts: Tensor, tiles: Tensor, *, heads: int, kv_heads: int, size: int, keys: int) -> Tensor:
    """What rounding can do to each value at most, float64 [T, heads * size], with `keys` at a time.

    A score is a sum of `size` products, and its power of two is taken relative to the best so far: both are off by
    a share of sum |q k|, as is what rescales sums from block to block. So is a weight, by the power of it. Sums of
    weights and of weighted values are off by a share of a weighted sum of |v|, in which the weights' own rounding to
    the values' dtype lies too, and the result is rounded once.
    """
    wide = torch.nan_to_num(qkv.double().cpu(), posinf=0.0, neginf=0.0)
    at = wide.abs().view(len(wide), -1, size)
    group = heads // kv_heads
    most = torch.stack(
        [at[:, head] @ at[:, heads + head // group].T for head in range(heads)], 1
    )  # [T, heads, T]: sum |q k|
    blocks, u = -(-len(wide) // keys) + 1, sums(qkv.dtype)
    exponent = most.amax(-1) * (size**-0.5 * 1.4427 * (size + 6 + 4 * blocks) * u)
    weights = (torch.exp2(exponent) - 1 + (4 * blocks + 4 + len(wide)) * u)[..., None]
    wide[:, (heads + kv_heads) * size :] = wide[:, (heads + kv_heads) * size :].abs()
    shape = {"heads": heads, "kv_heads": kv_heads, "size": size}
    sizes = reference.prefix_attention(wide, starts, tiles, **shape)[0].view(len(wide), heads, size)
    of_weights = unit(qkv.dtype) if qkv.dtype.itemsize < 4 else 0.0
    found = sizes * (2 * weights + of_weights) * (1 + unit(qkv.dtype)) + sizes * unit(qkv.dtype) + SMALLEST
    return found.view(len(wide), -1)


def differing(
    qkv: Tensor, starts: Tensor, tiles: Tensor, *, heads: int, kv_heads: int, size: int, tuning: Tuning | None = None
) -> int:
    """Values, in memory that was poisoned, that rounding does not explain, and those that no tile has."""
    shape = {"heads": heads, "kv_heads": kv_heads, "size": size}
    wanted, covered = reference.prefix_attention(qkv, starts.cpu(), tiles.cpu(), **shape)
    wanted[~covered] = UNTOUCHED
    out = torch.full((len(qkv), heads * size), torch.nan, dtype=qkv.dtype)
    out[~covered] = UNTOUCHED
    out = out.to(qkv.device)
    prefix_attention(qkv, starts, tiles, out, heads=heads, kv_heads=kv_heads, size=size, tuning=tuning)
    keys = (tuning or tuning_for(heads // kv_heads, size)).keys
    return beyond(out, wanted, allowed(qkv, starts.cpu(), tiles.cpu(), **shape, keys=keys))


def differing_in_two_calls(qkv: Tensor, groups: Groups, *, heads: int, kv_heads: int, size: int) -> int:
    """The same of two_calls: either call's result is rounded, and so is what they are merged to."""
    shape = {"heads": heads, "kv_heads": kv_heads, "size": size}
    starts, tiles, prefixes, items = packed(groups)
    out = torch.full((len(qkv), heads * size), torch.nan, dtype=qkv.dtype, device=qkv.device)
    two_calls(qkv, Spans.of(prefixes.numpy(), items.numpy(), qkv.device), out, **shape)
    wanted, _ = reference.prefix_attention(qkv, starts, tiles, **shape)
    return beyond(out, wanted, 2 * allowed(qkv, starts, tiles, **shape, keys=1))


def differing_merge(mine: Tensor, theirs: Tensor, lse: Tensor, lse_theirs: Tensor) -> int:
    """Values that rounding does not explain: shares are off by a few roundings, since either is at most 1."""
    found = merged(mine.clone(), theirs, lse, lse_theirs)
    mine, theirs, lse, lse_theirs = (one.cpu() for one in (mine, theirs, lse, lse_theirs))
    wanted = reference.merged(mine, theirs, lse, lse_theirs)
    sizes = mine.double().abs() + torch.nan_to_num(theirs.double(), posinf=0.0, neginf=0.0).abs()
    return beyond(found, wanted, unit(mine.dtype) * wanted.abs() + 12 * sums(mine.dtype) * sizes + SMALLEST)


def mismatches() -> int:
    """How many values are wrong: of all heads there are, by either way."""
    chance = torch.Generator().manual_seed(7)
    wrong = 0
    groups = ((70, (1, 1, 2, 90)), (0, (3,)), (5, (40, 41)))
    starts, tiles, _, _ = packed(groups)
    for dtype in (torch.float32, torch.bfloat16):
        for heads, kv_heads, size in ((4, 2, 16), (3, 1, 32)):
            shape = {"heads": heads, "kv_heads": kv_heads, "size": size}
            qkv = torch.randn(len(starts), (heads + 2 * kv_heads) * size, generator=chance).to(dtype)
            wrong += differing(qkv, starts, tiles, heads=heads, kv_heads=kv_heads, size=size)
            wrong += differing_in_two_calls(qkv, groups, **shape)
    return wrong
