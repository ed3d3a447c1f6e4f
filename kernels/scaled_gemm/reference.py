"""What the kernels leave, in float64: their oracle. torch only."""

from __future__ import annotations

import torch
from torch import Tensor

from penstock.kernels.scaled_gemm.numbers import off


def scaled_gemm(x: Tensor, x_steps: Tensor, w: Tensor, w_steps: Tensor, bias: Tensor | None = None) -> Tensor:
    """float64 [M, N] of x [M, K] and w [N, K], each with a step a row; plus `bias` [N]."""
    found = (x.double() @ w.double().T) * x_steps.double()[:, None] * w_steps.double()
    return found if bias is None else found + bias.double()


def lost(rows: Tensor, matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """How far rows @ matrix.T may lie from the product of both quantised, at most, float64 [M, N]."""
    a, b = (one.double().abs() for one in (rows, matrix))
    of_a, of_b = off(a, dtype), off(b, dtype)
    return of_a @ b.T + a @ of_b.T + of_a @ of_b.T
