"""How rows are launched on a Hopper GPU."""

from __future__ import annotations

VALUES = 8  # of a thread in a row: 128 bits a load of bfloat16, and all of a row on its way at once
BLOCK = 1_024  # values of a program where a row is split among some


def padded(count: int) -> int:
    """Up to a power of two."""
    return 1 << (count - 1).bit_length()


def warps_for(values: int, of_a_thread: int = VALUES) -> int:
    """Warps of a program that holds so many values at once."""
    return max(1, min(16, padded(values) // (32 * of_a_thread)))
