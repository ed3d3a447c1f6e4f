"""The residual stream's beginning: a token's embedding, or an item's own vector in a token's place.

**Layout.** codes int32 [T]: a token, or ~row of an item's vector. tokens [vocabulary, WIDTH] and vectors [rows, WIDTH]:
the model's embedding and the items', each in its own dtype; out [T, WIDTH], the residual's. All contiguous. A code that
neither has is the caller's to refuse.

**Invariant.** A value is copied, not computed: only the cast to the residual's dtype may round it. Offsets are 64 bits
wide: a vocabulary of 151,936 rows of 16,384 values has more than 2^31.

**Grid.** (ceil(T / ROWS), ceil(WIDTH / BLOCK)): a program reads a row of one of the tables. Every byte is moved once.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
# What Triton compiles has the types of its arguments, which are no Python types.
from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from penstock.kernels.rowwise.rows import ROWS, check_contiguous
from penstock.kernels.rowwise.tuning import BLOCK, padded, warps_for


@triton.jit
def gather(codes, tokens, vectors, out, count, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    code = tl.load(codes + row, mask=row < count, other=0).to(tl.int64)[:, None]
    row = row[:, None]
    m_at = (row < count) & (at < WIDTH)
    x = tl.load(tokens + code * WIDTH + at, mask=m_at & (code >= 0), other=0.0).to(out.dtype.element_ty)
    own = tl.load(vectors + (-1 - code) * WIDTH + at, mask=m_at & (code < 0), other=0.0).to(out.dtype.element_ty)
    tl.store(out + row * WIDTH + at, tl.where(code >= 0, x, own), mask=m_at)


def gather_embeddings(codes: Tensor, tokens: Tensor, vectors: Tensor, out: Tensor) -> Tensor:
    """`out`. Launches one kernel on the current stream and waits for nothing. Raises ValueError: other shapes or
    strides."""
    rows, width = out.shape
    if codes.shape != (rows,) or tokens.shape[1] != width or vectors.shape[1] != width:
        raise ValueError(
            f"codes {list(codes.shape)}, tokens {list(tokens.shape)}, vectors {list(vectors.shape)}, out "
            f"{list(out.shape)}: expected a code a row, and rows of {width} in both tables"
        )
    check_contiguous(codes=codes, tokens=tokens, vectors=vectors, out=out)
    if rows:
        block = min(BLOCK, padded(width))
        grid = (triton.cdiv(rows, ROWS), triton.cdiv(width, block))
        gather[grid](codes, tokens, vectors, out, rows, WIDTH=width, BLOCK=block, ROWS=ROWS, num_warps=warps_for(block))
    return out
