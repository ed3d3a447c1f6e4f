"""How the postings' store lies in a snapshot: a slab for each page, and in the snapshot itself what changes at once.

    snapshot   live: a bit for each row of each slab; words, tenants and encoders by code; overflow; tombstones
    slab       blocks: int32 [b], those that held rows; every array of the page but birth and death, and both planes,
               of the rows of these blocks in order; ids and bodies, each as lengths (uint32) and one piece

A row does not change while it lives, so a slab stays right until a row is born in its page: deaths only clear bits in
the next snapshot. A slab's name says its page and the epoch in which a row was last born there, and a snapshot writes
only the slabs that are not on the disk yet. Rows that are not live hold anything.

Rows are numbered by slot, not by page, so a store with pages of another size can read them.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from penstock.retrieval.store.errors import SnapshotCorrupt
from penstock.retrieval.store.page import BLOCK, INLINE, MANY_FIELDS, Longs, Page
from penstock.retrieval.store.pages import Space, Table
from penstock.retrieval.store.records import Tombstone, update_of
from penstock.retrieval.store.rows import Rows
from penstock.retrieval.store.snapshot import Format, Part, Pieces, Sections
from penstock.schemas.filters import FIELDS
from penstock.schemas.rpc import RowState

CHUNK = 1_024  # rows copied at a time: a search waits for the interpreter no longer than that takes
FRAME = 10  # bytes of a body that say which schema wrote it
_LEFT_OUT = ("birth", "death")
_PLANES = ("dense", "sketch")
_STATES = tuple(RowState)

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Capture:
    """The whole store at one epoch, its rows pinned until `release` is called. `words`: by field, tenants, encoders."""

    epoch: int
    release: Callable[[], None]
    tombstones: tuple[Tombstone, ...]
    space: Space | None
    table: Table
    ids: tuple[list[str], ...]
    bodies: tuple[list[bytes], ...]
    stamps: tuple[int, ...]
    words: dict[str, list[str | None]]
    overflow: dict[str, tuple[Longs, npt.NDArray[np.int32]]]
    checksum: int


@dataclass(frozen=True, slots=True)
class Slab:
    """A page as a snapshot kept it: the blocks that hold rows, and of their rows `live`, the arrays, ids and bodies."""

    first: int
    rows: int  # of the page
    stamp: int
    slots: Longs  # ascending, whole blocks
    live: Mask
    arrays: Mapping[str, npt.NDArray[Any]]
    ids: Sequence[str]
    bodies: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Contents:
    """What a snapshot kept."""

    space: Space | None
    checksum: int
    words: dict[str, list[str | None]]
    overflow: dict[str, tuple[Longs, npt.NDArray[np.int32]]]
    tombstones: tuple[Tombstone, ...]
    slabs: tuple[Slab, ...]


# --- the store's side --------------------------------------------------------------------------------------------


def captured(rows: Rows, epoch: int, tombstones: Iterable[Tombstone], release: Callable[[], None]) -> Capture:
    """What the store holds now. The caller holds the writer off, and the epoch: its rows do not change afterwards."""
    table = rows.table
    vocabularies = {**rows.words.of, "tenants": rows.tenants, "encoders": rows.encoders}
    return Capture(
        epoch=epoch,
        release=release,
        tombstones=tuple(tombstones),
        space=table.space,
        table=table,
        ids=tuple(rows.ids),
        bodies=tuple(rows.bodies),
        stamps=tuple(rows.stamps),
        words={name: vocabulary.words() for name, vocabulary in vocabularies.items()},
        overflow={field: rows.overflow.entries(field) for field in MANY_FIELDS},
        checksum=rows.checksum,
    )


def restored(rows: Rows, kept: Contents, epoch: int) -> dict[str, int]:
    """Fills empty rows with what a snapshot kept, born in `epoch`: the slots by id.

    Raises OutOfRoom, and WireError where this release cannot read what another wrote.
    """
    for body in {body[:FRAME]: body for slab in kept.slabs for body in slab.bodies if body}.values():
        update_of(body)
    rows.adopt(kept.space)
    known: dict[str, int] = {}
    for slab in kept.slabs:
        rows.restore(slab.slots, slab.live, slab.arrays, (slab.ids, slab.bodies), epoch)
        known.update(zip(compress(slab.ids, slab.live), slab.slots[slab.live].tolist(), strict=True))
    rows.settle(kept.words, kept.overflow)
    rows.checksum = kept.checksum
    page_rows = rows.table.page_rows
    for slab in kept.slabs:
        if slab.rows == page_rows and len(slab.slots):  # the slab on the disk is as good as a new one
            rows.stamps[slab.first // page_rows] = slab.stamp
    return known


# --- the snapshot's side -----------------------------------------------------------------------------------------


class _Postings:
    """The format of the postings' store."""

    def parts(self, capture: Capture) -> list[Part]:
        return [
            Part(
                f"{number:05d}-{stamp:020d}",
                {"first": page.first, "rows": page.rows, "stamp": stamp},
                _slab(capture, number),
            )
            for number, page, stamp in _held(capture)
        ]

    def sections(self, capture: Capture) -> tuple[Sections, dict[str, Any]]:
        space = capture.space
        graves = capture.tombstones
        fixed = [
            (one.version, one.revision, _STATES.index(one.state), one.searchable_at, one.died_at) for one in graves
        ]
        sections: dict[str, Iterable[bytes]] = {
            "live": (np.packbits(_live(capture, page)).tobytes() for _, page, _ in _held(capture)),
            "words": [json.dumps(capture.words).encode()],
            "overflow": [
                _overflow(capture, number, *entries).tobytes()
                for number, entries in enumerate(capture.overflow.values())
            ],
            "graves": [np.asarray(fixed, "<i8").reshape(len(fixed), 5).tobytes()],
            **_texts("grave_ids", [one.posting_id for one in graves]),
            **_pieces("grave_bodies", [one.body for one in graves]),
        }
        return sections, {
            "layout": layout(),
            "space": [space.space_id, space.dense, space.sketch] if space is not None else None,
            "checksum": capture.checksum,
        }

    def kept(
        self, manifest: dict[str, Any], sections: Pieces, parts: Iterable[tuple[dict[str, Any], Pieces]]
    ) -> Contents:
        if manifest["layout"] != layout():
            raise SnapshotCorrupt("its rows are laid out as another release had them")
        overflow = np.frombuffer(sections["overflow"], "<i8").reshape(-1, 3)
        live = np.frombuffer(sections["live"], np.uint8)
        slabs, at = [], 0
        for about, pieces in parts:
            size = about["rows"] // 8
            slabs.append(_slab_of(about, pieces, np.unpackbits(live[at : at + size]).astype(np.bool_)))
            at += size
        return Contents(
            space=Space(*manifest["space"]) if manifest["space"] is not None else None,
            checksum=manifest["checksum"],
            words=json.loads(bytes(sections["words"])),
            overflow={
                field: (of_field[:, 1].astype(np.int64), of_field[:, 2].astype(np.int32))
                for number, field in enumerate(MANY_FIELDS)
                for of_field in (overflow[overflow[:, 0] == number],)
            },
            tombstones=tuple(
                Tombstone(posting_id, version, revision, _STATES[state], body, searchable_at, died_at)
                for posting_id, body, (version, revision, state, searchable_at, died_at) in zip(
                    _texts_of("grave_ids", sections),
                    _pieces_of("grave_bodies", sections),
                    np.frombuffer(sections["graves"], "<i8").reshape(-1, 5).tolist(),
                    strict=True,
                )
            ),
            slabs=tuple(slabs),
        )


