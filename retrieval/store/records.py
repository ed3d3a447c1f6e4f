"""What the store knows of each id besides its row: the update's body, tombstones; and what it answers."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace

from penstock.schemas.events import Filter, IndexOp, IndexUpdate, QueryVector
from penstock.schemas.rpc import Hit, RowState
from penstock.schemas.wire import codec

NO_SLOT = -1


@dataclass(frozen=True, slots=True)
class Tombstone:
    """An id that is DELETED or EXPIRED: it keeps its version until its window ends, so that no latecomer revives it."""

    posting_id: str
    version: int
    revision: int
    state: RowState
    body: bytes  # the update, as `body_of` has it, without texts and attributes
    searchable_at: int  # epoch ms
    died_at: int  # epoch ms: since when it is one

    @property
    def age(self) -> tuple[int, int]:
        """What orders the updates of one id."""
        return (self.version, self.revision)

    @property
    def nbytes(self) -> int:
        """Memory held, as Python counts it: object, id, body, numbers, its places in dictionary and queue."""
        return 96 + sys.getsizeof(self.posting_id) + sys.getsizeof(self.body) + 2 * 32 + 72 + 64


def body_of(update: IndexUpdate) -> bytes:
    """The update as the store keeps it: framed Avro, its vector left out, which the planes have."""
    return codec(IndexUpdate).encode_unbounded(update, without=("vector",))


def update_of(body: bytes) -> IndexUpdate:
    """The other way, without the vector."""
    return codec(IndexUpdate).decode_unbounded(body)


def tombstone_of(update: IndexUpdate, searchable_at: int, died_at: int) -> Tombstone:
    """The tombstone that a deletion leaves."""
    return Tombstone(
        posting_id=update.posting_id,
        version=update.version,
        revision=update.revision,
        state=STATE_OF_OP[update.op],
        body=body_of(update),
        searchable_at=searchable_at,
        died_at=died_at,
    )


def buried(body: bytes, searchable_at: int, died_at: int) -> Tombstone:
    """The tombstone of a row whose time is over: its texts and attributes are let go."""
    rest = replace(update_of(body), op=IndexOp.EXPIRE, attributes=None, summary=None, item_text=None)
    return tombstone_of(rest, searchable_at, died_at)


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
    bytes_device: int = 0  # on the device that mirrors the pages; not in `nbytes`, which is the host's

    @property
    def nbytes(self) -> int:
        return self.bytes_planes + self.bytes_columns + self.bytes_rows + self.bytes_records
