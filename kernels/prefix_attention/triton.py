"""Attention of a packed forward: each token to its prefix and, causally, to its own segment, in one pass.

    attention   tiles of queries over the keys that they may see, online softmax                 (one launch a layer)
    merge       two attentions over disjoint keys as the one over both, by log-sum-exp           (merged.py uses it)

**Layout.** qkv [T, (heads + 2 kv_heads) * D], queries, keys and values of a token side by side, as one product of
matrices leaves them; out [T, heads * D]. A forward is [prefix | its items | prefix | its items ...]
(ranker/engine/plan.py).

**Tiles.** int32 [S, 4]: first, end, prefix first, prefix end. The tokens first:end, TILE_TOKENS at most, have this
prefix in common and stand one behind the other, whatever items they are of: an item of two tokens fills no tile of its
own. starts int32 [T] says where each token's own segment begins, so a tile's own keys are those from the first
segment's start to its own end. A tile whose end is not above its first does nothing: captured graphs have some spare.

**One axis of keys.** Number n of the axis is prefix first + n within the prefix and goes on at the first own key behind
it, so a short prefix and short items share a block of keys and no block is padded between them. A query sees n where n
is of the prefix, or at or after its segment's start and not after itself.

**Heads.** The GROUP query heads that share a key head are rows of one tile, TOKENS * GROUP on the M axis of the tensor
cores: keys and values are read once for all of them.

**Invariant.** A token's result depends on the keys that it sees and on how they fall into blocks of KEYS: not on what
else is in the forward. Every query sees itself, so no sum is empty.

Grid: (S * ceil(TILE_TOKENS / TOKENS), kv_heads). The recurrence is that of Milakov, Gimelshein, Online normalizer
calculation for softmax, 2018, over tiles as in Dao, FlashAttention-2, 2023; items that see a shared prefix and
themselves as in Juravsky, Brown, Ehrlich, Fu, Ré, Mirhoseini, Hydragen, 2024, without its second pass.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
# What Triton compiles has the types of its arguments, which are no Python types.
from __future__ import annotations

import math
from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from penstock.kernels.prefix_attention.tuning import TILE_TOKENS, Tuning, tuning_for

LOG2E = math.log2(math.e)


@triton.jit
def attention(
    qkv,  # [T, (HEADS + 2 * KV_HEADS) * D]
    starts,  # int32 [T]
    tiles,  # int32 [S, 4]
    out,  # [T, HEADS * D], in qkv's dtype
    scale,  # of a product of query and key, times log2(e)
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,  # of a head: a power of two, 16 at least
    GROUP: tl.constexpr,  # HEADS / KV_HEADS, up to a power of two
    TOKENS: tl.constexpr,  # of a program: a power of two that divides TILE_TOKENS
    SPLITS: tl.constexpr,  # programs of a tile
    KEYS: tl.constexpr,  # at a time
    STAGES: tl.constexpr,
    INTERPRET: tl.constexpr,  # on a CPU: products in float32, which the interpreter multiplies rightly
):
    tile = tl.program_id(0) // SPLITS
    kv_head = tl.program_id(1)
    first = tl.load(tiles + tile * 4) + (tl.program_id(0) % SPLITS) * TOKENS
    end = tl.minimum(tl.load(tiles + tile * 4 + 1), first + TOKENS)
    if first < end:
        ROW: tl.constexpr = (HEADS + 2 * KV_HEADS) * D
        SHARING: tl.constexpr = HEADS // KV_HEADS
        prefix_first = tl.load(tiles + tile * 4 + 2)
        prefix = tl.load(tiles + tile * 4 + 3) - prefix_first  # how many keys of the axis are of the prefix
        rows = tl.arange(0, TOKENS * GROUP)
        token, head = first + rows // GROUP, kv_head * SHARING + rows % GROUP
        m_row = (token < end) & (rows % GROUP < SHARING)
        start = tl.load(starts + token, mask=token < end, other=0)
        own = tl.load(starts + first)
        # On the axis: the own keys of segments before the query's, which it skips, and the query itself.
        skipped, last = (start - own).to(tl.uint32, bitcast=True), prefix + token - own
        size = tl.arange(0, D)
        q = tl.load(qkv + token.to(tl.int64)[:, None] * ROW + head[:, None] * D + size, mask=m_row[:, None], other=0.0)
        if INTERPRET:
            q = q.to(tl.float32)
        keys_of, values_of = qkv + (HEADS + kv_head) * D, qkv + (HEADS + KV_HEADS + kv_head) * D
        number = tl.arange(0, KEYS)
        best = tl.full([TOKENS * GROUP], float("-inf"), tl.float32)
        total = tl.zeros([TOKENS * GROUP], tl.float32)
        b_out = tl.zeros([TOKENS * GROUP, D], tl.float32)
        count = prefix + end - own
        for begin in tl.range(0, count, KEYS, num_stages=STAGES):
            at = begin + number
            place = tl.where(at < prefix, prefix_first + at, own + at - prefix)
            offsets = place.to(tl.int64)[:, None] * ROW + size
            k = tl.load(keys_of + offsets, mask=(at < count)[:, None], other=0.0)
            v = tl.load(values_of + offsets, mask=(at < count)[:, None], other=0.0)
            if INTERPRET:
                k, v = k.to(tl.float32), v.to(tl.float32)
            past = (at - prefix).to(tl.uint32, bitcast=True)  # the prefix; of a key in it more than anything
            sees = (past[None, :] >= skipped[:, None]) & (at[None, :] <= last[:, None])
            scores = tl.where(sees, tl.dot(q, tl.trans(k), input_precision="ieee"), float("-inf"))
            higher = tl.maximum(best, tl.max(scores, axis=1))
            base = tl.where(higher == float("-inf"), 0.0, higher) * scale  # of a row that has seen no key so far
            weight = tl.math.exp2(scores * scale - base[:, None])
            before = tl.math.exp2(best * scale - base)
            total = total * before + tl.sum(weight, axis=1)
            b_out = tl.dot(weight.to(v.dtype), v, b_out * before[:, None], input_precision="ieee")
            best = higher
        result = b_out / tl.where(total > 0.0, total, 1.0)[:, None]
        there_at = out + token.to(tl.int64)[:, None] * (HEADS * D) + head[:, None] * D + size
        tl.store(there_at, result.to(out.dtype.element_ty), mask=m_row[:, None])


@triton.jit
def merge(
    mine,  # [R, HEADS, D], and out
    theirs,  # [R, HEADS, D]
    lse,  # float32 [HEADS, R]: log-sum-exp of mine's scores
    lse_theirs,  # float32 [HEADS, R]; -inf where there were no keys, and theirs may be anything there
    count,  # R
    HEADS: tl.constexpr,
    D: tl.constexpr,
    PADDED: tl.constexpr,  # HEADS up to a power of two
):
    """Grid: (R,). Over disjoint keys exact: weights are the shares of either's sum of exponentials."""
    row = tl.program_id(0).to(tl.int64)
    heads, size = tl.arange(0, PADDED), tl.arange(0, D)
    m_head = heads < HEADS
    a = tl.load(lse + heads * count + row, mask=m_head, other=0.0)
    b = tl.load(lse_theirs + heads * count + row, mask=m_head, other=float("-inf"))
    share = 1.0 / (1.0 + tl.exp(a - b))  # of theirs: 0 where b is -inf
    at = (row * HEADS + heads[:, None]) * D + size
    x = tl.load(mine + at, mask=m_head[:, None], other=0.0).to(tl.float32)
    y = tl.load(theirs + at, mask=m_head[:, None] & (share > 0.0)[:, None], other=0.0).to(tl.float32)
    tl.store(mine + at, (x + (y - x) * share[:, None]).to(mine.dtype.element_ty), mask=m_head[:, None])


