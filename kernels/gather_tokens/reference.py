"""What the kernel leaves: its oracle. torch only."""

from __future__ import annotations

import torch
from torch import Tensor


def gather_tokens(pieces: Tensor, sent: Tensor, arena: Tensor, untouched: Tensor) -> Tensor:
    """int64 [3, T]: codes, positions and starts, over what stood there."""
    out = untouched.long().clone()
    table = torch.cat([sent, arena]).long()
    for place, length, position, start, source in pieces.tolist():
        span, steps = slice(place, place + length), torch.arange(length)
        out[0, span] = source - steps if source < 0 else table[source : source + length]
        out[1, span] = position + steps
        out[2, span] = start
    return out
