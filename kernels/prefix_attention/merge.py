"""Two attentions over disjoint keys as the one over both, by their log-sum-exps.

    share = exp(lse_theirs) / (exp(lse) + exp(lse_theirs));   mine = mine * (1 - share) + theirs * share

**Layout.** mine and theirs [R, HEADS, D] in one dtype, contiguous; mine is written. lse and lse_theirs [HEADS, R], as
FlashAttention returns them: natural logarithms of the sums of exponentials of scaled scores, float32 (float64 stays).
-inf in lse_theirs says that there were no keys: theirs may be anything there, and is not read. lse is finite.

**Invariant.** A row depends on its own row alone. Over disjoint keys the result is exact but for rounding.

**Grid.** (R,): a row's heads. Juravsky, Brown, Ehrlich, Fu, Ré, Mirhoseini, Hydragen, 2024.
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
def merge(
    mine,  # [R, HEADS, D], and out
    theirs,  # [R, HEADS, D]
    lse,  # [HEADS, R]
    lse_theirs,  # [HEADS, R]
    count,  # R
    HEADS: tl.constexpr,
    D: tl.constexpr,
    PADDED: tl.constexpr,  # HEADS up to a power of two
    ROWS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    head, size = tl.arange(0, PADDED)[None, :], tl.arange(0, D)[None, None, :]
    m_head = (head < HEADS) & (row < count)
    a = wide(tl.load(lse + head * count + row, mask=m_head, other=0.0))
    b = wide(tl.load(lse_theirs + head * count + row, mask=m_head, other=float("-inf")))
    share = (1.0 / (1.0 + tl.exp(a - b)))[:, :, None]  # of theirs: 0 where b is -inf
    m_head = m_head[:, :, None]
    at = (row * HEADS + head)[:, :, None] * D + size
    x = wide(tl.load(mine + at, mask=m_head, other=0.0))
    y = wide(tl.load(theirs + at, mask=m_head & (share > 0.0), other=0.0))
    tl.store(mine + at, (x * (1.0 - share) + y * share).to(mine.dtype.element_ty), mask=m_head)


def merged(mine: Tensor, theirs: Tensor, lse: Tensor, lse_theirs: Tensor) -> Tensor:
    """`mine` [R, heads, D] as if it had seen both sets of keys.

    Launches one kernel on the current stream and waits for nothing. Raises ValueError: other shapes or strides.
    """
    rows, heads, size = mine.shape
    if theirs.shape != mine.shape or lse.shape != (heads, rows) or lse_theirs.shape != (heads, rows):
        raise ValueError(
            f"mine {list(mine.shape)}, theirs {list(theirs.shape)}, log-sum-exps {list(lse.shape)} and "
            f"{list(lse_theirs.shape)}: expected [R, heads, size] twice and [heads, R] twice"
        )
    if size & (size - 1):
        raise ValueError(f"heads of {size}: expected a power of two")
    check_contiguous(mine=mine, theirs=theirs, lse=lse, lse_theirs=lse_theirs)
    if rows:
        merge[(triton.cdiv(rows, ROWS),)](
            mine,
            theirs,
            lse,
            lse_theirs,
            rows,
            HEADS=heads,
            D=size,
            PADDED=padded(heads),
            ROWS=ROWS,
            num_warps=warps_for(padded(heads) * size, of_a_thread=16),
        )
    return mine
