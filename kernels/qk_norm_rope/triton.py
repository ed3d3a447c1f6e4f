"""Queries and keys get their norms and their positions, in place, where a product of matrices left them.

    h = h * rsqrt(mean(h^2) + epsilon) * weight[head];   (a, b) = (a cos - b sin, b cos + a sin)

**Layout.** qkv [T, WIDTH]: of each token HEADS turned heads of 2 * HALF values (all query heads, then all key heads),
then values, which nothing touches. weight [HEADS, 2 * HALF], a row a head. positions int32 [T]: an item's go on from
its prefix's length, whatever stands between them. cosines, sines float32 [longest, HALF], by position: computed once,
with the frequencies and the scale that the model has (sines of large angles are slow, and tables stay in the L2 cache).
a and b are the halves of a head, as Qwen3 has them. Sums and products are float32 (float64 where the tables are, and
qkv is). All contiguous.

**Invariant.** A token's heads depend on itself and its position alone.

**Grid.** (ceil(T / ROWS),): a program takes all heads of its tokens, which are read and written once. Su, Lu, Pan,
Murtadha, Wen, Liu, RoFormer, 2021.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
# What Triton compiles has the types of its arguments, which are no Python types.
from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from penstock.kernels.qk_norm_rope.tuning import warps_of
from penstock.kernels.rowwise.rows import ROWS, check_contiguous, wide
from penstock.kernels.rowwise.tuning import padded


@triton.jit
def turn(
    qkv,
    weight,
    positions,
    cosines,
    sines,
    epsilon,
    count,  # T
    WIDTH: tl.constexpr,
    HEADS: tl.constexpr,
    PADDED: tl.constexpr,  # HEADS up to a power of two
    HALF: tl.constexpr,  # a power of two
    ROWS: tl.constexpr,
):
    each, size = tl.arange(0, ROWS * PADDED), tl.arange(0, HALF)
    head, token = each % PADDED, tl.program_id(0) * ROWS + each // PADDED
    m_head = ((head < HEADS) & (token < count))[:, None]
    place = head[:, None] * (2 * HALF) + size
    row = qkv + token.to(tl.int64)[:, None] * WIDTH + place
    a = wide(tl.load(row, mask=m_head, other=0.0))
    b = wide(tl.load(row + HALF, mask=m_head, other=0.0))
    scale = tl.rsqrt((tl.sum(a * a, axis=1) + tl.sum(b * b, axis=1)) / (2 * HALF) + epsilon)[:, None]
    a *= scale * wide(tl.load(weight + place, mask=m_head, other=0.0))
    b *= scale * wide(tl.load(weight + place + HALF, mask=m_head, other=0.0))
    # Of all heads the same: Triton sees it, and loads a thread's columns once.
    at = tl.load(positions + token, mask=token < count, other=0).to(tl.int64)[:, None] * HALF + size
    cosine, sine = tl.load(cosines + at), tl.load(sines + at)
    tl.store(row, (a * cosine - b * sine).to(qkv.dtype.element_ty), mask=m_head)
    tl.store(row + HALF, (b * cosine + a * sine).to(qkv.dtype.element_ty), mask=m_head)


def qk_norm_rope(
    qkv: Tensor, weight: Tensor, positions: Tensor, cosines: Tensor, sines: Tensor, epsilon: float
) -> Tensor:
    """`qkv`, turned in place. Positions are the caller's to check: below len(cosines).

    Launches one kernel on the current stream and waits for nothing. Raises ValueError: shapes or strides that
    do not fit.
    """
    tokens, width = qkv.shape
    heads, size = weight.shape
    half = size // 2
    if size < 2 or size & (size - 1) or heads * size > width or len(positions) != tokens:
        raise ValueError(
            f"qkv {list(qkv.shape)}, weight {list(weight.shape)}, {len(positions)} positions: expected heads of a "
            "power of two that fit into a row, and a position a token"
        )
    if cosines.shape != sines.shape or cosines.shape[1] != half:
        raise ValueError(f"cosines {list(cosines.shape)}, sines {list(sines.shape)}: expected [longest, {half}] both")
    check_contiguous(qkv=qkv, weight=weight, positions=positions, cosines=cosines, sines=sines)
    if tokens:
        turn[(triton.cdiv(tokens, ROWS),)](
            qkv,
            weight,
            positions,
            cosines,
            sines,
            epsilon,
            tokens,
            WIDTH=width,
            HEADS=heads,
            PADDED=padded(heads),
            HALF=half,
            ROWS=ROWS,
            num_warps=warps_of(heads, size),
        )
    return qkv
