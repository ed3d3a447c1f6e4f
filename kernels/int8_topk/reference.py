"""The int8 plane of a store: what it holds, and that whoever scores by it finds what the rows themselves give.

A row is int8 * step + rest. An int8 score differs from the exact one by at most |rest of the row| * (|q| + |rest of the
query|) + |row| * |rest of the query| (Cauchy and Schwarz), so rows whose int8 score plus that bound reaches the
threshold are a superset of the best: the oracle is filtered_topk's, of the bfloat16 rows, and the ids are identical.
"""

from __future__ import annotations

import torch
from torch import Tensor

from penstock.kernels.filtered_topk.prepare import quantise
from penstock.kernels.filtered_topk.reference import filtered_topk as int8_topk

__all__ = ["int8_topk", "plane"]


def plane(dense: Tensor) -> tuple[Tensor, Tensor]:
    """int8 [n, D] of bfloat16 [n, D], and float32 [n, 2]: a row's step, and the norm of its rest, rounded up."""
    values, step, lost = quantise(dense)
    scales = torch.stack([step, lost], dim=1).to(torch.float32)
    scales[:, 1] = torch.nextafter(scales[:, 1], torch.full_like(scales[:, 1], torch.inf))
    return values, scales
