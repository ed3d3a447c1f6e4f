"""What the kernel leaves, in float64: its oracle. torch only."""

from __future__ import annotations

import torch
from torch import Tensor


def qk_norm_rope(
    qkv: Tensor, weight: Tensor, positions: Tensor, cosines: Tensor, sines: Tensor, epsilon: float
) -> Tensor:
    """float64 [T, width] of the arguments of triton.py; qkv itself stays."""
    heads, size = weight.shape
    out = qkv.double().clone()
    h = out[:, : heads * size].view(-1, heads, size)
    h = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + epsilon) * weight.double()
    a, b = h.chunk(2, -1)
    cosine, sine = (table.double()[positions.long()][:, None] for table in (cosines, sines))
    out[:, : heads * size] = torch.cat([a * cosine - b * sine, b * cosine + a * sine], -1).flatten(1)
    return out
