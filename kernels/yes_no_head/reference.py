"""What the kernel leaves, in float64: its oracle. torch only."""

from __future__ import annotations

import torch
from torch import Tensor


def yes_no_head(residual: Tensor, delta: Tensor, weight: Tensor, answer: Tensor, epsilon: float) -> Tensor:
    """float64 [N]."""
    x = residual.double() + delta.double()
    norm = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon) * weight.double()
    return norm @ answer.double()
