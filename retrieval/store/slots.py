"""Who is born and dies at which epoch, in the pages' arrays; and the dead that readers may still need.

A row is free, or filled and unseen, or visible from `birth` to just before `death`, or dead and kept for readers of
older epochs. Owned by the store: its writer fills unseen rows; births and deaths change under the store's lock, in an
order that shows a reader of any pinned epoch what it showed before.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from penstock.retrieval.store.page import NEVER, Longs
from penstock.retrieval.store.pages import Table


class Slots:
    """The queue of the dead, and how a row joins it."""

    def __init__(self) -> None:
        self._dead: deque[tuple[int, int, Longs]] = deque()  # (death epoch, died at ms, slots), in the order of death
        self.dead = 0

    def bear(self, table: Table, slots: Longs, epoch: int) -> None:
        for number, _, rows in table.split(slots):
            page = table.pages[number]
            page.death[rows] = NEVER
            page.birth[rows] = epoch

    def kill(self, table: Table, slots: Longs, epoch: int, now_ms: int) -> None:
        if not len(slots):
            return
        for number, _, rows in table.split(slots):
            table.pages[number].death[rows] = epoch
        self._dead.append((epoch, now_ms, slots))
        self.dead += len(slots)

    def retired(self, oldest_pin: int, died_before_ms: int) -> tuple[Longs, int]:
        """(dead slots nobody can need any more, the newest epoch in which one of them died)."""
        out, last = [np.zeros(0, np.int64)], 0
        while self._dead and self._dead[0][0] <= oldest_pin and self._dead[0][1] <= died_before_ms:
            last, _, slots = self._dead.popleft()
            out.append(slots)
            self.dead -= len(slots)
        return np.concatenate(out), last
