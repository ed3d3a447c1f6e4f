"""A handful of seeded activations against the oracle, for benchmarks and tests."""

from __future__ import annotations

import torch
from torch import Tensor

from penstock.kernels.rowwise.rounding import SMALLEST, beyond, sums, unit
from penstock.kernels.swiglu import reference
from penstock.kernels.swiglu.triton import swiglu


def differing(gate_up: Tensor) -> int:
    """Values, in memory that was poisoned, that are further from the oracle's than rounding explains.

    The exponential's argument is rounded once, which moves it by a share of |gate|; below -88 it is infinite and the
    result 0.
    """
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = swiglu(gate_up, torch.full((rows, width), torch.nan, dtype=gate_up.dtype, device=gate_up.device))
    wanted = reference.swiglu(gate_up.cpu())
    gate, up = gate_up.cpu().double().abs().chunk(2, -1)
    relative = unit(out.dtype) + (8 + gate.clamp(max=100)) * sums(out.dtype)
    return beyond(out, wanted, relative * wanted.abs() + 64 * SMALLEST * (1 + up))


def mismatches() -> int:
    """How many values are wrong."""
    chance = torch.Generator().manual_seed(7)
    wrong = 0
    for dtype in (torch.float32, torch.bfloat16):
        for rows, width in ((1, 16), (70, 48), (3, 1_040)):
            wrong += differing((4 * torch.randn(rows, 2 * width, generator=chance)).to(dtype))
    return wrong
