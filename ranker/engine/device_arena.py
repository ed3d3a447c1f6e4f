"""Items in a device's memory, so that a forward is sent where they lie and not what they are.

Two tables, each with its own blocks (ranker/engine/blocks.py): tokens, int32 in blocks of BLOCK; and vectors, float32,
a row a block. A request carries an item's tokens or vectors and, beside them, the `Held` that says where a device has
them: so the host stays the source of truth, and whatever a forward does not find there is sent.

    1. keep    blocks are taken, the item is written into pinned memory, copied and laid into its table in a stream of
               its own. Whoever keeps waits for no forward, and no forward waits for it; nor does a request for another
               copy: what finds one in its way is left out, and sent
    2. find    by key, when a request is made
    3. read    when a forward is packed: an item is read where it lies if it still is alive and its copy has ended.
               Until the forward has ended its blocks are not given to others, whoever drops it meanwhile

Invariant: what a forward reads of a table is what the request holds beside it. An item that was dropped or overwritten
while its request waited, or that is of an arena before this one, is sent, and counted.

A table never moves, so graphs that read it are captured once. Safe to share between threads: `_lock` is held to change
or look up what lies where, and for no copy; `_keeping` by whoever writes, so that copies go in the order in which their
blocks were taken.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import structlog
import torch
from numpy.typing import NDArray
from prometheus_client import Counter, Gauge
from torch import Tensor

from penstock.infra.telemetry import DEGRADED
from penstock.ranker.engine.blocks import BLOCK, Blocks, Held, ItemKey, Readers
from penstock.ranker.engine.plan import Forward

log = structlog.get_logger(role="ranker")

STAGED_BYTES = 1 << 20  # of pinned memory, of which there are two a table: 1,600 postings of 160 tokens
MOST_TOKENS = 1 << 30  # of a table: where they lie is counted in int32, with what is sent
STEP_S = 0.001  # between looks at a copy that is waited for
SPARE = 16  # a block of so many is kept free, for what comes while forwards still read what has left

ITEMS = Counter("penstock_device_arena_items_total", "Items of forwards, by whether they lay on the device", ["found"])
DROPPED = Counter(
    "penstock_device_arena_dropped_total", "Items that left the device's arena, or found no room", ["why"]
)
BYTES_IN_USE = Gauge("penstock_device_arena_bytes", "Bytes of the device's arena that hold items", ["table"])

Place = NDArray[np.int32]  # blocks of a table, in order
Item = tuple[ItemKey, NDArray[Any], int | None]  # what it is kept under, tokens or vectors, when it expires


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes of the tables."""

    tokens: int = 0
    vectors: int = 0

    def within(self, free: int | None) -> Room:
        """As much of it as is free: both smaller by one share, which is said and counted. None: all of it is."""
        if free is None or self.tokens + self.vectors <= free:
            return self
        share = max(0, free) / (self.tokens + self.vectors)
        found = Room(int(self.tokens * share), int(self.vectors * share))
        DEGRADED.labels("ranker", "device arena").inc()
        log.warning(
            "the device has no room for the arena as it was asked for: what does not fit is sent with each forward",
            asked_mib=(self.tokens + self.vectors) >> 20,
            made_mib=(found.tokens + found.vectors) >> 20,
            remedy="lower ranker.forward_tokens or ranker.device_arena_bytes, or free the device",
        )
        return found

    def blocks(self) -> int:
        return min(self.tokens, 4 * MOST_TOKENS) // (4 * BLOCK)

    def rows(self, hidden: int) -> int:
        return self.vectors // (4 * hidden)


NO_ROOM = Room()


class _Sent:
    """A copy on its way: written by whoever sends it; `done` is asked for under the arena's lock."""

    def __init__(self, table: object) -> None:
        self.table = table  # whose: an identity, for what waits must not keep a table's memory
        self.sent = False
        self.event: torch.cuda.Event | None = None  # of the last copy; on a CPU there is none to wait for

    def done(self) -> bool:
        if self.event is not None and _over(self.event):
            self.event = None
        return self.sent and self.event is None