INTERPRETED = not isinstance(attention, triton.JITFunction)


def prefix_attention(
    qkv: Tensor,
    starts: Tensor,
    tiles: Tensor,
    out: Tensor,
    *,
    heads: int,
    kv_heads: int,
    size: int,
    tuning: Tuning | None = None,
) -> Tensor:
    """`out`, written where some tile has the token; see above for the arguments. `size`: of a head.

    Launches one kernel on the current stream and waits for nothing. Raises ValueError: shapes that do not fit.
    """
    if size < 16 or size & (size - 1) or heads % kv_heads:
        raise ValueError(
            f"{heads} heads of {size} over {kv_heads}: expected heads of a power of two, 16 at least, in equal groups"
        )
    if qkv.shape[1] != (heads + 2 * kv_heads) * size or out.shape != (len(qkv), heads * size):
        raise ValueError(
            f"qkv {list(qkv.shape)} and out {list(out.shape)}: expected rows of {(heads + 2 * kv_heads) * size} and "
            f"{heads * size}"
        )
    form = tuning or tuning_for(heads // kv_heads, size)
    if INTERPRETED and tuning is None:
        form = replace(form, tokens=TILE_TOKENS, keys=128)  # programs and loops are what takes time there
    splits = TILE_TOKENS // form.tokens
    attention[(len(tiles) * splits, kv_heads)](
        qkv,
        starts,
        tiles,
        out,
        size**-0.5 * LOG2E,
        HEADS=heads,
        KV_HEADS=kv_heads,
        D=size,
        GROUP=form.group,
        TOKENS=form.tokens,
        SPLITS=splits,
        KEYS=form.keys,
        STAGES=form.stages,
        INTERPRET=INTERPRETED,
        num_warps=form.warps,
        num_stages=form.stages,
    )
    return out


def merged(mine: Tensor, theirs: Tensor, lse: Tensor, lse_theirs: Tensor) -> Tensor:
    """`mine` [R, heads, D] as if it had seen both sets of keys. lse float32 [heads, R], contiguous."""
    rows, heads, size = mine.shape
    if lse.shape != (heads, rows) or lse_theirs.shape != (heads, rows):
        raise ValueError(
            f"log-sum-exps {list(lse.shape)} and {list(lse_theirs.shape)}: expected [{heads}, {rows}], heads first"
        )
    if rows:
        padded = triton.next_power_of_2(heads)
        merge[(rows,)](mine, theirs, lse, lse_theirs, rows, HEADS=heads, D=size, PADDED=padded, num_warps=4)
    return mine


def empty_tiles(count: int, device: torch.device) -> Tensor:
    """So many that do nothing."""
    return torch.zeros(count, 4, dtype=torch.int32, device=device)
