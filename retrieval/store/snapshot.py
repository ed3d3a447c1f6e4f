"""Snapshots: a whole store and the Kafka offsets it covers, in one checksummed file that appears by rename.

    file      MAGIC | sections … | manifest (JSON) | manifest's length, 8 bytes | its BLAKE2b, 16 bytes | MAGIC

What the sections are, the store's `Format` says. That of postings (`POSTINGS`):

    sections  fixed: int64 [n, 5]   body length, searchable at, died at, planes held, encoder's number
              bodies: n updates, framed Avro, their vectors left out
              dense: bfloat16 [m, D] and sketch: int8 [r, L], of the rows that hold them, in order

Every section's length and BLAKE2b stand in the manifest, so a torn or altered file is known before any of it is used.
The newest two are kept. A corrupt one is set aside under another name, never tried again and never in the way.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from penstock.retrieval.store.errors import SnapshotCorrupt
from penstock.retrieval.store.pages import Table
from penstock.retrieval.store.planes import DENSE, REFUSED, SKETCH
from penstock.retrieval.store.records import NO_SLOT, Capture, Kept
from penstock.schemas.events import Vector

MAGIC = b"PENSTOCK-SNAP-1\n"
KEEP = 2
CHUNK = 4_096  # rows copied out of the planes at a time
_TAIL = struct.Struct(f"<Q16s{len(MAGIC)}s")

K = TypeVar("K")
K_co = TypeVar("K_co", covariant=True)
K_contra = TypeVar("K_contra", contravariant=True)
X = TypeVar("X", bound="Captured")
X_contra = TypeVar("X_contra", bound="Captured", contravariant=True)


@dataclass(frozen=True, slots=True)
class Covered:
    """The part of the log that a snapshot stands for: every record below these offsets has been applied."""

    offsets: Mapping[int, int]  # partition -> next offset
    log_id: str  # which topic of which cluster: a log made anew has another


@dataclass(frozen=True, slots=True)
class Restored:
    """What `Snapshots.restore` found."""

    covered: Covered | None  # None: no usable snapshot, replay everything
    path: Path | None
    problems: tuple[str, ...]  # snapshots that could not be used, and why


class Captured(Protocol):
    """A store at one epoch, held until released."""

    @property
    def epoch(self) -> int: ...

    def release(self) -> None: ...


class Format(Protocol[X_contra, K_co]):
    """How one kind of store is laid out in a snapshot: a capture of type X, what was kept of type K."""

    def sections(self, capture: X_contra) -> tuple[dict[str, Iterable[bytes]], dict[str, Any]]:
        """The sections by name, and what the manifest says besides."""

    def kept(self, manifest: dict[str, Any], parts: dict[str, bytes]) -> Iterator[K_co]:
        """What the sections hold."""


class Restorable(Protocol[K_contra]):
    def restore(self, kept: Iterable[K_contra]) -> None:
        """Fills an empty store with what a snapshot kept."""


class Snapshots(Generic[X, K]):
    """A folder of snapshots of one store. One thread writes at a time."""

    def __init__(self, folder: Path, form: Format[X, K]) -> None:
        self.folder = folder
        self._form = form
        folder.mkdir(parents=True, exist_ok=True)
        for torn in folder.glob("*.tmp"):  # a writer that was killed
            torn.unlink()

    def paths(self) -> list[Path]:
        """Newest first."""
        return sorted(self.folder.glob("snapshot-*.penstock"), reverse=True)

    def write(self, capture: X, covered: Covered) -> Path:
        """Writes a capture and releases it; older snapshots but one go. Raises OSError when the disk refuses."""
        final = self.folder / f"snapshot-{capture.epoch:020d}.penstock"
        draft = final.with_suffix(".tmp")
        try:
            with draft.open("wb") as out:
                _write(out, capture.epoch, *self._form.sections(capture), covered)
                out.flush()
                os.fsync(out.fileno())
            draft.replace(final)
            _sync_folder(self.folder)
        finally:
            capture.release()
            draft.unlink(missing_ok=True)
        for old in self.paths()[KEEP:]:
            old.unlink()
        return final

    def restore(self, store: Restorable[K]) -> Restored:
        """Fills the empty store from the newest snapshot that is whole."""
        problems = []
        for path in self.paths():
            try:
                kept, covered = read(path, self._form)
            except SnapshotCorrupt as error:
                problems.append(str(error))
                self._set_aside(path)
                continue
            store.restore(kept)
            return Restored(covered, path, tuple(problems))
        return Restored(None, None, tuple(problems))

    def _set_aside(self, path: Path) -> None:
        """Out of the way of the next start, and kept for whoever looks into it; one such file at a time."""
        for older in self.folder.glob("*.corrupt"):
            older.unlink()
        path.replace(path.with_suffix(".corrupt"))


# --- writing -----------------------------------------------------------------------------------------------------


def _write(
    out: IO[bytes], epoch: int, sections: Mapping[str, Iterable[bytes]], more: Mapping[str, Any], covered: Covered
) -> None:
    out.write(MAGIC)
    manifest = {
        "epoch": epoch,
        **more,
        "offsets": {str(partition): offset for partition, offset in covered.offsets.items()},
        "log_id": covered.log_id,
        "sections": [_section(out, name, parts) for name, parts in sections.items()],
    }
    text = json.dumps(manifest).encode()
    out.write(text + _TAIL.pack(len(text), _digest(text), MAGIC))


def _section(out: IO[bytes], name: str, parts: Iterable[bytes]) -> dict[str, Any]:
    digest, length = hashlib.blake2b(digest_size=16), 0
    for part in parts:
        out.write(part)
        digest.update(part)
        length += len(part)
    return {"name": name, "bytes": length, "blake2b": digest.hexdigest()}


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# --- reading -----------------------------------------------------------------------------------------------------


def read(path: Path, form: Format[X, K]) -> tuple[Iterator[K], Covered]:
    """What a snapshot kept, and what it covers. Raises SnapshotCorrupt before anything of it is used."""
    with path.open("rb") as file:
        manifest = _manifest(path, file)
        file.seek(len(MAGIC))
        parts = {}
        for section in manifest["sections"]:
            data = file.read(section["bytes"])
            if _digest(data).hex() != section["blake2b"]:
                raise SnapshotCorrupt(f"{path}: section {section['name']} is not what was written")
            parts[section["name"]] = data
    offsets = {int(partition): offset for partition, offset in manifest["offsets"].items()}
    return form.kept(manifest, parts), Covered(offsets, manifest["log_id"])


def _manifest(path: Path, file: IO[bytes]) -> dict[str, Any]:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if file.read(len(MAGIC)) != MAGIC:
        raise SnapshotCorrupt(f"{path}: does not begin as a snapshot of this format")
    if size < len(MAGIC) + _TAIL.size:
        raise SnapshotCorrupt(f"{path}: cut short, {size} bytes")
    file.seek(size - _TAIL.size)
    length, digest, magic = _TAIL.unpack(file.read(_TAIL.size))
    if magic != MAGIC or length > size - _TAIL.size - len(MAGIC):
        raise SnapshotCorrupt(f"{path}: cut short, or its end altered ({size} bytes)")
    file.seek(size - _TAIL.size - length)
    text = file.read(length)
    if _digest(text) != digest:
        raise SnapshotCorrupt(f"{path}: the manifest is not what was written")
    manifest: dict[str, Any] = json.loads(text)
    written = len(MAGIC) + sum(section["bytes"] for section in manifest["sections"]) + length + _TAIL.size
    if written != size:
        raise SnapshotCorrupt(f"{path}: {size} bytes, {written} were written")
    return manifest


# --- postings ----------------------------------------------------------------------------------------------------


class _Postings:
    """The format of the postings' store."""

    def sections(self, capture: Capture) -> tuple[dict[str, Iterable[bytes]], dict[str, Any]]:
        entries = sorted(capture.entries, key=lambda entry: entry.slot)  # rows are then read in their order
        table = capture.table
        slots = np.asarray([entry.slot for entry in entries], np.int64)
        filled = slots != NO_SLOT
        held = np.zeros(len(entries), np.int64)
        held[filled] = table.take("held", slots[filled])
        encoders = {encoder: number for number, encoder in enumerate(dict.fromkeys(e.encoder_id for e in entries))}
        fixed = np.asarray(
            [
                (len(entry.body), entry.searchable_at, entry.died_at, planes, encoders[entry.encoder_id])
                for entry, planes in zip(entries, held.tolist(), strict=True)
            ],
            "<i8",
        ).reshape(len(entries), 5)
        sections: dict[str, Iterable[bytes]] = {
            "fixed": [fixed.tobytes()],
            "bodies": (entry.body for entry in entries),
            "dense": _rows(table, "dense", slots[(held & DENSE) > 0]),
            "sketch": _rows(table, "sketch", slots[(held & SKETCH) > 0]),
        }
        return sections, {
            "space_id": capture.space_id,
            "widths": [table.space.dense, table.space.sketch] if table.space is not None else [0, 0],
            "entries": len(entries),
            "encoders": list(encoders),
        }

    def kept(self, manifest: dict[str, Any], parts: dict[str, bytes]) -> Iterator[Kept]:
        fixed = np.frombuffer(parts["fixed"], "<i8").reshape(manifest["entries"], 5)
        bodies, planes = memoryview(parts["bodies"]), (memoryview(parts["dense"]), memoryview(parts["sketch"]))
        sizes = (2 * manifest["widths"][0], manifest["widths"][1])
        body_at, plane_at = 0, [0, 0]
        for length, searchable_at, died_at, held, encoder in fixed.tolist():
            taken: list[bytes | None] = [None, None]
            for part, bit in enumerate((DENSE, SKETCH)):
                if held & bit:
                    taken[part] = bytes(planes[part][plane_at[part] : plane_at[part] + sizes[part]])
                    plane_at[part] += sizes[part]
            encoder_id = manifest["encoders"][encoder]
            vector = None
            if held & (DENSE | SKETCH):
                vector = Vector(
                    space_id=manifest["space_id"], encoder_id=encoder_id, dense=taken[0] or b"", sketch=taken[1]
                )
            yield Kept(
                body=bytes(bodies[body_at : body_at + length]),
                searchable_at=searchable_at,
                died_at=died_at,
                refused_vector=bool(held & REFUSED),
                vector=vector,
            )
            body_at += length


POSTINGS: Format[Capture, Kept] = _Postings()


def _rows(table: Table, plane: str, slots: npt.NDArray[np.int64]) -> Iterator[bytes]:
    """The rows of a plane at ascending slots."""
    for number, _, rows in table.split(slots):
        values = getattr(table.pages[number], plane)
        raw = values.view(torch.int16) if values.dtype == torch.bfloat16 else values
        for start in range(0, len(rows), CHUNK):
            some = raw[torch.from_numpy(rows[start : start + CHUNK])].numpy()
            yield some.astype(some.dtype.newbyteorder("<")).tobytes()
