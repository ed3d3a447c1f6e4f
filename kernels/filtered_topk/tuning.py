"""How a scan is launched on a Hopper GPU: by what fits into a multiprocessor's shared memory.

In it lie the query tile, for the whole launch (of rows so wide that they come in parts: a part of it); the tiles of
rows in flight; and the scores on their way from the tensor cores' layout to the appends'. The ahead-of-time suite
(kernels/filtered_topk/configs.py) holds every choice to what the compiler says of it, and docs/kernels.md shows the
table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product

from penstock.kernels.slabs.layout import BLOCK

SHARED = 227 * 1024  # bytes of shared memory that a program may have, on sm_90
SHARED_OF_ALL = 228 * 1024  # that a multiprocessor's programs share
SPARE = 6 * 1024  # of a program's, for masks, norms and barriers, so that it fits whatever a release of Triton adds
OVERHEAD = 1_536  # what they take on the releases that are known, the system's kilobyte with them
WIDEST = 4_096  # values of a row


@dataclass(frozen=True, slots=True)
class Tuning:
    """How the scan is launched."""

    tile: int = BLOCK  # rows multiplied together
    queries: int = 64  # queries that a program has at a time
    warps: int = 8
    stages: int = 3  # of the pipeline: see `shared`
    resident: int = 1  # programs that a multiprocessor holds
    parts: int = 1  # a tile's columns are multiplied in so many turns; more than 1 where whole rows do not fit
    programs: int = 0  # of a launch; 0: as many as the device holds at once

    def piece(self, width: int) -> int:
        """Values of a row that are loaded together: the greatest power of two up to 256 that divides a turn's."""
        return next(size for size in (256, 128, 64, 32, 16) if width // self.parts % size == 0)


def tuning_for(width: int, batch: int, terms: int, *, quantised: bool = False) -> Tuning:
    """The first of `fitting`: for rows of `width` values, `batch` queries and `terms` terms, all padded."""
    return next(fitting(width, batch, terms, quantised=quantised))


def fitting(width: int, batch: int, terms: int, *, quantised: bool = False) -> Iterator[Tuning]:
    """What fits, the likeliest to be quick first: many queries a pass, small tiles before great ones, and rows in parts
    where whole ones do not fit beside 32 queries: the queries are read again with each tile then.

    Raises ValueError for rows that are wider than anybody has tried.
    """
    if width > WIDEST:
        raise ValueError(f"rows of {width} values: expected at most {WIDEST:,}")
    queries, fits = min(batch, 128), False
    while queries >= 16:
        for tuning in _of(width, queries, terms, quantised, (1,)):
            fits = True
            yield tuning
        if not fits and queries == min(batch, 32):
            parts = list(_of(width, min(batch, 64), terms, quantised, divisions(width)))
            # Two programs a multiprocessor hide each other's waits, for filter columns above all; then, fewer parts.
            yield from sorted(parts, key=lambda tuning: tuning.resident == 1)[:2]
        queries //= 2


def divisions(width: int) -> list[int]:
    """In how many parts a row may come: of 128 values, or a multiple."""
    return [parts for parts in range(2, width // 128 + 1) if width % (128 * parts) == 0]


def _of(width: int, queries: int, terms: int, quantised: bool, parts: Iterable[int]) -> Iterator[Tuning]:
    # 5 stages hold a tile more than 3: see `shared`.
    for part, (tile, warps), stages in product(parts, ((64, 4), (BLOCK, 8)), (3, 5)):
        if tile == BLOCK and (queries > 64 or part > 1):
            continue  # too many scores for the registers; or too great for what parts are for
        taken = shared(width, tile, queries, terms, stages, quantised=quantised, parts=part)
        if taken + SPARE <= SHARED:
            threads = 8 if queries > 64 else warps
            resident = min(SHARED_OF_ALL // (taken + OVERHEAD), 65_536 // (threads * 32 * 255), 4)
            yield Tuning(tile, queries, threads, stages, max(resident, 1), part)


def select_warps(capacity: int) -> int:
    """For narrowing so many survivors in registers."""
    return 8 if capacity <= 4_096 else 16 if capacity <= 8_192 else 32


def shared(width: int, tile: int, queries: int, terms: int, stages: int, *, quantised: bool, parts: int = 1) -> int:
    """Bytes of shared memory, about.

    A tile's address is loaded in the loop that loads the tile, and Triton divides its stages between both: 3 stages
    hold two tiles, 5 hold three. Of rows in parts the queries are loaded with them.
    """
    value, held = (1 if quantised else 2), (stages + 1) // 2
    rows = held * tile * (width // parts) * value
    asked = (held if parts > 1 else 1) * queries * (width // parts) * value
    return rows + asked + (tile + queries) * terms * 2 + tile * queries * 4
