"""How the heads of a token are launched on a Hopper GPU."""

from __future__ import annotations

from penstock.kernels.rowwise.tuning import padded, warps_for


def warps_of(heads: int, size: int) -> int:
    """So that a thread has about 32 values: a token's turned heads are 3,072 in a model of 0.6B parameters."""
    return warps_for(padded(heads) * size, of_a_thread=32)
