"""Which blocks of a table hold what: the newest version read of each posting, whatever the table lies in.

An item lies in as many blocks as it needs, anywhere. Room is made by dropping what has expired, earliest first, then
what was used longest ago. Blocks that were given up are given away again when no forward that might read them is left.

Invariant: a `Held` that is not alive never is again, so whoever kept one knows by it whether its blocks are still its.

Pure but for the clock that is passed in. Owned by an arena, under its lock.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from prometheus_client import Counter

BLOCK = 32  # tokens of a block, where it holds tokens: half of it is lost to an item on average

Kept = TypeVar("Kept")  # what an arena notes beside an item
Name = tuple[str, str]  # tenant, posting


@dataclass(frozen=True, slots=True)
class ItemKey:
    """One version of one posting, as its (version, revision) orders them."""

    tenant: str
    posting_id: str
    stamp: tuple[int, int]
    text: int  # hash of its item text, of this process


@dataclass(slots=True, eq=False)
class Held(Generic[Kept]):
    """One version of one posting, while `alive`."""

    stamp: tuple[int, int]
    text: int
    blocks: NDArray[np.int32]  # rows of the table
    length: int  # tokens, or vectors
    expires_ms: int | None
    kept: Kept
    alive: bool = True

    def is_of(self, key: ItemKey) -> bool:
        return self.stamp == key.stamp and self.text == key.text


@dataclass(slots=True)
class Readers:
    """Forwards that read blocks, by number: those up to `ended` have ended. None, for a table that is copied from."""

    begun: int = 0
    ended: int = 0


class Blocks(Generic[Kept]):
    """`now_ms` gives epoch milliseconds; `dropped` counts why items went, by label. `spare`: blocks that are kept free
    beyond what is asked for, where there are readers to wait for."""

    def __init__(
        self,
        count: int,
        now_ms: Callable[[], int],
        dropped: Counter,
        readers: Readers | None = None,
        spare: int = 0,
    ) -> None:
        self.count = count
        self.held: OrderedDict[Name, Held[Kept]] = OrderedDict()  # last used last
        self._free = list(range(count - 1, -1, -1))
        self._resting: deque[tuple[int, NDArray[np.int32]]] = deque()  # given up while forwards up to a number read
        self._at_rest = 0  # blocks
        self._expiries: list[tuple[int, Name, tuple[int, int]]] = []  # heap; stale ones stay until they rise
        self._now_ms = now_ms
        self._dropped = dropped
        self._readers = readers or Readers()
        self._spare = spare

    @property
    def used(self) -> int:
        return self.count - len(self._free) - self._at_rest

    def find(self, key: ItemKey) -> Held[Kept] | None:
        """That very version and text, which is now the last used."""
        name = (key.tenant, key.posting_id)
        held = self.held.get(name)
        if held is None or not held.is_of(key):
            return None
        self.held.move_to_end(name)
        return held

    def lacks(self, key: ItemKey) -> bool:
        """Whether it is not held, and nothing newer is."""
        held = self.held.get((key.tenant, key.posting_id))
        return held is None or held.stamp < key.stamp or (held.stamp == key.stamp and held.text != key.text)

    def take(self, key: ItemKey, needed: int, length: int, expires_ms: int | None, kept: Kept) -> Held[Kept] | None:
        """Blocks for an item, unless a newer version of it is held; of one version the last text taken is held.

        None when it is not held: it is old, expired or too large, or what it would stand in is still read.
        """
        name = (key.tenant, key.posting_id)
        held = self.held.get(name)
        if held is not None and held.stamp > key.stamp:
            return None
        if held is not None:
            self.drop(name)
        if needed > self.count or (expires_ms is not None and expires_ms <= self._now_ms()):
            return None
        self._make_room(needed)
        if len(self._free) < needed:
            self._dropped.labels("busy").inc()
            return None
        blocks = np.array([self._free.pop() for _ in range(needed)], dtype=np.int32)
        held = self.held[name] = Held(key.stamp, key.text, blocks, length, expires_ms, kept)
        if expires_ms is not None:
            heapq.heappush(self._expiries, (expires_ms, name, key.stamp))
            self._prune()
        return held

    def remove(self, key: ItemKey) -> None:
        """Drop the posting, unless a version newer than the key's is held."""
        name = (key.tenant, key.posting_id)
        held = self.held.get(name)
        if held is not None and held.stamp <= key.stamp:
            self.drop(name)

    def drop(self, name: Name) -> None:
        held = self.held.pop(name)
        held.alive = False
        self._resting.append((self._readers.begun, held.blocks))
        self._at_rest += len(held.blocks)
        self._rested()

    def _rested(self) -> None:
        while self._resting and self._resting[0][0] <= self._readers.ended:
            _, blocks = self._resting.popleft()
            self._free.extend(blocks.tolist())
            self._at_rest -= len(blocks)

    def _make_room(self, needed: int) -> None:
        now = self._now_ms()
        while self._expiries and self._expiries[0][0] <= now:
            _, name, stamp = heapq.heappop(self._expiries)
            held = self.held.get(name)
            if held is not None and held.stamp == stamp:
                self.drop(name)
                self._dropped.labels("expired").inc()
        self._rested()
        wanted = min(needed + self._spare, self.count)
        while len(self._free) + self._at_rest < wanted:
            self.drop(next(iter(self.held)))
            self._dropped.labels("room").inc()

    def _prune(self) -> None:
        """Keep the heap as small as what it speaks of."""
        if len(self._expiries) > 2 * len(self.held) + 16:
            self._expiries = [
                (held.expires_ms, name, held.stamp) for name, held in self.held.items() if held.expires_ms is not None
            ]
            heapq.heapify(self._expiries)
