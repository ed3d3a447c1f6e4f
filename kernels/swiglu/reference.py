"""What the kernel leaves, in float64: its oracle. torch only."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def swiglu(gate_up: Tensor) -> Tensor:
    """float64 [T, width] of gate_up [T, 2 * width]."""
    gate, up = gate_up.double().chunk(2, -1)
    return F.silu(gate) * up
