"""How much of what there is a seed looks at, and which of its best is the threshold.

A sample of one unit (a block, or a tile of a list) in `sampled` promises the most for its reads, but of few units it
holds too little to say anything. How many there are only the device knows, list by list, so it chooses there
(`stride_of` in scan.py, `Sampling` for what the host has to know of it):

    one unit in sampled          where that has twice the groups of GROUP rows that the threshold is taken from
    one in sampled / DENSER      where that has
    every unit                   else, by groups of FINE rows; what k of these reach, k rows reach: no doubt is left

Of fewer than FINE * k rows there is no threshold, and room for all of them (`room_for` in run.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

SAMPLED = 64
DENSER = 16
GROUP, FINE = 32, 4  # rows of which a seed keeps the best: of a sample, and where all are looked at
DOUBT = 5.0  # standard deviations by which a seed is too low, so that it is too high once in millions


def seed_rank(k: int, sampled: int = SAMPLED) -> int:
    """Which of a sample's best is the threshold: k / sampled of the best k are in it, and DOUBT deviations more. Of all
    there is, the k-th."""
    if sampled == 1:
        return k
    return math.ceil((DOUBT / 2 + math.sqrt(DOUBT**2 / 4 + k / sampled)) ** 2)


@dataclass(frozen=True, slots=True)
class Sampling:
    """Of units of `unit` rows, for the best `k`; one unit in `sampled` where there are many."""

    k: int
    sampled: int
    unit: int

    @property
    def strides(self) -> tuple[int, int, int]:
        """One unit in so many is looked at: where there are many, fewer, few."""
        return self.sampled, max(self.sampled // DENSER, 1), 1

    @property
    def ranks(self) -> tuple[int, int, int]:
        """Which of a query's best maxima is its threshold, by stride."""
        first, second, last = (seed_rank(self.k, stride) for stride in self.strides)
        return first, second, last

    def least(self, level: int) -> int:
        """Units from which one in `strides[level]` is enough."""
        if level == len(self.strides) - 1:
            return 0
        return -(-2 * self.ranks[level] * self.strides[level] * GROUP // self.unit)

    def chosen(self, units: int) -> int:
        """Which of the strides the device takes."""
        return next(level for level in range(len(self.strides)) if units >= self.least(level))

    def groups(self, units: int) -> int:
        """Maxima that a seed of so many units leaves."""
        stride = self.strides[self.chosen(units)]
        return -(-units // stride) * (self.unit // (FINE if stride == 1 else GROUP))

    def width(self, units: int) -> int:
        """Maxima that a seed of up to so many units leaves at most."""
        ends = [units, *(min(units, max(self.least(level) - 1, 0)) for level in range(len(self.strides) - 1))]
        return max(self.groups(end) for end in ends)


def enough(k: int, sampled: int = SAMPLED) -> int:
    """Rows from which one in `sampled` is sample enough, whatever else is looked at with them."""
    return 2 * seed_rank(k, sampled) * sampled * GROUP
