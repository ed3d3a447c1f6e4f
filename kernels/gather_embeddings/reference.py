"""What the kernel leaves: its oracle. torch only."""

from __future__ import annotations

import torch
from torch import Tensor


def gather_embeddings(codes: Tensor, tokens: Tensor, vectors: Tensor) -> Tensor:
    """float64 [T, width]: tokens[code], or vectors[~code] of a code below 0."""
    of_token = tokens[codes.clamp(min=0).long()].double()
    if not len(vectors):
        return of_token
    of_item = vectors[(-1 - codes).clamp(min=0).long()].double()
    return torch.where((codes < 0)[:, None], of_item, of_token)
