"""What the kernel leaves, in float64: its oracle. torch only."""

from __future__ import annotations

import torch
from torch import Tensor


def add_rmsnorm(residual: Tensor, delta: Tensor | None, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """(residual, norm) [T, width] float64; the residual as its dtype rounds it, since that is what goes on."""
    wide = residual.double()
    if delta is not None:
        wide = (wide + delta.double()).to(residual.dtype).double()
    norm = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon) * weight.double()
    return wide, norm
