"""The log-odds of yes against no, from the last positions' hidden states alone: a norm and one dot product.

    logit = sum(x * rsqrt(mean(x^2) + epsilon) * weight * answer),   x = residual + delta

The two-row softmax of a vocabulary's head is the sigmoid of the difference of its rows, so `answer` is that difference
and no vocabulary is multiplied.

**Layout.** residual [N, WIDTH] and delta [N, WIDTH], each in its own float; weight [WIDTH]; answer float32 [WIDTH];
logits [N], as `answer`, out. Sums are float32 (float64 where `answer` is). All contiguous.

**Invariant.** A logit depends on its own row alone, not on N.

**Grid.** (ceil(N / ROWS),). Zhang, Sennrich, Root mean square layer normalization, 2019, for the norm.
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
def log_odds(
    residual,
    delta,
    weight,
    answer,
    logits,
    epsilon,
    count,  # N
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,  # WIDTH up to a power of two
    ROWS: tl.constexpr,
):
    number, at = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, PADDED)
    m_at = (number < count)[:, None] & (at < WIDTH)
    row = number[:, None] * WIDTH + at
    x = wide(tl.load(residual + row, mask=m_at, other=0.0))
    x += wide(tl.load(delta + row, mask=m_at, other=0.0))
    turned = wide(tl.load(weight + at, mask=at < WIDTH, other=0.0)) * wide(
        tl.load(answer + at, mask=at < WIDTH, other=0.0)
    )
    scale = tl.rsqrt(tl.sum(x * x, axis=1) / WIDTH + epsilon)
    tl.store(logits + number, tl.sum(x * turned, axis=1) * scale, mask=number < count)


def yes_no_head(
    residual: Tensor, delta: Tensor, weight: Tensor, answer: Tensor, logits: Tensor, epsilon: float
) -> Tensor:
    """`logits`. Launches one kernel on the current stream and waits for nothing. Raises ValueError: other shapes or
    strides."""
    rows, width = residual.shape
    if delta.shape != residual.shape or weight.shape != (width,) or answer.shape != (width,) or len(logits) != rows:
        raise ValueError(
            f"residual {list(residual.shape)}, delta {list(delta.shape)}, weight {list(weight.shape)}, answer "
            f"{list(answer.shape)}, {len(logits)} logits: expected [N, width], [width] and [N]"
        )
    check_contiguous(residual=residual, delta=delta, weight=weight, answer=answer, logits=logits)
    if rows:
        log_odds[(triton.cdiv(rows, ROWS),)](
            residual,
            delta,
            weight,
            answer,
            logits,
            epsilon,
            rows,
            WIDTH=width,
            PADDED=padded(width),
            ROWS=ROWS,
            num_warps=warps_for(width),
        )
    return logits
