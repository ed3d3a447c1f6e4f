"""Attention of a packed forward: each token to its prefix and, causally, to its own segment, in one pass.

One launch a layer, of tiles of queries over the keys that they may see. two_calls.py is the same by others' kernels.

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
else is in the forward. Rows that no tile names are neither read nor written, whatever they hold. Every query sees
itself, so no sum is empty. Scores and sums are float32, weights are rounded to the values' dtype (float64, in the
interpreter alone, is float64 throughout).

**Expected.** Values of tokens that a tile names are finite: a neighbour's are multiplied by a weight of 0, which NaN
and infinity survive (its keys may be anything). So they are where weights and vectors are: a norm stands before every
product and leaves finite rows finite, and bfloat16 reaches as far as float32. A second pass that spares a row what it
does not see takes 80 registers more, and with them a multiprocessor's second program.

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
from penstock.kernels.rowwise.rows import INTERPRETED, check_contiguous, wide

LOG2E = tl.constexpr(math.log2(math.e))
MOST_VALUES = 1 << 31  # of qkv: offsets of keys are int32, which takes 12 registers less in the largest forms


@triton.jit
def attention(
    qkv,  # [T, (HEADS + 2 * KV_HEADS) * D]
    starts,  # int32 [T]
    tiles,  # int32 [S, 4]
    out,  # [T, HEADS * D], in qkv's dtype
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,  # of a head: a power of two, 16 at least
    GROUP: tl.constexpr,  # HEADS / KV_HEADS, up to a power of two
    TOKENS: tl.constexpr,  # of a program: a power of two that divides TILE_TOKENS
    SPLITS: tl.constexpr,  # programs of a tile
    KEYS: tl.constexpr,  # at a time
    STAGES: tl.constexpr,
    INTERPRET: tl.constexpr,  # on a CPU: products of wide operands, which the interpreter multiplies rightly
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
            q = wide(q)
        keys_of, values_of = qkv + (HEADS + kv_head) * D, qkv + (HEADS + KV_HEADS + kv_head) * D
        count = prefix + end - own
        number = tl.arange(0, KEYS)
        SUM: tl.constexpr = tl.float64 if q.dtype == tl.float64 else tl.float32
        SCALE: tl.constexpr = LOG2E / D**0.5  # of a score, which is a power of two then
        best = tl.full([TOKENS * GROUP], float("-inf"), SUM)
        total = tl.zeros([TOKENS * GROUP], SUM)
        b_out = tl.zeros([TOKENS * GROUP, D], SUM)
        for begin in tl.range(0, count, KEYS, num_stages=STAGES):
            at = begin + number
            place = tl.where(at < prefix, prefix_first + at, own + at - prefix)
            offsets = place[:, None] * ROW + size
            k = tl.load(keys_of + offsets, mask=(at < count)[:, None], other=0.0)
            v = tl.load(values_of + offsets, mask=(at < count)[:, None], other=0.0)
            if INTERPRET:
                k, v = wide(k), wide(v)
            past = (at - prefix).to(tl.uint32, bitcast=True)  # the prefix; of a key in it more than anything
            sees = (past[None, :] >= skipped[:, None]) & (at[None, :] <= last[:, None])
            scores = tl.where(sees, tl.dot(q, tl.trans(k), input_precision="ieee"), float("-inf"))
            higher = tl.maximum(best, tl.max(scores, axis=1))
            base = tl.where(higher == float("-inf"), 0.0, higher) * SCALE  # of a row that has seen no key so far
            weight = tl.math.exp2(scores * SCALE - base[:, None])
            before = tl.math.exp2(best * SCALE - base)
            total = total * before + tl.sum(weight, axis=1)
            b_out = tl.dot(weight.to(v.dtype), v, b_out * before[:, None], input_precision="ieee")
            best = higher
        result = b_out / tl.where(total > 0.0, total, 1.0)[:, None]
        there_at = out + token.to(tl.int64)[:, None] * (HEADS * D) + head[:, None] * D + size
        tl.store(there_at, result.to(out.dtype.element_ty), mask=m_row[:, None])


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

    Launches one kernel on the current stream and waits for nothing. Raises ValueError: shapes or strides that do not
    fit, float64 on a device.
    """
    _check(qkv, starts, tiles, out, heads, kv_heads, size)
    if not len(tiles):
        return out
    form = tuning or tuning_for(heads // kv_heads, size)
    if INTERPRETED and tuning is None:
        form = replace(form, tokens=TILE_TOKENS, keys=128)  # programs and loops are what takes time there
    splits = TILE_TOKENS // form.tokens
    attention[(len(tiles) * splits, kv_heads)](
        qkv,
        starts,
        tiles,
        out,
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


def _check(qkv: Tensor, starts: Tensor, tiles: Tensor, out: Tensor, heads: int, kv_heads: int, size: int) -> None:
    """ValueError where they do not fit."""
    if size < 16 or size & (size - 1) or heads % kv_heads:
        raise ValueError(
            f"{heads} heads of {size} over {kv_heads}: expected heads of a power of two, 16 at least, in equal groups"
        )
    if qkv.shape[1] != (heads + 2 * kv_heads) * size or out.shape != (len(qkv), heads * size):
        raise ValueError(
            f"qkv {list(qkv.shape)} and out {list(out.shape)}: expected rows of {(heads + 2 * kv_heads) * size} and "
            f"{heads * size}"
        )
    if starts.shape != (len(qkv),) or tiles.ndim != 2 or tiles.shape[1] != 4:
        raise ValueError(
            f"starts {list(starts.shape)} and tiles {list(tiles.shape)}: expected [{len(qkv)}], a start a token, and "
            "[S, 4]"
        )
    if out.dtype != qkv.dtype or (qkv.dtype == torch.float64 and not INTERPRETED):
        raise ValueError(f"qkv of {qkv.dtype}, out of {out.dtype}: expected one dtype, float32 or less on a device")
    if qkv.numel() >= MOST_VALUES:
        raise ValueError(f"qkv {list(qkv.shape)}: expected less than {MOST_VALUES:,} values, whose offsets are int32")
    check_contiguous(qkv=qkv, starts=starts, tiles=tiles, out=out)
