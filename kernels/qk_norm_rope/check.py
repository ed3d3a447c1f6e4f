"""A handful of seeded rows against the oracle, for benchmarks and tests."""

from __future__ import annotations

import torch
from torch import Tensor

from penstock.kernels.qk_norm_rope import reference
from penstock.kernels.qk_norm_rope.triton import qk_norm_rope
from penstock.kernels.rowwise.rounding import SMALLEST, beyond, steps, sums, unit

EPSILON = 2.0**-20  # which float32 has exactly


def tables(longest: int, size: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Cosines and sines by position, [longest, size / 2]."""
    angles = torch.arange(longest)[:, None] * 10_000.0 ** (-torch.arange(size // 2) / (size // 2))
    return angles.cos().to(dtype), angles.sin().to(dtype)


def differing(
    qkv: Tensor, weight: Tensor, positions: Tensor, cosines: Tensor, sines: Tensor, epsilon: float = EPSILON
) -> int:
    """Values that rounding does not explain: of turned heads by what either half of a head adds, as halves may cancel.
    Of what is no turned head every bit stays."""
    found = qkv.clone()
    qk_norm_rope(found, weight, positions, cosines, sines, epsilon)
    qkv, weight, positions, cosines, sines = (one.cpu() for one in (qkv, weight, positions, cosines, sines))
    wanted = reference.qk_norm_rope(qkv, weight, positions, cosines, sines, epsilon)
    heads, size = weight.shape
    h = qkv[:, : heads * size].double().view(-1, heads, size)
    scale = torch.rsqrt(h.square().mean(-1, keepdim=True) + epsilon)
    a, b = (h * scale * weight.double()).abs().chunk(2, -1)
    cosine, sine = (table.double().abs()[positions.long()][:, None] for table in (cosines, sines))
    added = torch.cat([a * cosine + b * sine, b * cosine + a * sine], -1).flatten(1)
    u = sums(cosines.dtype)
    flushed = SMALLEST * (1 + 2 * float(weight.abs().max()) / epsilon**0.5)
    allowed = torch.zeros_like(wanted)
    allowed[:, : heads * size] = added * (steps(size) / 2 + 10) * u + flushed
    allowed[:, : heads * size] += unit(qkv.dtype) * wanted[:, : heads * size].abs()
    return beyond(found, wanted, allowed)


def mismatches() -> int:
    """How many values are wrong."""
    chance = torch.Generator().manual_seed(7)
    wrong = 0
    for dtype in (torch.float32, torch.bfloat16):
        for tokens, heads, values, size in ((1, 3, 1, 16), (70, 6, 2, 32), (3, 5, 0, 128)):
            qkv = torch.randn(tokens, (heads + values) * size, generator=chance).to(dtype)
            weight = torch.randn(heads, size, generator=chance).to(dtype)
            positions = torch.randint(0, 50, (tokens,), generator=chance, dtype=torch.int32)
            wrong += differing(qkv, weight, positions, *tables(50, size))
    return wrong
