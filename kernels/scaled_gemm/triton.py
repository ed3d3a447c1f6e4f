"""A product by numbers of one byte: rows and a matrix's rows as int8 or e4m3 and a step each, scaled once at the end.

    quantise    x = numbers * step, step = max |x| / 127 or 448 of the row      activations a row, weights a channel
    multiply    out[m, n] = (sum over k of x[m, k] * w[n, k]) * step[m] * step[n] + bias[n]

The tensor cores of a Hopper GPU multiply these twice as fast as bfloat16, and a weight is half the bytes. What it costs
in accuracy is reference.py's `lost`. Norms and activations leave numbers and steps themselves (rowwise/steps.py), which
spares a pass over them; `quantise` is for rows that come from elsewhere.

**Layout.** x [M, K] and w [N, K] of one type, int8 or float8_e4m3fn, both K along the row, as torch's Linear has its
weight; steps float32 [M] and [N]; bias [N] in any float, or none; out [M, N] in any float. K is a multiple of 16, of
int8 MOST_DEPTH at most, so that int32 holds every sum. All contiguous.

**Invariant.** An output depends on its row and its column alone. Sums of int8 are exact, whatever the tuning; three
roundings in float32 follow, and one to out's dtype. Sums of e4m3 are float32; on a Hopper GPU the tensor cores keep
some 14 bits of a sum, so what they add up is TILE_K values long, and those sums are added in float32 outside of them
(DeepSeek-AI, DeepSeek-V3, 2024, 3.3.2). A row of zeros has step 0, numbers 0 and products 0; one that is not finite has
a step that is not.

**Grid.** quantise (ceil(M / ROWS),); multiply (ceil(M / TILE_M) * ceil(N / TILE_N),), columns by GROUP rows of
programs, so that w stays in the L2 cache. Dettmers, Lewis, Belkada, Zettlemoyer, LLM.int8(), 2022, without outliers;
Micikevicius et al., FP8 formats for deep learning, 2022.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
# What Triton compiles has the types of its arguments, which are no Python types.
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from penstock.kernels.rowwise.rows import INTERPRETED, ROWS, check_contiguous, wide
from penstock.kernels.rowwise.steps import BYTES, check_steps, stepped
from penstock.kernels.rowwise.tuning import padded, warps_for
from penstock.kernels.scaled_gemm.tuning import Tuning, tuning_for

MOST_DEPTH = (2**31 - 1) // (127 * 127) // 16 * 16


@triton.jit
def quantise(
    rows,  # [M, WIDTH]
    numbers,  # int8 or e4m3 [M, WIDTH] out
    steps,  # float32 [M] out
    count,  # M
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,  # WIDTH up to a power of two
    ROWS: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    number, at = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, PADDED)
    m_at = (number < count)[:, None] & (at < WIDTH)
    row = number[:, None] * WIDTH + at
    x = wide(tl.load(rows + row, mask=m_at, other=0.0))
    b_numbers, step = stepped(x, numbers.dtype.element_ty, INTERPRET)
    tl.store(numbers + row, b_numbers, mask=m_at)
    tl.store(steps + number, step, mask=number < count)


@triton.jit
def multiply(
    x,  # int8 or e4m3 [M, K]
    x_steps,  # float32 [M]
    w,  # likewise [N, K]
    w_steps,  # float32 [N]
    bias,  # [N]; not read unless BIASED
    out,  # [M, N]
    count,  # M
    depth,  # K; no constexpr: a loop of known length is unrolled whole, and no longer one that copies run ahead of
    N: tl.constexpr,
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_K: tl.constexpr,
    GROUP: tl.constexpr,
    STAGES: tl.constexpr,
    BIASED: tl.constexpr,
    INTERPRET: tl.constexpr,  # on a CPU: e4m3 in float32
):
    WHOLE: tl.constexpr = x.dtype.element_ty == tl.int8
    SUM: tl.constexpr = tl.int32 if WHOLE else tl.float32
    down, across = tl.cdiv(count, TILE_M), tl.cdiv(N, TILE_N)
    group = tl.program_id(0) // (GROUP * across)
    within = tl.program_id(0) % (GROUP * across)
    tall = tl.minimum(down - group * GROUP, GROUP)  # the last group may have fewer rows
    o_m = (group * GROUP + within % tall) * TILE_M + tl.arange(0, TILE_M)
    o_n = (within // tall) * TILE_N + tl.arange(0, TILE_N)
    m_m, m_n, o_k = o_m < count, o_n < N, tl.arange(0, TILE_K)
    p_x = x + o_m.to(tl.int64)[:, None] * depth + o_k
    p_w = w + o_n.to(tl.int64)[:, None] * depth + o_k
    sums = tl.zeros([TILE_M, TILE_N], SUM)
    for begin in tl.range(0, depth, TILE_K, num_stages=STAGES):
        m_k = (begin + o_k < depth)[None, :]
        b_x = tl.load(p_x + begin, mask=m_m[:, None] & m_k, other=0.0)
        b_w = tl.load(p_w + begin, mask=m_n[:, None] & m_k, other=0.0)
        if WHOLE:
            sums = tl.dot(b_x, tl.trans(b_w), sums, out_dtype=tl.int32)
        elif INTERPRET:
            sums = tl.dot(wide(b_x), tl.trans(wide(b_w)), sums, input_precision="ieee")
        else:
            sums = tl.dot(b_x, tl.trans(b_w), sums, max_num_imprecise_acc=TILE_K)
    scale = tl.load(x_steps + o_m, mask=m_m, other=0.0)[:, None] * tl.load(w_steps + o_n, mask=m_n, other=0.0)[None, :]
    b_out = sums.to(tl.float32) * scale
    if BIASED:
        b_out += wide(tl.load(bias + o_n, mask=m_n, other=0.0))[None, :]
    o_out = o_m.to(tl.int64)[:, None] * N + o_n
    tl.store(out + o_out, b_out.to(out.dtype.element_ty), mask=m_m[:, None] & m_n[None, :])


def quantised(rows: Tensor, numbers: Tensor, steps: Tensor) -> None:
    """`rows` [M, K] as `numbers`, int8 or float8_e4m3fn [M, K], times `steps` float32 [M].

    Launches one kernel on the current stream and waits for nothing. Raises ValueError: other shapes, dtypes or strides.
    """
    count, width = rows.shape
    if numbers.shape != rows.shape:
        raise ValueError(f"rows {list(rows.shape)}, numbers {list(numbers.shape)}: expected as many")
    check_steps(count, numbers, steps)
    check_contiguous(rows=rows, numbers=numbers, steps=steps)
    if count:
        grid = (triton.cdiv(count, ROWS),)
        quantise[grid](
            rows,
            numbers,
            steps,
            count,
            WIDTH=width,
            PADDED=padded(width),
            ROWS=ROWS,
            INTERPRET=INTERPRETED,
            num_warps=warps_for(width),
        )


def scaled_gemm(
    x: Tensor,
    x_steps: Tensor,
    w: Tensor,
    w_steps: Tensor,
    out: Tensor,
    *,
    bias: Tensor | None = None,
    tuning: Tuning | None = None,
) -> Tensor:
    """`out` [M, N]. Launches one kernel on the current stream and waits for nothing.

    Raises ValueError: other shapes, dtypes or strides, or sums that int32 does not hold.
    """
    (rows, depth), columns = x.shape, len(w)
    if w.shape != (columns, depth) or out.shape != (rows, columns) or x.dtype != w.dtype or x.dtype not in BYTES:
        raise ValueError(
            f"x {x.dtype} {list(x.shape)}, w {w.dtype} {list(w.shape)}, out {list(out.shape)}: expected [M, K], [N, K] "
            "and [M, N], the first two of int8 or of float8_e4m3fn"
        )
    if x_steps.shape != (rows,) or w_steps.shape != (columns,) or (bias is not None and bias.shape != (columns,)):
        raise ValueError(
            f"steps {list(x_steps.shape)} and {list(w_steps.shape)}, bias "
            f"{None if bias is None else list(bias.shape)}: expected [{rows}], and [{columns}] twice"
        )
    if depth % 16 or (depth > MOST_DEPTH and x.dtype == torch.int8):
        raise ValueError(f"rows of {depth} values: expected a multiple of 16, of int8 {MOST_DEPTH:,} at most")
    added = w_steps if bias is None else bias  # without one it is not read
    check_contiguous(x=x, x_steps=x_steps, w=w, w_steps=w_steps, bias=added, out=out)
    form = tuning or tuning_for("int8" if x.dtype == torch.int8 else "fp8")
    if rows and columns:
        multiply[(triton.cdiv(rows, form.rows) * triton.cdiv(columns, form.columns),)](
            x,
            x_steps,
            w,
            w_steps,
            added,
            out,
            rows,
            depth,
            N=columns,
            TILE_M=form.rows,
            TILE_N=form.columns,
            TILE_K=form.depth,
            GROUP=form.group,
            STAGES=form.stages,
            BIASED=bias is not None,
            INTERPRET=INTERPRETED,
            num_warps=form.warps,
            num_stages=form.stages,
        )
    return out
