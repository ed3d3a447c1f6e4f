"""Item tokens kept by posting, version and text, so that a request tokenises its query alone.

One slab of int32 in blocks of BLOCK tokens; an item lies in as many blocks as it needs, anywhere. The slab is as large
as it is told to be and never grows; what is on it is the newest version read of each posting. Room is made by dropping
what has expired, earliest first, then what was used longest ago. An item larger than the slab is not kept.

The text is part of the key: (version, revision) says what kind of content an update carries, but a replay after a crash
may carry another text of that kind, so that the feature store and retrieval's rows can differ under one stamp.

Filled at ingest (`Filler`) and by whoever had to tokenise an item because it was missing. It belongs to one tokenizer
and template. Safe to share between threads; the lock is held only to copy.
"""

from __future__ import annotations

import heapq
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from prometheus_client import Counter, Gauge

from penstock.ranker.backends.prompt import item_text
from penstock.ranker.engine.tokens import SLICE, Encoded, Tokenizer
from penstock.schemas.events import IndexOp, IndexUpdate

BLOCK = 32  # tokens: half of it is lost to an item on average
TOKEN_BYTES = 4

LOOKED_UP = Counter("penstock_arena_items_total", "Items looked up in the token arena", ["found"])
DROPPED = Counter("penstock_arena_dropped_total", "Items dropped to make room", ["why"])
BYTES_IN_USE = Gauge("penstock_arena_bytes", "Bytes of the token arena that hold items")


@dataclass(frozen=True, slots=True)
class ItemKey:
    """One version of one posting, as its (version, revision) orders them."""

    tenant: str
    posting_id: str
    stamp: tuple[int, int]
    text: int  # hash of its item text, of this process


@dataclass(slots=True, eq=False)
class _Held:
    stamp: tuple[int, int]
    text: int
    blocks: NDArray[np.int32]  # rows of the slab
    length: int  # tokens
    cut: bool
    empty: bool
    unknown: bool
    expires_ms: int | None


