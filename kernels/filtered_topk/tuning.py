"""How a scan is launched on a Hopper GPU: by what fits into a multiprocessor's shared memory.

In it lie the query tile, for the whole launch; the tiles of rows in flight; and the scores on their way from the tensor
cores' layout to the appends'. The ahead-of-time suite (kernels/filtered_topk/configs.py) holds every choice to what the
compiler says of it, and docs/kernels.md shows the table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from penstock.kernels.slabs.layout import BLOCK

SHARED = 227 * 1024  # bytes of shared memory that a program may have, on sm_90
SPARE = 6 * 1024  # of it, for masks, norms and barriers


@dataclass(frozen=True, slots=True)
class Tuning:
    """How the scan is launched."""

    tile: int = BLOCK  # rows multiplied together
    queries: int = 64  # queries that a program has at a time
    warps: int = 8
    stages: int = 3  # tiles in flight and being multiplied
    resident: int = 1  # programs that a multiprocessor holds
    piece: int = 0  # values of a row loaded together; 0: the greatest power of two up to 256 that divides the width
    programs: int = 0  # of a launch; 0: as many as the device holds at once


def tuning_for(width: int, batch: int, terms: int, *, quantised: bool = False) -> Tuning:
    """The first of `fitting`: for rows of `width` values, `batch` queries and `terms` terms, all padded."""
    return next(fitting(width, batch, terms, quantised=quantised))


def fitting(width: int, batch: int, terms: int, *, quantised: bool = False) -> Iterator[Tuning]:
    """What fits, the likeliest to be quick first: many queries a pass, then great tiles, then more of them in flight.

    Raises ValueError where nothing does.
    """
    fits = False
    # Whole warp groups multiply 64 rows or more; narrower tiles are for rows so wide that nothing else fits.
    # Two programs a multiprocessor hide each other's waits, for filter columns above all: smaller tiles before greater.
    for tiles in (((64, 4), (BLOCK, 8)), ((32, 4),)):
        queries = min(batch, 128)
        while queries >= 16:
            for tile, warps in tiles:
                if queries > 64 and tile == BLOCK:
                    continue  # too many scores for the registers
                for stages in (4, 3):
                    taken = shared(width, tile, queries, terms, stages, quantised=quantised) + SPARE
                    if taken <= SHARED:
                        fits, threads = True, (8 if queries > 64 else warps)
                        resident = min(SHARED // taken, 65_536 // (threads * 32 * 255), 4)
                        yield Tuning(
                            tile=tile, queries=queries, warps=threads, stages=stages, resident=max(resident, 1)
                        )
            queries //= 2
    if not fits:
        raise ValueError(
            f"rows of {width} values: expected at most about 1,500, so that a tile fits into shared memory"
        )


def select_warps(capacity: int) -> int:
    """For narrowing so many survivors in registers."""
    return 8 if capacity <= 4_096 else 16 if capacity <= 8_192 else 32


def shared(width: int, tile: int, queries: int, terms: int, stages: int, *, quantised: bool) -> int:
    """Bytes of shared memory, about."""
    value = 1 if quantised else 2
    rows = (stages - 1) * tile * width * value
    lexical = (tile + queries) * terms * 2
    return rows + queries * width * value + lexical + tile * queries * 4
