"""A handful of seeded gathers against the oracle, for benchmarks and tests."""

from __future__ import annotations

import torch
from torch import Tensor

from penstock.kernels.gather_embeddings import reference
from penstock.kernels.gather_embeddings.triton import gather_embeddings
from penstock.kernels.rowwise.rounding import SMALLEST, beyond, unit


def differing(codes: Tensor, tokens: Tensor, vectors: Tensor, dtype: torch.dtype) -> int:
    """Values, in memory that was poisoned, that are not the tables', rounded where `dtype` is narrower."""
    out = torch.full((len(codes), tokens.shape[1]), torch.nan, dtype=dtype, device=codes.device)
    gather_embeddings(codes, tokens, vectors, out)
    wanted = reference.gather_embeddings(codes.cpu(), tokens.cpu(), vectors.cpu())
    narrower = dtype.itemsize < max(tokens.dtype.itemsize, vectors.dtype.itemsize)
    return beyond(out, wanted, unit(dtype) * wanted.abs() + SMALLEST if narrower else 0.0)


def mismatches() -> int:
    """How many values are wrong."""
    chance = torch.Generator().manual_seed(7)
    wrong = 0
    for dtype in (torch.float32, torch.bfloat16):
        for count, width in ((1, 16), (70, 48), (5, 1_040)):
            tokens = torch.randn(9, width, generator=chance).to(dtype)
            vectors = torch.randn(4, width, generator=chance)
            codes = torch.randint(-4, 9, (count,), generator=chance, dtype=torch.int32)
            wrong += differing(codes, tokens, vectors, torch.float32)
    return wrong
