"""A handful of seeded products against the oracle, for benchmarks and tests."""

from __future__ import annotations

import torch
from torch import Tensor

from penstock.kernels.rowwise.rounding import SMALLEST, beyond, sums, unit
from penstock.kernels.rowwise.rows import INTERPRETED
from penstock.kernels.scaled_gemm import numbers as forms
from penstock.kernels.scaled_gemm import reference
from penstock.kernels.scaled_gemm.numbers import FORMS, GREATEST
from penstock.kernels.scaled_gemm.triton import quantised, scaled_gemm
from penstock.kernels.scaled_gemm.tuning import Tuning, tuning_for

KEPT = 2.0**-13  # of a sum of e4m3 on a Hopper GPU's tensor cores: what an addition is off by


def whole(rows: Tensor, dtype: torch.dtype = torch.int8) -> tuple[Tensor, Tensor]:
    """Quantised by the kernel, into memory that was poisoned."""
    found = torch.full(rows.shape, 0x80 - 0x100, dtype=torch.int8, device=rows.device).view(dtype)
    steps = torch.full((len(rows),), torch.nan, device=rows.device)
    quantised(rows, found, steps)
    return found, steps


def differing_numbers(rows: Tensor, dtype: torch.dtype = torch.int8) -> int:
    """Of what the kernel makes of rows; see `differing_steps`."""
    return differing_steps(*whole(rows, dtype), rows, sums(rows.dtype))


def differing_steps(numbers: Tensor, steps: Tensor, rows: Tensor, u: float) -> int:
    """Steps that are not the greatest's, and values further from number times step than a number can be from what it
    stands for: `u` of the quotient, of GREATEST at most, and of the step on top."""
    dtype = numbers.dtype
    found, steps, rows = (one.cpu().double() for one in (numbers, steps, rows))
    wanted = rows.abs().amax(-1) / GREATEST[dtype]
    wrong = beyond(steps, wanted, 4 * u * wanted + SMALLEST)
    allowed = forms.off(rows, dtype) + wanted[:, None] * GREATEST[dtype] * (8 * u) + SMALLEST
    return wrong + beyond(found * steps[:, None], rows, allowed)


def differing(
    x: Tensor,
    x_steps: Tensor,
    w: Tensor,
    w_steps: Tensor,
    dtype: torch.dtype,
    tuning: Tuning,
    bias: Tensor | None = None,
) -> int:
    """Values, in memory that was poisoned, that rounding does not explain: two products, a sum, a cast. Sums of int8
    are exact; of e4m3, K terms and as many roundings at most, of which a device's are coarser within a tile."""
    out = torch.full((len(x), len(w)), torch.nan, dtype=dtype, device=x.device)
    scaled_gemm(x, x_steps, w, w_steps, out, bias=bias, tuning=tuning)
    a, a_steps, b, b_steps = (one.cpu().double() for one in (x, x_steps, w, w_steps))
    wanted = reference.scaled_gemm(a, a_steps, b, b_steps, None if bias is None else bias.cpu())
    terms = reference.scaled_gemm(a.abs(), a_steps.abs(), b.abs(), b_steps.abs())
    u = 6 * sums(torch.float32)
    summing = 0.0
    if x.dtype != torch.int8:
        summing = x.shape[1] * sums(torch.float32) + (0.0 if INTERPRETED else tuning.depth / 32 * KEPT)
    allowed = wanted.abs() * (unit(dtype) + u) + terms * (summing + u) + SMALLEST
    if bias is not None:
        allowed += bias.cpu().double().abs() * u
    return beyond(out, wanted, allowed)


def mismatches() -> int:
    """How many values are wrong."""
    chance = torch.Generator().manual_seed(7)
    wrong = 0
    for form, number in FORMS.items():
        for dtype, rows, columns, depth in ((torch.float32, 70, 40, 144), (torch.bfloat16, 3, 65, 16)):
            x, w = (torch.randn(count, depth, generator=chance).to(dtype) for count in (rows, columns))
            wrong += differing_numbers(x, number) + differing_numbers(w, number)
            bias = torch.randn(columns, generator=chance).to(dtype)
            for added in (None, bias):
                wrong += differing(*whole(x, number), *whole(w, number), dtype, tuning_for(form), added)
    return wrong
