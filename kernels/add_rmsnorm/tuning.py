"""How rows of the residual stream are launched on a Hopper GPU."""

from __future__ import annotations


def padded(width: int) -> int:
    """Up to a power of two."""
    return 1 << (width - 1).bit_length()


def warps_for(width: int) -> int:
    """So that a thread has about eight values: 128 bits a load, and all of a row on its way at once."""
    return max(1, min(16, padded(width) // 256))
