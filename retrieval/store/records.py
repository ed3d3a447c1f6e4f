"""What the store knows of each id besides its row: the newest accepted update, and since when it is visible.

Frozen: a change is a new entry in the place of the old, so a reader or a snapshot that caught one has a whole one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from penstock.retrieval.store.pages import Table
from penstock.schemas.events import Filter, IndexOp, IndexUpdate, QueryVector, Vector
from penstock.schemas.rpc import Hit, RowState
from penstock.schemas.wire import codec

NO_SLOT = -1


@dataclass(frozen=True, slots=True)
class Entry:
    """One id. A tombstone (DELETED, EXPIRED) has no slot and keeps id and version until its window ends."""

    posting_id: str
    version: int
    revision: int
    state: RowState  # LIVE, DELETED or EXPIRED; a LIVE one past its expiry counts as EXPIRED on every read
    slot: int
    expires_at: int | None  # epoch ms
    encoder_id: str  # of the vector in the slot; empty without one
    body: bytes  # the update, framed Avro, its vector left out: the planes have it
    searchable_at: int  # epoch ms
    died_at: int  # epoch ms; of a tombstone, when it became one

    @property
    def age(self) -> tuple[int, int]:
        """What orders the updates of one id."""
        return (self.version, self.revision)

    @property
    def nbytes(self) -> int:
        """Memory held, as Python counts it: object, id, body, and its places in the dictionaries."""
        return 136 + sys.getsizeof(self.posting_id) + sys.getsizeof(self.body) + 200

    def state_at(self, now_ms: int) -> RowState:
        """Expiry is a predicate on read: from `expires_at` on a posting is not live, whoever is late to say so."""
        if self.state is RowState.LIVE and self.expires_at is not None and now_ms >= self.expires_at:
            return RowState.EXPIRED
        return self.state


def body_of(update: IndexUpdate) -> bytes:
    """The bytes that an entry keeps of an update."""
    return codec(IndexUpdate).encode_unbounded(replace(update, vector=None))


def update_of(entry: Entry) -> IndexUpdate:
    """The other way, without the vector."""
    return codec(IndexUpdate).decode_unbounded(entry.body)


def update_kept(kept: Kept) -> IndexUpdate:
    """The whole update that a snapshot kept."""
    return replace(codec(IndexUpdate).decode_unbounded(kept.body), vector=kept.vector)


def buried(entry: Entry, now_ms: int) -> Entry:
    """The tombstone of a row whose time is over: its texts and attributes are let go."""
    rest = replace(update_of(entry), op=IndexOp.EXPIRE, attributes=None, summary=None, item_text=None)
    return replace(entry, state=RowState.EXPIRED, slot=NO_SLOT, encoder_id="", body=body_of(rest), died_at=now_ms)


STATE_OF_OP = {IndexOp.UPSERT: RowState.LIVE, IndexOp.DELETE: RowState.DELETED, IndexOp.EXPIRE: RowState.EXPIRED}


@dataclass(frozen=True, slots=True)
class Refusal:
    """An update that was not applied because something is wrong with it; its fellows were."""

    position: int  # in the batch
    error: Exception


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of a batch."""

    epoch: int
    published_at: int  # epoch ms
    accepted: tuple[int, ...]  # positions in the batch, each now visible or superseded by a later one of the batch
    stale: int  # not newer than what was known: repeats and latecomers
    refused: tuple[Refusal, ...]
    without_vector: tuple[tuple[int, str], ...]  # (position, why): kept, but its vector could not be


@dataclass(frozen=True, slots=True)
class Kept:
    """One id as a snapshot keeps it."""

    body: bytes
    searchable_at: int
    died_at: int
    refused_vector: bool
    vector: Vector | None


@dataclass(frozen=True, slots=True)
class Capture:
    """The whole store at one epoch, its rows pinned until `release` is called."""

    epoch: int
    space_id: str
    entries: tuple[Entry, ...]
    table: Table
    release: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Ask:
    """One search. Without a vector every row scores 0 and the newest come first."""

    vector: QueryVector | None
    filter: Filter | None
    k: int
    now_ms: int
    tenant: str = "default"
    at_epoch: int | None = None  # None: the newest


@dataclass(frozen=True, slots=True)
class SearchResult:
    hits: tuple[Hit, ...]
    total: int  # rows that passed
    epoch: int
    rescored: int  # rows whose score was computed in float64
    plan: str = field(default="", compare=False)  # how rows were looked at
    looked_at: int = field(default=0, compare=False)  # rows of the blocks that zone maps did not rule out


@dataclass(frozen=True, slots=True)
class StoreCounts:
    """Byte counts are what the structures hold; Python's own overhead for entries is an estimate."""

    live: int
    tombstones: int
    held_dead: int  # rows no longer visible whose slots older readers may still need
    capacity: int  # rows that the pages have room for
    spare: int  # free rows in blocks that hold some: what placement costs
    without_vector: int  # live rows not found by meaning: without a dense plane
    vectors_refused: int  # live rows whose update carried a vector that could not be stored
    stale: int
    collisions: int
    oldest_epoch: int
    epoch: int
    bytes_planes: int
    bytes_columns: int
    bytes_rows: int
    bytes_records: int

    @property
    def nbytes(self) -> int:
        return self.bytes_planes + self.bytes_columns + self.bytes_rows + self.bytes_records