class Arena:
    """Owns the slab. `capacity_bytes` bounds the slab; beside it each item held costs an entry of the index, and
    there are no more items than blocks. `now_ms` gives epoch milliseconds."""

    def __init__(self, capacity_bytes: int, now_ms: Callable[[], int]) -> None:
        blocks = capacity_bytes // (BLOCK * TOKEN_BYTES)
        if blocks < 1:
            raise ValueError(f"an arena of {capacity_bytes} bytes: expected at least {BLOCK * TOKEN_BYTES}")
        self._slab = np.empty((blocks, BLOCK), dtype=np.int32)  # pages are taken from the system as they are written
        self._free = list(range(blocks - 1, -1, -1))
        self._held: OrderedDict[tuple[str, str], _Held] = OrderedDict()  # last used last
        self._expiries: list[tuple[int, tuple[str, str], tuple[int, int]]] = []  # heap; stale ones stay until they rise
        self._now_ms = now_ms
        self._lock = threading.Lock()

    def read(self, keys: Sequence[ItemKey]) -> list[Encoded | None]:
        """A copy of the tokens of each, in order; None where that very version and text is not held."""
        with self._lock:
            found = [self._read(key) for key in keys]
        missing = sum(item is None for item in found)
        LOOKED_UP.labels("yes").inc(len(found) - missing)
        LOOKED_UP.labels("no").inc(missing)
        return found

    def lacks(self, key: ItemKey) -> bool:
        """Whether it is not held, and nothing newer is."""
        with self._lock:
            held = self._held.get((key.tenant, key.posting_id))
            return held is None or held.stamp < key.stamp or (held.stamp == key.stamp and held.text != key.text)

    def write(self, key: ItemKey, item: Encoded, expires_ms: int | None) -> bool:
        """Keep the item unless a newer version of it is held; of one version the last text written is kept. False when
        it is not kept."""
        name = (key.tenant, key.posting_id)
        needed = max(1, -(-len(item.tokens) // BLOCK))
        with self._lock:
            held = self._held.get(name)
            if held is not None and held.stamp > key.stamp:
                return False
            if held is not None:
                self._drop(name)
            if needed > len(self._slab) or (expires_ms is not None and expires_ms <= self._now_ms()):
                return False
            self._make_room(needed)
            blocks = np.array([self._free.pop() for _ in range(needed)], dtype=np.int32)
            padded = np.zeros(needed * BLOCK, dtype=np.int32)
            padded[: len(item.tokens)] = item.tokens
            self._slab[blocks] = padded.reshape(needed, BLOCK)
            self._held[name] = _Held(
                key.stamp, key.text, blocks, len(item.tokens), item.cut, item.empty, item.unknown, expires_ms
            )
            if expires_ms is not None:
                heapq.heappush(self._expiries, (expires_ms, name, key.stamp))
                self._prune()
            BYTES_IN_USE.set(self._used)
        return True

    def remove(self, key: ItemKey) -> None:
        """Drop the posting, unless a version newer than the key's is held."""
        name = (key.tenant, key.posting_id)
        with self._lock:
            held = self._held.get(name)
            if held is not None and held.stamp <= key.stamp:
                self._drop(name)

    def __len__(self) -> int:
        with self._lock:
            return len(self._held)

    @property
    def bytes_used(self) -> int:
        """Of the slab."""
        with self._lock:
            return self._used

    @property
    def capacity_bytes(self) -> int:
        return self._slab.nbytes

    @property
    def _used(self) -> int:
        return (len(self._slab) - len(self._free)) * BLOCK * TOKEN_BYTES

    def _read(self, key: ItemKey) -> Encoded | None:
        name = (key.tenant, key.posting_id)
        held = self._held.get(name)
        if held is None or held.stamp != key.stamp or held.text != key.text:
            return None
        self._held.move_to_end(name)
        tokens = self._slab[held.blocks].reshape(-1)[: held.length]
        tokens.flags.writeable = False
        return Encoded(tokens, held.cut, held.empty, held.unknown)

    def _make_room(self, needed: int) -> None:
        now = self._now_ms()
        while self._expiries and self._expiries[0][0] <= now:
            _, name, stamp = heapq.heappop(self._expiries)
            held = self._held.get(name)
            if held is not None and held.stamp == stamp:
                self._drop(name)
                DROPPED.labels("expired").inc()
        while len(self._free) < needed:
            self._drop(next(iter(self._held)))
            DROPPED.labels("room").inc()

    def _drop(self, name: tuple[str, str]) -> None:
        self._free.extend(self._held.pop(name).blocks.tolist())
        BYTES_IN_USE.set(self._used)

    def _prune(self) -> None:
        """Keep the heap as small as what it speaks of."""
        if len(self._expiries) > 2 * len(self._held) + 16:
            self._expiries = [
                (held.expires_ms, name, held.stamp) for name, held in self._held.items() if held.expires_ms is not None
            ]
            heapq.heapify(self._expiries)


class Filler:
    """Index updates into the arena; called by the one who reads them, on its thread."""

    def __init__(self, arena: Arena, tokenizer: Tokenizer) -> None:
        self._arena = arena
        self._tokenizer = tokenizer

    def fill(self, updates: Sequence[IndexUpdate]) -> int:
        """Tokenise what is new, slice by slice; how many items were written. What is deleted or expired is dropped.

        Raises UnreadableText.
        """
        newest: dict[tuple[str, str], IndexUpdate] = {}
        for update in updates:
            name = (update.tenant, update.posting_id)
            if name not in newest or key_of(newest[name]).stamp <= key_of(update).stamp:
                newest[name] = update
        wanted = []
        for update in newest.values():
            if update.op is not IndexOp.UPSERT:
                self._arena.remove(key_of(update))
            elif self._arena.lacks(key_of(update)):
                wanted.append(update)
        written = 0
        for start in range(0, len(wanted), SLICE):  # on this thread: the worker threads are for those who wait
            some = wanted[start : start + SLICE]
            items = self._tokenizer.items([item_text(update) for update in some])
            for update, item in zip(some, items, strict=True):
                written += self._arena.write(key_of(update), item, update.expires_at)
        return written


def key_of(update: IndexUpdate) -> ItemKey:
    return ItemKey(update.tenant, update.posting_id, (update.version, update.revision), hash(item_text(update)))
