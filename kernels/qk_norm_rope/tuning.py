"""How the heads of a token are launched on a Hopper GPU."""

from __future__ import annotations


def padded(heads: int) -> int:
    """Up to a power of two."""
    return 1 << (heads - 1).bit_length()


def warps_for(heads: int, size: int) -> int:
    """So that a thread has about 32 values: a token's turned heads are 3,072 in a model of 0.6B parameters."""
    return max(1, min(8, padded(heads) * size // 1_024))
