"""How the attention is launched on a Hopper GPU: 128 rows a program, two warpgroups, so that keys are read seldom."""

from __future__ import annotations

from dataclasses import dataclass

TILE_TOKENS = 64  # of a tile descriptor, at most; ranker/engine/plan.py makes them
ROWS = 128  # of the tensor cores' M axis


@dataclass(frozen=True, slots=True)
class Tuning:
    group: int  # query heads of a key head, up to a power of two
    tokens: int  # of a program
    keys: int = 32  # at a time
    warps: int = 8
    stages: int = 3
    resident: int = 2  # programs that a multiprocessor holds


def tuning_for(group: int, size: int) -> Tuning:
    """For `group` query heads to a key head, of `size` values each."""
    padded = 1 << (group - 1).bit_length()
    tokens = max(1, min(TILE_TOKENS, ROWS // padded))
    # 64 keys at a time take a quarter fewer instructions, and registers that let no second program in: what one waits
    # for, its descriptor first, the other has to hide, since a loop is some seven blocks of keys long.
    return Tuning(padded, tokens, resident=2 if size <= 128 and padded == group else 1)
