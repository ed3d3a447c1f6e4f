"""How pieces are laid out and launched on a Hopper GPU."""

from __future__ import annotations

NUMBERS = 5  # int32 of a piece
TOKENS = 32  # of a piece, at most: a warp's lanes
PIECES = 4  # of a program at a time
WARPS = 4
