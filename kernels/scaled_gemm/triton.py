"""A product by int8: rows and a matrix's rows as whole numbers and a step each, multiplied exactly, scaled once.

    quantise    x = numbers * step, step = max |x| / 127 of the row      activations a row, weights an output channel
    multiply    out[m, n] = (sum over k of x[m, k] * w[n, k]) * step[m] * step[n]

The tensor cores of a Hopper GPU multiply int8 twice as fast as bfloat16, and a weight is half the bytes. What it costs
in accuracy is reference.py's `lost`. No backend takes it: it waits for a GPU to be measured on.

**Layout.** x int8 [M, K] and w int8 [N, K], both K along the row, as torch's Linear has its weight; steps float32 [M]
and [N]; out [M, N] in any float. K is a multiple of 16, MOST_DEPTH at most, so that int32 holds every sum. All
contiguous.

**Invariant.** Sums are exact, so an output depends on its row and its column alone, whatever the tuning: two roundings
in float32, then one to out's dtype. A row of zeros has step 0, numbers 0 and products 0.

**Grid.** quantise (ceil(M / ROWS),); multiply (ceil(M / TILE_M) * ceil(N / TILE_N),), columns by GROUP rows of
programs, so that w stays in the L2 cache. Dettmers, Lewis, Belkada, Zettlemoyer, LLM.int8(), 2022, without outliers.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
# What Triton compiles has the types of its arguments, which are no Python types.
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from penstock.kernels.rowwise.rows import ROWS, check_contiguous, wide
from penstock.kernels.rowwise.tuning import padded, warps_for
from penstock.kernels.scaled_gemm.tuning import Tuning

MOST_DEPTH = (2**31 - 1) // (127 * 127) // 16 * 16


@triton.jit
def quantise(
    rows,  # [M, WIDTH]
    numbers,  # int8 [M, WIDTH] out
    steps,  # float32 [M] out
    count,  # M
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,  # WIDTH up to a power of two
    ROWS: tl.constexpr,
):
    number, at = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, PADDED)
    m_at = (number < count)[:, None] & (at < WIDTH)
    row = number[:, None] * WIDTH + at
    x = wide(tl.load(rows + row, mask=m_at, other=0.0))
    step = tl.max(tl.abs(x), axis=1) / 127.0
    scaled = x / tl.where(step > 0.0, step, 1.0)[:, None]
    nearest = tl.minimum(tl.maximum(tl.floor(scaled + 0.5), -127.0), 127.0)
    tl.store(numbers + row, nearest.to(tl.int8), mask=m_at)
    tl.store(steps + number, step.to(tl.float32), mask=number < count)


@triton.jit
def multiply(
    x,  # int8 [M, K]
    x_steps,  # float32 [M]
    w,  # int8 [N, K]
    w_steps,  # float32 [N]
    out,  # [M, N]
    count,  # M
    depth,  # K; no constexpr: a loop of known length is unrolled whole, and no longer one that copies run ahead of
    N: tl.constexpr,
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_K: tl.constexpr,
    GROUP: tl.constexpr,
    STAGES: tl.constexpr,
):
    down, across = tl.cdiv(count, TILE_M), tl.cdiv(N, TILE_N)
    group = tl.program_id(0) // (GROUP * across)
    within = tl.program_id(0) % (GROUP * across)
    tall = tl.minimum(down - group * GROUP, GROUP)  # the last group may have fewer rows
    o_m = (group * GROUP + within % tall) * TILE_M + tl.arange(0, TILE_M)
    o_n = (within // tall) * TILE_N + tl.arange(0, TILE_N)
    m_m, m_n, o_k = o_m < count, o_n < N, tl.arange(0, TILE_K)
    p_x = x + o_m.to(tl.int64)[:, None] * depth + o_k
    p_w = w + o_n.to(tl.int64)[:, None] * depth + o_k
    sums = tl.zeros([TILE_M, TILE_N], tl.int32)
    for begin in tl.range(0, depth, TILE_K, num_stages=STAGES):
        m_k = (begin + o_k < depth)[None, :]
        b_x = tl.load(p_x + begin, mask=m_m[:, None] & m_k, other=0)
        b_w = tl.load(p_w + begin, mask=m_n[:, None] & m_k, other=0)
        sums = tl.dot(b_x, tl.trans(b_w), sums, out_dtype=tl.int32)
    scale = tl.load(x_steps + o_m, mask=m_m, other=0.0)[:, None] * tl.load(w_steps + o_n, mask=m_n, other=0.0)[None, :]
    b_out = (sums.to(tl.float32) * scale).to(out.dtype.element_ty)
    tl.store(out + o_m.to(tl.int64)[:, None] * N + o_n, b_out, mask=m_m[:, None] & m_n[None, :])


def quantised(rows: Tensor, numbers: Tensor, steps: Tensor) -> None:
    """`rows` [M, K] as `numbers` int8 [M, K] times `steps` float32 [M].

    Launches one kernel on the current stream and waits for nothing. Raises ValueError: other shapes, dtypes or strides.
    """
    count, width = rows.shape
    if numbers.shape != rows.shape or numbers.dtype != torch.int8 or steps.shape != (count,):
        raise ValueError(
            f"rows {list(rows.shape)}, numbers {numbers.dtype} {list(numbers.shape)}, steps {list(steps.shape)}: "
            "expected int8 of the rows' shape, and a step a row"
        )
    check_contiguous(rows=rows, numbers=numbers, steps=steps)
    if count:
        grid = (triton.cdiv(count, ROWS),)
        quantise[grid](
            rows, numbers, steps, count, WIDTH=width, PADDED=padded(width), ROWS=ROWS, num_warps=warps_for(width)
        )


def scaled_gemm(
    x: Tensor, x_steps: Tensor, w: Tensor, w_steps: Tensor, out: Tensor, *, tuning: Tuning | None = None
) -> Tensor:
    """`out` [M, N]. Launches one kernel on the current stream and waits for nothing.

    Raises ValueError: other shapes, dtypes or strides, or sums that int32 does not hold.
    """
    (rows, depth), columns = x.shape, len(w)
    if w.shape != (columns, depth) or out.shape != (rows, columns) or {x.dtype, w.dtype} != {torch.int8}:
        raise ValueError(
            f"x {x.dtype} {list(x.shape)}, w {w.dtype} {list(w.shape)}, out {list(out.shape)}: expected int8 [M, K], "
            "int8 [N, K] and [M, N]"
        )
    if x_steps.shape != (rows,) or w_steps.shape != (columns,):
        raise ValueError(f"steps {list(x_steps.shape)} and {list(w_steps.shape)}: expected [{rows}] and [{columns}]")
    if depth % 16 or depth > MOST_DEPTH:
        raise ValueError(f"rows of {depth} values: expected a multiple of 16, {MOST_DEPTH:,} at most")
    check_contiguous(x=x, x_steps=x_steps, w=w, w_steps=w_steps, out=out)
    form = tuning or Tuning()
    if rows and columns:
        multiply[(triton.cdiv(rows, form.rows) * triton.cdiv(columns, form.columns),)](
            x,
            x_steps,
            w,
            w_steps,
            out,
            rows,
            depth,
            N=columns,
            TILE_M=form.rows,
            TILE_N=form.columns,
            TILE_K=form.depth,
            GROUP=form.group,
            STAGES=form.stages,
            num_warps=form.warps,
            num_stages=form.stages,
        )
    return out
