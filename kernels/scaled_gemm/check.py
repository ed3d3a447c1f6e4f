"""A handful of seeded products against the oracle, for benchmarks and tests."""

from __future__ import annotations

import torch
from torch import Tensor

from penstock.kernels.rowwise.rounding import SMALLEST, beyond, sums, unit
from penstock.kernels.scaled_gemm import reference
from penstock.kernels.scaled_gemm.triton import quantised, scaled_gemm
from penstock.kernels.scaled_gemm.tuning import Tuning


def whole(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Quantised by the kernel, into memory that was poisoned."""
    numbers = torch.full(rows.shape, -128, dtype=torch.int8, device=rows.device)
    steps = torch.full((len(rows),), torch.nan, device=rows.device)
    quantised(rows, numbers, steps)
    return numbers, steps


def differing_numbers(rows: Tensor) -> int:
    """Steps that are not the oracle's, and values further from number times step than half a step: the quotient is off
    by two roundings, of 127 at most, and the step by one."""
    numbers, steps = (one.cpu().double() for one in whole(rows))
    rows, u = rows.cpu().double(), sums(rows.dtype)
    wanted = reference.quantised(rows)[1]
    wrong = beyond(steps, wanted, 4 * sums(torch.float32) * wanted + SMALLEST)
    return wrong + beyond(numbers * steps[:, None], rows, steps[:, None] * (0.5 + 127 * (8 * u)) + SMALLEST)


def differing(x: Tensor, x_steps: Tensor, w: Tensor, w_steps: Tensor, dtype: torch.dtype, tuning: Tuning) -> int:
    """Values, in memory that was poisoned, that rounding does not explain: int32 to float32, two products, a cast."""
    out = torch.full((len(x), len(w)), torch.nan, dtype=dtype, device=x.device)
    scaled_gemm(x, x_steps, w, w_steps, out, tuning=tuning)
    wanted = reference.scaled_gemm(x.cpu(), x_steps.cpu(), w.cpu(), w_steps.cpu())
    return beyond(out, wanted, wanted.abs() * (unit(dtype) + 6 * sums(torch.float32)) + SMALLEST)


def mismatches() -> int:
    """How many values are wrong."""
    chance = torch.Generator().manual_seed(7)
    wrong = 0
    for dtype, rows, columns, depth in ((torch.float32, 70, 40, 144), (torch.bfloat16, 3, 65, 16)):
        x, w = (torch.randn(count, depth, generator=chance).to(dtype) for count in (rows, columns))
        wrong += differing_numbers(x) + differing_numbers(w)
        wrong += differing(*whole(x), *whole(w), dtype, Tuning())
    return wrong