class _Staging:
    """Pinned memory for `rows` blocks and where they go, and the device's copy of both. One thread's at a time."""

    def __init__(self, table: Tensor, rows: int) -> None:
        cuda = table.is_cuda

        def pair(*shape: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
            here = torch.zeros(*shape, dtype=dtype, pin_memory=cuda)
            return here, torch.zeros_like(here, device=table.device) if cuda else here

        self._table = table
        self._at, self._at_there = pair(rows, dtype=torch.int64)
        self._rows, self._rows_there = pair(rows, table.shape[1], dtype=table.dtype)
        self.at, self.rows = self._at.numpy(), self._rows.numpy()  # to be filled
        self._copied: torch.cuda.Event | None = None

    def ready(self, until: float) -> bool:
        """Whether what was sent last has been copied, behind no forward; waits for it until then (monotonic seconds),
        and in steps, for an event of a device that hangs is waited for without end."""
        while self._copied is not None and not _over(self._copied):
            if (left := until - time.monotonic()) <= 0:
                return False
            time.sleep(min(left, STEP_S))
        self._copied = None
        return True

    def fill(self, items: Sequence[tuple[Place, NDArray[Any]]]) -> int:
        """How many rows they take, each item in as many as its blocks."""
        used = 0
        for blocks, item in items:
            needed = len(blocks)
            self.at[used : used + needed] = blocks
            self.rows[used : used + needed].reshape(-1)[: item.size] = item.reshape(-1)
            used += needed
        return used

    def send(self, count: int, stream: torch.cuda.Stream | None) -> torch.cuda.Event | None:
        """Lays the first `count` rows into the table, in any order: each block once. Returns at once."""
        if stream is None:
            self._table.index_copy_(0, self._at[:count], self._rows[:count])
            return None
        with torch.cuda.stream(stream):
            for there, here in ((self._at_there, self._at), (self._rows_there, self._rows)):
                there[:count].copy_(here[:count], non_blocking=True)
            self._table.index_copy_(0, self._at_there[:count], self._rows_there[:count])
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's
            self._copied.record(stream)
        return self._copied


@dataclass(slots=True)
class _Table:
    name: str
    values: Tensor  # [blocks, width]
    unit: int  # tokens, or vectors, of a block
    blocks: Blocks[_Sent]
    identity: object = field(default_factory=object)
    staging: list[_Staging] = field(default_factory=list)
    turn: int = 0

    def __post_init__(self) -> None:
        if count := len(self.values):
            rows = min(count, max(1, STAGED_BYTES // (self.values.shape[1] * self.values.itemsize)))
            self.staging = [_Staging(self.values, rows) for _ in range(2)]

    def needed(self, item: NDArray[Any]) -> int:
        """Blocks."""
        return max(1, -(-len(item) // self.unit))

    def counted(self) -> None:
        BYTES_IN_USE.labels(self.name).set(self.blocks.used * self.values.shape[1] * self.values.itemsize)


class DeviceArena:
    """Of one backend, with which it comes and goes. `tokens` int32 [blocks, BLOCK] and `vectors` float32 [rows, hidden]
    are the backend's, and written by this alone. `now_ms` gives epoch milliseconds."""

    def __init__(self, tokens: Tensor, vectors: Tensor, now_ms: Callable[[], int]) -> None:
        self._readers = Readers()
        self._tables = tuple(
            _Table(name, table, unit, Blocks(len(table), now_ms, DROPPED, self._readers, len(table) // SPARE))
            for name, table, unit in (("tokens", tokens, BLOCK), ("vectors", vectors, 1))
        )
        self._reading: dict[int, torch.cuda.Event | None] = {}  # forwards that may read, by number; None: being packed
        self._stream = torch.cuda.Stream(tokens.device) if tokens.is_cuda else None  # type: ignore[no-untyped-call]
        self._lock = threading.Lock()
        self._keeping = threading.Lock()

    def find_tokens(self, keys: Sequence[ItemKey]) -> list[Held[Any] | None]:
        """Where each lies, in order; None where that very version and text is not kept."""
        return self._find(self._tables[0], keys)

    def find_vectors(self, keys: Sequence[ItemKey]) -> list[Held[Any] | None]:
        return self._find(self._tables[1], keys)

    def keep_tokens(self, items: Sequence[Item], patience_s: float = 0.0) -> None:
        """int32 [n] each, unless that version, or a newer one, is kept. What finds no room is left out, and so is what
        the device fails to take, or what finds another copy in its way for longer than `patience_s`; it is counted."""
        self._keep(self._tables[0], items, patience_s)

    def keep_vectors(self, items: Sequence[Item], patience_s: float = 0.0) -> None:
        """float32 [m, hidden] each, likewise."""
        self._keep(self._tables[1], items, patience_s)

    def remove(self, key: ItemKey) -> None:
        """Drop the posting, unless a version newer than the key's is kept."""
        with self._lock:
            for table in self._tables:
                table.blocks.remove(key)
                table.counted()

    @contextmanager
    def reading(self, forward: Forward) -> Iterator[list[Place | None]]:
        """For a forward's items, in order, where they lie, or None where they have to be sent; what is launched within,
        in the current stream, may read there."""
        with self._lock:
            self._ended()
            self._readers.begun += 1
            number = self._readers.begun
            self._reading[number] = None
            places = self._places(forward)
        try:
            yield places
        finally:
            event = None
            if self._stream is not None:
                event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's
                event.record()
            with self._lock:
                if event is None:
                    del self._reading[number]
                else:
                    self._reading[number] = event

    @property
    def nbytes(self) -> int:
        """Of the device, tables and staging."""
        staged = sum(each._rows.nbytes + each._at.nbytes for table in self._tables for each in table.staging)
        return sum(table.values.nbytes for table in self._tables) + (staged if self._stream is not None else 0)

    @property
    def bytes_used(self) -> int:
        """Of the tables."""
        with self._lock:
            return sum(table.blocks.used * table.values.shape[1] * table.values.itemsize for table in self._tables)

    def __len__(self) -> int:
        """Items."""
        with self._lock:
            return sum(len(table.blocks.held) for table in self._tables)

    def _find(self, table: _Table, keys: Sequence[ItemKey]) -> list[Held[Any] | None]:
        with self._lock:
            return [table.blocks.find(key) for key in keys]

    def _keep(self, table: _Table, items: Sequence[Item], patience_s: float) -> None:
        if not table.staging or not items:
            return
        until = time.monotonic() + patience_s
        if not self._keeping.acquire(timeout=patience_s):
            DROPPED.labels("busy").inc(len(items))
            return
        try:
            at = 0
            while at < len(items):
                at += self._keep_some(table, items[at:], until)
        finally:
            self._keeping.release()

    def _keep_some(self, table: _Table, items: Sequence[Item], until: float) -> int:
        """As many as staging takes; how many these were. All of them where the device fails or is busy until then."""
        staging = table.staging[table.turn]
        sent = _Sent(table.identity)
        taken: list[tuple[ItemKey, Held[_Sent], NDArray[Any]]] = []
        done = room = 0
        try:
            if not staging.ready(until):
                DROPPED.labels("busy").inc(len(items))
                return len(items)
            table.turn = 1 - table.turn
            for key, item, expires_ms in items:
                needed = table.needed(item)
                if needed <= len(staging.at) < room + needed:
                    break
                done += 1
                held = self._taken(table, key, needed, item, expires_ms, sent) if needed <= len(staging.at) else None
                if held is not None:
                    taken.append((key, held, item))
                    room += needed
            # Blocks of an item that was dropped may be another's of this copy, which would write them twice; of those
            # alive when all are taken none are, for nobody else takes blocks meanwhile.
            if used := staging.fill([(held.blocks, item) for _, held, item in taken if held.alive]):
                sent.event = staging.send(used, self._stream)
            sent.sent = True
        except Exception as error:  # the device's: forwards will tell of it, and until then these items are sent
            with self._lock:
                for key, _, _ in taken:
                    table.blocks.remove(key)
            DEGRADED.labels("ranker", "device arena").inc()
            log.warning("items not kept on the device", table=table.name, count=len(items), error=str(error))
            done = len(items)
        table.counted()
        return done

    def _taken(
        self, table: _Table, key: ItemKey, needed: int, item: NDArray[Any], expires_ms: int | None, sent: _Sent
    ) -> Held[_Sent] | None:
        with self._lock:
            if not table.blocks.lacks(key):
                return None
            self._ended()
            return table.blocks.take(key, needed, len(item), expires_ms, sent)

    def _places(self, forward: Forward) -> list[Place | None]:
        places: list[Place | None] = [None] * len(forward.items)
        if not any(table.staging for table in self._tables):
            return places
        tokens, vectors = (table.identity for table in self._tables)
        rows = np.searchsorted(forward.embedded, forward.items)  # an item's vectors stand before its tokens
        counts = (rows[:, 1] - rows[:, 0]).tolist()
        lengths = (forward.items[:, 1] - forward.items[:, 0]).tolist()
        told = {"yes": 0, "no": 0, "gone": 0, "late": 0}
        for at, held in enumerate(forward.held):
            of = vectors if counts[at] else tokens
            length = counts[at] or lengths[at]
            if held is None:
                found = "no"
            elif not held.alive or held.kept.table is not of or held.length != length:
                found = "gone"
            elif not held.kept.done():
                found = "late"
            else:
                found = "yes"
                places[at] = held.blocks
            told[found] += 1
        for found, count in told.items():
            ITEMS.labels(found).inc(count)
        return places

    def _ended(self) -> None:
        """Which forwards no longer read; under the lock."""
        for number, event in list(self._reading.items()):
            if event is None or not _over(event):
                break
            del self._reading[number]
        self._readers.ended = min(self._reading, default=self._readers.begun + 1) - 1


def _over(event: torch.cuda.Event) -> bool:
    return bool(event.query())  # type: ignore[no-untyped-call]  # torch's