POSTINGS: Format[Capture, Contents] = _Postings()


def layout() -> str:
    """Names what arrays hold: of another one, a slab means something else."""
    said = [(field, spec.type, [str(one) for one in spec.symbols or ()]) for field, spec in FIELDS.items()]
    return hashlib.sha256(repr((1, BLOCK, INLINE, _STATES, said)).encode()).hexdigest()[:16]


def _held(capture: Capture) -> Iterator[tuple[int, Page, int]]:
    """Number, page and stamp of those with live rows."""
    for number, (page, stamp) in enumerate(zip(capture.table.pages, capture.stamps, strict=True)):
        if _live(capture, page).any():
            yield number, page, stamp


def _live(capture: Capture, page: Page) -> Mask:
    alive: Mask = (page.birth <= capture.epoch) & (page.death > capture.epoch)
    return alive


def _slab(capture: Capture, number: int) -> Callable[[], tuple[Sections, dict[str, Any]]]:
    def sections() -> tuple[Sections, dict[str, Any]]:
        page = capture.table.pages[number]
        live = _live(capture, page)
        blocks = np.flatnonzero(live.reshape(-1, BLOCK).any(1)).astype(np.int32)
        rows = (blocks[:, None].astype(np.int64) * BLOCK + np.arange(BLOCK)).reshape(-1)
        taken = live[rows].tolist()
        ids = [capture.ids[number][row] if one else "" for row, one in zip(rows.tolist(), taken, strict=True)]
        bodies = [capture.bodies[number][row] if one else b"" for row, one in zip(rows.tolist(), taken, strict=True)]
        arrays = {name: array for name, array in page.arrays().items() if name not in _LEFT_OUT}
        arrays |= {name: _numpy(getattr(page, name)) for name in _PLANES if getattr(page, name).shape[1]}
        out: dict[str, Iterable[bytes]] = {"blocks": [blocks.astype("<i4").tobytes()]}
        out |= {name: _rows(array, rows, page.rows) for name, array in arrays.items()}
        out |= _texts("ids", ids)
        out |= _pieces("bodies", bodies)
        shapes = {
            name: [array.dtype.newbyteorder("<").str, *_width(array, page.rows)] for name, array in arrays.items()
        }
        return out, {"arrays": shapes}

    return sections


