"""The residual stream takes in what a block gave, and leaves its norm for the next product: one pass over both.

    residual += delta;  out = residual * rsqrt(mean(residual^2) + epsilon) * weight

**Layout.** residual [T, WIDTH], float32 or bfloat16, in place; delta [T, WIDTH] in any float, or none; out [T, WIDTH],
in the dtype of the matrices. Sums and the norm are float32 (float64 where the residual is). The norm is of the residual
as it was stored, rounded to its dtype. Tensors are contiguous.

**Invariant.** A row depends on its own row alone; a row of zeros gives zeros, since epsilon is above 0.

**Grid.** (ceil(T / ROWS),): a program's rows stay in registers between their two readings. Every byte is moved once:
12 a value with a float32 residual, 6 without a delta. Zhang, Sennrich, Root mean square layer normalization, 2019.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
# What Triton compiles has the types of its arguments, which are no Python types.
from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from penstock.kernels.rowwise.rows import ROWS, check_contiguous, wide
from penstock.kernels.rowwise.tuning import padded, warps_for


@triton.jit
def add_rmsnorm_rows(
    residual,
    delta,
    weight,  # [WIDTH]
    out,
    epsilon,
    count,  # T
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,  # WIDTH up to a power of two
    ROWS: tl.constexpr,
    ADDS: tl.constexpr,
):
    rows, at = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, PADDED)
    m_at = (rows < count)[:, None] & (at < WIDTH)
    row = rows[:, None] * WIDTH + at
    x = wide(tl.load(residual + row, mask=m_at, other=0.0))
    if ADDS:
        x += wide(tl.load(delta + row, mask=m_at, other=0.0))
        kept = x.to(residual.dtype.element_ty)
        tl.store(residual + row, kept, mask=m_at)
        x = wide(kept)
    scale = tl.rsqrt(tl.sum(x * x, axis=1) / WIDTH + epsilon)
    w = wide(tl.load(weight + at, mask=at < WIDTH, other=0.0))
    tl.store(out + row, (x * scale[:, None] * w).to(out.dtype.element_ty), mask=m_at)


def add_rmsnorm(residual: Tensor, delta: Tensor | None, weight: Tensor, out: Tensor, epsilon: float) -> Tensor:
    """`out`. Launches one kernel on the current stream and waits for nothing. Raises ValueError: other shapes or
    strides."""
    rows, width = residual.shape
    if out.shape != residual.shape or weight.shape != (width,) or (delta is not None and delta.shape != out.shape):
        raise ValueError(
            f"residual {list(residual.shape)}, delta {None if delta is None else list(delta.shape)}, weight "
            f"{list(weight.shape)}, out {list(out.shape)}: expected [T, width] all, and a weight of that width"
        )
    added = residual if delta is None else delta  # without one it is not read
    check_contiguous(residual=residual, delta=added, weight=weight, out=out)
    if rows:
        add_rmsnorm_rows[(triton.cdiv(rows, ROWS),)](
            residual,
            added,
            weight,
            out,
            epsilon,
            rows,
            WIDTH=width,
            PADDED=padded(width),
            ROWS=ROWS,
            ADDS=delta is not None,
            num_warps=warps_for(width),
        )
    return out
