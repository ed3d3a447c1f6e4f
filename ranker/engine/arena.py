"""Item tokens kept by posting, version and text, so that a request tokenises its query alone.

One slab of int32 in blocks of BLOCK tokens, as large as it is told to be; what is on it, and what leaves it, is said in
ranker/engine/blocks.py. An item larger than the slab is not kept.

The text is part of the key: (version, revision) says what kind of content an update carries, but a replay after a crash
may carry another text of that kind, so that the feature store and retrieval's rows can differ under one stamp.

Filled at ingest (`Filler`) and by whoever had to tokenise an item because it was missing. It belongs to one tokenizer
and template. Safe to share between threads; the lock is held only to copy. What a device holds of it is a copy
(ranker/engine/device_arena.py).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from prometheus_client import Counter, Gauge

from penstock.ranker.backends.prompt import item_text
from penstock.ranker.engine.blocks import BLOCK, Blocks, ItemKey
from penstock.ranker.engine.tokens import SLICE, Encoded, Tokenizer
from penstock.schemas.events import IndexOp, IndexUpdate

if TYPE_CHECKING:  # it brings torch
    from penstock.ranker.engine.device_arena import DeviceArena

TOKEN_BYTES = 4
PATIENCE_S = 0.05  # of a slice, with copies to the device before it: no query waits for the feed

LOOKED_UP = Counter("penstock_arena_items_total", "Items looked up in the token arena", ["found"])
DROPPED = Counter("penstock_arena_dropped_total", "Items dropped to make room", ["why"])
BYTES_IN_USE = Gauge("penstock_arena_bytes", "Bytes of the token arena that hold items")


@dataclass(frozen=True, slots=True)
class _Flags:
    cut: bool
    empty: bool
    unknown: bool


class Arena:
    """Owns the slab. `capacity_bytes` bounds the slab; beside it each item held costs an entry of the index, and
    there are no more items than blocks. `now_ms` gives epoch milliseconds."""

    def __init__(self, capacity_bytes: int, now_ms: Callable[[], int]) -> None:
        blocks = capacity_bytes // (BLOCK * TOKEN_BYTES)
        if blocks < 1:
            raise ValueError(f"an arena of {capacity_bytes} bytes: expected at least {BLOCK * TOKEN_BYTES}")
        self._slab = np.empty((blocks, BLOCK), dtype=np.int32)  # pages are taken from the system as they are written
        self._blocks: Blocks[_Flags] = Blocks(blocks, now_ms, DROPPED)
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
            return self._blocks.lacks(key)

    def write(self, key: ItemKey, item: Encoded, expires_ms: int | None) -> bool:
        """Keep the item unless a newer version of it is held; of one version the last text written is kept. False when
        it is not kept."""
        needed = max(1, -(-len(item.tokens) // BLOCK))
        flags = _Flags(item.cut, item.empty, item.unknown)
        with self._lock:
            held = self._blocks.take(key, needed, len(item.tokens), expires_ms, flags)
            if held is not None:
                padded = np.zeros(needed * BLOCK, dtype=np.int32)
                padded[: len(item.tokens)] = item.tokens
                self._slab[held.blocks] = padded.reshape(needed, BLOCK)
            self._count()
        return held is not None

    def remove(self, key: ItemKey) -> None:
        """Drop the posting, unless a version newer than the key's is held."""
        with self._lock:
            self._blocks.remove(key)
            self._count()

    def __len__(self) -> int:
        with self._lock:
            return len(self._blocks.held)

    @property
    def bytes_used(self) -> int:
        """Of the slab."""
        with self._lock:
            return self._blocks.used * BLOCK * TOKEN_BYTES

    @property
    def capacity_bytes(self) -> int:
        return self._slab.nbytes

    def _read(self, key: ItemKey) -> Encoded | None:
        held = self._blocks.find(key)
        if held is None:
            return None
        tokens = self._slab[held.blocks].reshape(-1)[: held.length]
        tokens.flags.writeable = False
        return Encoded(tokens, held.kept.cut, held.kept.empty, held.kept.unknown)

    def _count(self) -> None:
        BYTES_IN_USE.set(self._blocks.used * BLOCK * TOKEN_BYTES)


class Filler:
    """Index updates into the arena, and into what a device holds of it; called by the one who reads them, on its
    thread. `there` gives the device's arena, None where there is none; it is asked again for each slice, for a backend
    that failed must leave its memory to the next."""

    def __init__(
        self, arena: Arena, tokenizer: Tokenizer, there: Callable[[], DeviceArena | None] = lambda: None
    ) -> None:
        self._arena = arena
        self._tokenizer = tokenizer
        self._there = there

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
                self._remove(key_of(update))
            elif self._arena.lacks(key_of(update)):
                wanted.append(update)
        written = 0
        for start in range(0, len(wanted), SLICE):  # on this thread: the worker threads are for those who wait
            some = wanted[start : start + SLICE]
            written += self._write(some, self._tokenizer.items([item_text(update) for update in some]))
        return written

    def _remove(self, key: ItemKey) -> None:
        self._arena.remove(key)
        if (there := self._there()) is not None:
            there.remove(key)

    def _write(self, updates: Sequence[IndexUpdate], items: Sequence[Encoded]) -> int:
        keyed = [(key_of(update), item, update.expires_at) for update, item in zip(updates, items, strict=True)]
        written = sum(self._arena.write(key, item, expires_ms) for key, item, expires_ms in keyed)
        if (there := self._there()) is not None:
            there.keep_tokens([(key, item.tokens, expires_ms) for key, item, expires_ms in keyed], PATIENCE_S)
        return written


def key_of(update: IndexUpdate) -> ItemKey:
    return ItemKey(update.tenant, update.posting_id, (update.version, update.revision), hash(item_text(update)))
