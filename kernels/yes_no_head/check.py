"""A handful of seeded rows against the oracle, for benchmarks and tests."""

from __future__ import annotations

import torch
from torch import Tensor

from penstock.kernels.rowwise.rounding import SMALLEST, beyond, steps, sums
from penstock.kernels.yes_no_head import reference
from penstock.kernels.yes_no_head.triton import yes_no_head

EPSILON = 2.0**-20  # which float32 has exactly


def differing(residual: Tensor, delta: Tensor, weight: Tensor, answer: Tensor, epsilon: float = EPSILON) -> int:
    """Logits, in memory that was poisoned, that rounding does not explain: terms may cancel, so it is a share of
    the sum of their absolute values."""
    logits = torch.full((len(residual),), torch.nan, dtype=answer.dtype, device=answer.device)
    yes_no_head(residual, delta, weight, answer, logits, epsilon)
    given = [one.cpu() for one in (residual, delta, weight, answer)]
    x = given[0].double() + given[1].double()
    scale = torch.rsqrt(x.square().mean(-1) + epsilon)
    sizes = (given[0].double().abs() + given[1].double().abs()) @ (given[2].double() * given[3].double()).abs()
    u = sums(answer.dtype)
    allowed = scale * (sizes * (2 * steps(x.shape[1]) + 10) * u + SMALLEST * x.shape[1])
    return beyond(logits, reference.yes_no_head(given[0], given[1], given[2], given[3], epsilon), allowed)


def mismatches() -> int:
    """How many logits are wrong."""
    chance = torch.Generator().manual_seed(7)
    wrong = 0
    for dtype in (torch.float32, torch.bfloat16):
        for rows, width in ((1, 16), (70, 48), (3, 896)):
            residual = torch.randn(rows, width, generator=chance)
            delta, weight = (torch.randn(size, generator=chance).to(dtype) for size in ((rows, width), (width,)))
            wrong += differing(residual, delta, weight, torch.randn(width, generator=chance))
    return wrong