def _numpy(plane: torch.Tensor) -> npt.NDArray[Any]:
    """bfloat16 as int16, which numpy knows."""
    values: npt.NDArray[Any] = (plane.view(torch.int16) if plane.dtype == torch.bfloat16 else plane).numpy()
    return values


def _width(array: npt.NDArray[Any], rows: int) -> list[int]:
    """The shape besides the rows. Places alone have their rows last."""
    return [int(size) for size in (array.shape[1:] if array.shape[0] == rows else array.shape[:-1])]


def _rows(array: npt.NDArray[Any], rows: Longs, page_rows: int) -> Iterator[bytes]:
    for some in np.split(rows, range(CHUNK, len(rows), CHUNK)) if len(rows) else ():
        values = array[some] if array.shape[0] == page_rows else array[:, some].T
        yield np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()


def _slab_of(about: dict[str, Any], pieces: Pieces, live: Mask) -> Slab:
    first, rows = about["first"], about["rows"]
    blocks = np.frombuffer(pieces["blocks"], "<i4").astype(np.int64)
    places = (blocks[:, None] * BLOCK + np.arange(BLOCK)).reshape(-1)
    return Slab(
        first=first,
        rows=rows,
        stamp=about["stamp"],
        slots=first + places,
        live=live[places],
        arrays={
            name: np.frombuffer(pieces[name], dtype).reshape(len(places), *shape)
            for name, (dtype, *shape) in about["arrays"].items()
        },
        ids=_texts_of("ids", pieces),
        bodies=_pieces_of("bodies", pieces),
    )


def _overflow(capture: Capture, field: int, owner: Longs, code: npt.NDArray[np.int32]) -> Longs:
    """int64 [m, 3] of the live rows: number of the field, slot, code."""
    alive = np.zeros(len(owner), np.bool_)
    for number, at, rows in capture.table.split(owner):
        alive[at] = _live(capture, capture.table.pages[number])[rows]
    out = np.empty((int(alive.sum()), 3), "<i8")
    out[:, 0], out[:, 1], out[:, 2] = field, owner[alive], code[alive]
    return out


# --- many small things in one piece ------------------------------------------------------------------------------


def _texts(name: str, texts: Sequence[str]) -> Sections:
    lengths = np.fromiter(map(len, texts), "<u4", len(texts))
    return {
        f"{name}.lengths": [lengths.tobytes()],
        name: _joined([one.encode("utf-8", "surrogatepass") for one in texts]),
    }


def _pieces(name: str, pieces: Sequence[bytes]) -> Sections:
    lengths = np.fromiter(map(len, pieces), "<u4", len(pieces))
    return {f"{name}.lengths": [lengths.tobytes()], name: _joined(pieces)}


def _joined(pieces: Sequence[bytes]) -> Iterator[bytes]:
    for start in range(0, len(pieces), CHUNK):
        yield b"".join(pieces[start : start + CHUNK])


def _ends(name: str, sections: Pieces) -> list[int]:
    return [0, *np.cumsum(np.frombuffer(sections[f"{name}.lengths"], "<u4"), dtype=np.int64).tolist()]


def _texts_of(name: str, sections: Pieces) -> list[str]:
    ends, whole = _ends(name, sections), bytes(sections[name]).decode("utf-8", "surrogatepass")
    return [whole[begin:end] for begin, end in pairwise(ends)]


def _pieces_of(name: str, sections: Pieces) -> tuple[bytes, ...]:
    lengths = np.frombuffer(sections[f"{name}.lengths"], "<u4").tolist()
    return struct.Struct("<" + "".join([f"{length}s" for length in lengths])).unpack(sections[name])
