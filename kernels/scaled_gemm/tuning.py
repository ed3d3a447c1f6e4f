"""How a product of quantised matrices is launched on a Hopper GPU: warpgroups of 64 rows each, and what is tried."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

SHARED_OF_ALL = 228 * 1024  # bytes of shared memory that a multiprocessor's programs share, on sm_90
RESERVED = 1_024  # of every program, for the system
SPARE = 4 * 1024  # of a program's, for barriers, so that it fits whatever a release of Triton adds
REGISTERS = 65_536  # of a multiprocessor
MOST_SUMS = 128  # registers of a thread: more would spill

LEAST_ROWS = 256  # of a product whose tuning is kept; of fewer rows the same is taken


@dataclass(frozen=True, slots=True)
class Tuning:
    rows: int = 128  # of a program
    columns: int = 128
    depth: int = 128  # at a time: a line of shared memory
    group: int = 8  # rows of programs that share columns of w while they are in the L2 cache
    warps: int = 8
    stages: int = 3
    resident: int = 2  # programs that a multiprocessor holds: one writes while the other multiplies


def tuning_for(form: str) -> Tuning:
    """The first of `fitting`."""
    return next(fitting(form))


def fitting(form: str) -> Iterator[Tuning]:
    """What is measured for a shape, the likeliest to be quick first; `form` is int8 or fp8.

    A program of fp8 holds its sums twice, once of the tile alone: it has the registers of two of int8.
    """
    for rows, columns, warps, stages in (
        (128, 128, 8, 3),
        (128, 256, 8, 3),
        (128, 128, 8, 4),
        (128, 128, 4, 4),
        (64, 128, 4, 3),
    ):
        sums = rows * columns // (warps * 32) * (1 if form == "int8" else 2)
        if sums <= MOST_SUMS:
            yield Tuning(rows, columns, 128, 8, warps, stages, _resident(rows, columns, warps, stages, sums))


def bucket(rows: int) -> int:
    """What a product of so many rows is kept by: LEAST_ROWS, and each four times the one before."""
    found = LEAST_ROWS
    while found < rows:
        found *= 4
    return found


def _resident(rows: int, columns: int, warps: int, stages: int, sums: int) -> int:
    taken = stages * (rows + columns) * 128 + SPARE
    registers = min(255, sums + 64) * warps * 32
    return max(1, min(2, SHARED_OF_ALL // (taken + RESERVED), REGISTERS // registers))
