"""How a product of int8 matrices is launched on a Hopper GPU: two warpgroups, 64 rows of 128 sums each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tuning:
    rows: int = 128  # of a program
    columns: int = 128
    depth: int = 128  # at a time: a line of shared memory
    group: int = 8  # rows of programs that share columns of w while they are in the L2 cache
    warps: int = 8
    stages: int = 3
    resident: int = 2  # programs that a multiprocessor holds: one writes while the other multiplies
