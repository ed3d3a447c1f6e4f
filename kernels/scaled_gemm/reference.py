"""What the kernels leave, in float64: their oracle. torch only."""

from __future__ import annotations

import torch
from torch import Tensor

GREATEST = 127  # of int8, either side


def quantised(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(float64 [M, K] of whole numbers from -127 to 127, steps float64 [M]): rows are nearly numbers * step."""
    wide = rows.double()
    steps = wide.abs().amax(-1) / GREATEST
    return torch.where(steps[:, None] > 0, wide / steps[:, None], 0.0).round(), steps


def scaled_gemm(x: Tensor, x_steps: Tensor, w: Tensor, w_steps: Tensor) -> Tensor:
    """float64 [M, N] of int8 x [M, K] and w [N, K], each with a step a row."""
    return (x.double() @ w.double().T) * x_steps.double()[:, None] * w_steps.double()


def lost(rows: Tensor, matrix: Tensor) -> Tensor:
    """How far rows @ matrix.T may lie from the product of both quantised, at most, float64 [M, N]: each value is off by
    half a step of its row."""
    a, b = (one.double().abs() for one in (rows, matrix))
    a_step, b_step = (one.amax(-1) / GREATEST / 2 for one in (a, b))
    return a_step[:, None] * b.sum(-1) + a.sum(-1)[:, None] * b_step + a.shape[1] * a_step[:, None] * b_step
