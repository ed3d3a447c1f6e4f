"""The slots of the store: who is born and dies at which epoch, and what ordering and expiry need of each row.

A slot is free, or filled and unseen, or visible from `birth` to just before `death`, or dead and kept for readers of
older epochs. Owned by the store: its writer fills unseen slots; births and deaths change under the store's lock.
"""

from __future__ import annotations

import heapq
from collections import deque

import numpy as np
import numpy.typing as npt

from penstock.retrieval.store.columns import grown

NEVER = np.iinfo(np.int64).max


class Slots:
    """Arrays by slot: int64 but `ties` (uint64)."""

    def __init__(self, capacity: int) -> None:
        self.birth = np.full(capacity, NEVER)
        self.death = np.zeros(capacity, np.int64)
        self.expires = np.full(capacity, NEVER)
        self.version = np.zeros(capacity, np.int64)
        self.revision = np.zeros(capacity, np.int64)
        self.recency = np.zeros(capacity, np.int64)
        self.tenant = np.zeros(capacity, np.int64)
        self.ties = np.zeros(capacity, np.uint64)
        self.ids: list[str] = [""] * capacity
        self.high = 0  # slots at or above it were never used
        self._free: list[int] = []  # a heap: the lowest first, so that scans stay short
        self._dead: deque[tuple[int, int, int]] = deque()  # (death epoch, died at ms, slot), in the order of death

    @property
    def capacity(self) -> int:
        return len(self.birth)

    @property
    def dead(self) -> int:
        return len(self._dead)

    @property
    def nbytes(self) -> int:
        arrays = (self.birth, self.death, self.expires, self.version)
        more = (self.revision, self.recency, self.tenant, self.ties)
        return sum(array.nbytes for array in (*arrays, *more)) + 8 * len(self.ids)

    @property
    def full(self) -> bool:
        return not self._free and self.high == self.capacity

    def take(self) -> int:
        """A free slot, for the writer to fill unseen."""
        if self._free:
            return heapq.heappop(self._free)
        self.high += 1
        return self.high - 1

    def give_back(self, slot: int) -> None:
        """A slot that is empty again, its columns and planes cleared."""
        self.birth[slot] = NEVER
        self.death[slot] = 0
        self.ids[slot] = ""
        heapq.heappush(self._free, slot)

    def bear(self, slot: int, epoch: int) -> None:
        self.death[slot] = NEVER
        self.birth[slot] = epoch

    def kill(self, slot: int, epoch: int, now_ms: int) -> None:
        self.death[slot] = epoch
        self._dead.append((epoch, now_ms, slot))

    def retired(self, oldest_pin: int, died_before_ms: int) -> tuple[list[int], int]:
        """(dead slots nobody can need any more, the newest epoch in which one of them died)."""
        out, last = [], 0
        while self._dead and self._dead[0][0] <= oldest_pin and self._dead[0][1] <= died_before_ms:
            last, _, slot = self._dead.popleft()
            out.append(slot)
        return out, last

    def visible(self, epoch: int) -> npt.NDArray[np.bool_]:
        """bool [high]: the rows of an epoch. Call under the store's lock."""
        high = self.high  # read once: the writer takes slots without the lock, and those are not visible yet
        seen: npt.NDArray[np.bool_] = (self.birth[:high] <= epoch) & (self.death[:high] > epoch)
        return seen

    def grow(self, capacity: int) -> None:
        self.ids = self.ids + [""] * (capacity - self.capacity)
        self.death = grown(self.death, capacity, 0)
        self.expires = grown(self.expires, capacity, NEVER)
        self.version = grown(self.version, capacity, 0)
        self.revision = grown(self.revision, capacity, 0)
        self.recency = grown(self.recency, capacity, 0)
        self.tenant = grown(self.tenant, capacity, 0)
        self.ties = grown(self.ties, capacity, 0)
        self.birth = grown(self.birth, capacity, NEVER)
