"""Which slot a new row takes: one in a block of its partition, (country, posting week), while that is affordable.

Postings of a country and a week tend to expire together, and then their blocks are free as a whole; and a block whose
rows are alike is one that a zone map can rule out. The price is free rows in blocks that hold some, `spare`. Another
block is opened only while spare stays within SHARE of the rows held (or FLOOR); past that, a new row goes into
a block of its week that has room, then of the nearest week. So right after any block is opened,
spare <= max(FLOOR, SHARE * taken).

Plain bookkeeping, used by the store's writer alone: no arrays, no clock. A slot is block * 128 + row.
"""

from __future__ import annotations

import heapq
import sys
from bisect import bisect_left, insort
from collections.abc import Mapping

from penstock.retrieval.store.page import BLOCK

WEEK_MS = 7 * 86_400_000
SHARE = 1 / 16  # of the rows held
FLOOR = 8 * BLOCK  # free rows that cost little whatever the store holds

Partition = tuple[str, int]  # the country's code as a keyword, the week

_FULL = (1 << BLOCK) - 1


class Placement:
    """Blocks 0 … n-1: each empty, or of the partition whose row opened it."""

    def __init__(self, share: float = SHARE, floor: int = FLOOR) -> None:
        self._share = share
        self._floor = floor
        self._free: list[int] = []  # of each block, a bit a free row
        self._owners: list[Partition | None] = []
        self._empty: list[int] = []  # a heap: the lowest first, so that pages at the end stay untouched
        self._open: dict[Partition, dict[int, None]] = {}  # blocks of a partition that have room, the oldest first
        self._weeks: dict[int, dict[int, None]] = {}  # the same blocks by week
        self._sorted: list[int] = []  # the keys of `_weeks`
        self.taken = 0
        self.spare = 0

    @property
    def blocks(self) -> int:
        return len(self._free)

    @property
    def nbytes(self) -> int:
        """Memory held, about: a 128-bit number and its places in lists and dictionaries for each block."""
        held = (self._free, self._owners, self._empty, self._sorted, self._open, self._weeks)
        return sum(sys.getsizeof(one) for one in held) + 48 * self.blocks + 232 * (len(self._open) + len(self._weeks))

    def owner(self, block: int) -> Partition | None:
        """The partition of a block; None when it is empty."""
        return self._owners[block]

    def add(self, blocks: int) -> None:
        """So many more blocks, empty, numbered on from the last."""
        for block in range(self.blocks, self.blocks + blocks):
            heapq.heappush(self._empty, block)
        self._free.extend([_FULL] * blocks)
        self._owners.extend([None] * blocks)

    def take(self, partition: Partition, *, growing: bool = True) -> int | None:
        """A free slot for a row of this partition.

        None: a new block is wanted and there is none. With `growing` false, when none can be added, the row goes
        wherever there is room, and None means that there is none at all.
        """
        mine = self._open.get(partition)
        if mine:
            block = next(iter(mine))
        elif self.spare and (self.spare + BLOCK - 1 > max(self._floor, self._share * self.taken)):
            block = self._nearest(partition[1])
        elif self._empty:
            block = heapq.heappop(self._empty)
            self._owners[block] = partition
            self.spare += BLOCK
            self._has_room(block, partition)
        elif not growing and self.spare:
            block = self._nearest(partition[1])
        else:
            return None
        free = self._free[block]
        bit = free & -free
        self._free[block] = free = free ^ bit
        self.taken += 1
        self.spare -= 1
        if not free:
            self._has_none(block)
        return block * BLOCK + bit.bit_length() - 1

    def restore(self, held: Mapping[int, tuple[Partition, int]]) -> None:
        """Empty blocks become their partitions', with so many rows taken: of each block, a bit a free row."""
        for block, (partition, free) in held.items():
            if self._owners[block] is not None:
                raise ValueError(f"block {block} is not empty")
            self._owners[block], self._free[block] = partition, free
            self.spare += free.bit_count()
            self.taken += BLOCK - free.bit_count()
            if free:
                self._has_room(block, partition)
        self._empty = [block for block in self._empty if block not in held]
        heapq.heapify(self._empty)

    def give_back(self, slot: int) -> None:
        """A slot that is free again. The block is of nobody once its last row has gone."""
        block, row = divmod(slot, BLOCK)
        free, owner = self._free[block], self._owners[block]
        if free >> row & 1 or owner is None:
            raise ValueError(f"slot {slot} given back twice")
        if not free:
            self._has_room(block, owner)
        self._free[block] = free = free | 1 << row
        self.taken -= 1
        self.spare += 1
        if free == _FULL:
            self._has_none(block)
            self._owners[block] = None
            self.spare -= BLOCK
            heapq.heappush(self._empty, block)

    def _nearest(self, week: int) -> int:
        """A block with room, of the week nearest to this one."""
        at = bisect_left(self._sorted, week)
        near = self._sorted[max(at - 1, 0) : at + 1]
        return next(iter(self._weeks[min(near, key=lambda one: abs(one - week))]))

    def _has_room(self, block: int, owner: Partition) -> None:
        self._open.setdefault(owner, {})[block] = None
        week = owner[1]
        if week not in self._weeks:
            self._weeks[week] = {}
            insort(self._sorted, week)
        self._weeks[week][block] = None

    def _has_none(self, block: int) -> None:
        owner = self._owners[block]
        assert owner is not None
        week = owner[1]
        del self._open[owner][block], self._weeks[week][block]
        if not self._open[owner]:
            del self._open[owner]
        if not self._weeks[week]:
            del self._weeks[week]
            del self._sorted[bisect_left(self._sorted, week)]
