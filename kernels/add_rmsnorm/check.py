"""A handful of seeded rows against the oracle, for benchmarks and tests."""

from __future__ import annotations

import torch
from torch import Tensor

from penstock.kernels.add_rmsnorm import reference
from penstock.kernels.add_rmsnorm.triton import add_rmsnorm
from penstock.kernels.rowwise.rounding import SMALLEST, beyond, steps, sums, unit

EPSILON = 2.0**-20  # which float32 has exactly


def differing(
    residual: Tensor, delta: Tensor | None, weight: Tensor, dtype: torch.dtype, epsilon: float = EPSILON
) -> int:
    """Values of the residual and, in memory of `dtype` that was poisoned, of the norm that rounding does not explain.

    The sum is rounded on its way to the residual's dtype, here and in the oracle. The norm is held against that of the
    residual that was found: half of what the sum of squares is off by, a root, three products and a cast.
    """
    kept = residual.clone()
    out = torch.full_like(kept, torch.nan, dtype=dtype)
    add_rmsnorm(kept, delta, weight, out, epsilon)
    u = sums(residual.dtype)
    wanted, _ = reference.add_rmsnorm(residual.cpu(), None if delta is None else delta.cpu(), weight.cpu(), epsilon)
    twice = 0.0 if delta is None else unit(kept.dtype) + float(torch.finfo(kept.dtype).eps) / 2 + u
    wrong = beyond(kept, wanted, twice * wanted.abs() + SMALLEST)
    _, norm = reference.add_rmsnorm(kept.cpu(), None, weight.cpu(), epsilon)
    relative = unit(dtype) + (steps(residual.shape[1]) / 2 + 8) * u
    flushed = SMALLEST * (1 + weight.cpu().double().abs() / epsilon**0.5)
    return wrong + beyond(out, norm, relative * norm.abs() + flushed)


def mismatches() -> int:
    """How many values are wrong."""
    chance = torch.Generator().manual_seed(7)
    wrong = 0
    for wide, narrow in ((torch.float32, torch.float32), (torch.float32, torch.bfloat16), (torch.bfloat16,) * 2):
        for rows, width in ((1, 16), (70, 48), (3, 896)):
            residual = torch.randn(rows, width, generator=chance).to(wide)
            delta = torch.randn(rows, width, generator=chance).to(narrow)
            weight = torch.randn(width, generator=chance).to(narrow)
            wrong += differing(residual, delta, weight, narrow) + differing(residual, None, weight, narrow)
    return wrong
