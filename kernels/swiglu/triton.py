"""silu(gate) * up, of both as one product of matrices leaves them side by side.

**Layout.** gate_up [T, 2 * WIDTH], gate first; out [T, WIDTH], same dtype; both contiguous. silu(x) = x / (1 +
exp(-x)), in float32 (float64 where they are): 0 where exp(-x) is infinite. The product is rounded once.

**Grid.** (ceil(T / ROWS), ceil(WIDTH / BLOCK)). Every byte is moved once: 6 a value of the output in bfloat16. Shazeer,
GLU variants improve transformer, 2020.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
# What Triton compiles has the types of its arguments, which are no Python types.
from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from penstock.kernels.rowwise.rows import ROWS, check_contiguous, wide
from penstock.kernels.rowwise.tuning import BLOCK, padded, warps_for


@triton.jit
def gate_times_up(gate_up, out, count, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    m_at = (row < count) & (at < WIDTH)
    gate = wide(tl.load(gate_up + row * (2 * WIDTH) + at, mask=m_at, other=0.0))
    up = wide(tl.load(gate_up + row * (2 * WIDTH) + WIDTH + at, mask=m_at, other=0.0))
    tl.store(out + row * WIDTH + at, (gate / (1.0 + tl.exp(-gate)) * up).to(out.dtype.element_ty), mask=m_at)


def swiglu(gate_up: Tensor, out: Tensor) -> Tensor:
    """`out`. Launches one kernel on the current stream and waits for nothing. Raises ValueError: other shapes or
    strides."""
    rows, width = out.shape
    if gate_up.shape != (rows, 2 * width):
        raise ValueError(f"gate_up {list(gate_up.shape)} and out {list(out.shape)}: expected twice as wide")
    check_contiguous(gate_up=gate_up, out=out)
    if rows:
        block = min(BLOCK, padded(width))
        grid = (triton.cdiv(rows, ROWS), triton.cdiv(width, block))
        gate_times_up[grid](gate_up, out, rows, WIDTH=width, BLOCK=block, ROWS=ROWS, num_warps=warps_for(block))
    return out
