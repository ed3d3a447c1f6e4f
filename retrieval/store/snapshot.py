"""Snapshots: a whole store and the Kafka offsets it covers, in checksummed files, whole from the moment they appear.

    snapshot-<epoch>.penstock   what the store's `Format` says of everything at that epoch, and which parts it needs
    part-<key>.penstock         what changes together and seldom, as a page of rows: shared by snapshots that need it

    file      MAGIC | sections … | manifest (JSON) | manifest's length, 8 bytes | its SHA-256, 32 bytes | MAGIC

A part's key names its content, so a snapshot writes only the parts whose key is new. Order makes it atomic: parts are
written, synced and renamed first, then the snapshot, then what nobody needs any more goes. Whatever moment a writer is
killed at, the newest snapshot in the folder is whole.

Every section's length and SHA-256 stand in its file's manifest, and every part's manifest by its SHA-256 in the
snapshot's, so a torn, altered or exchanged file is known before any of it is used. The newest two snapshots are kept. A
corrupt one is set aside under another name, never tried again and never in the way.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Generic, Protocol, TypeVar

from penstock.retrieval.store.errors import SnapshotCorrupt

MAGIC = b"PENSTOCK-SNAP-2\n"
KEEP = 2
PIECE = 1 << 20  # bytes written, then a rest where the pace asks for one
READERS = 2  # files checked at a time
_TAIL = struct.Struct(f"<Q32s{len(MAGIC)}s")

K = TypeVar("K")
K_co = TypeVar("K_co", covariant=True)
K_contra = TypeVar("K_contra", contravariant=True)
X = TypeVar("X", bound="Captured")
X_contra = TypeVar("X_contra", bound="Captured", contravariant=True)

Sections = Mapping[str, Iterable[bytes]]  # to write
Pieces = Mapping[str, memoryview]  # as read


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


@dataclass(frozen=True, slots=True)
class Part:
    """What of a store changes together."""

    key: str  # of two parts of one store with the same key either may stand for the other
    about: dict[str, Any]  # what the snapshot says of it
    sections: Callable[[], tuple[Sections, dict[str, Any]]]  # and what its own manifest says besides


class Captured(Protocol):
    """A store at one epoch, held until released."""

    @property
    def epoch(self) -> int: ...

    @property
    def release(self) -> Callable[[], None]: ...


class Format(Protocol[X_contra, K_co]):
    """How one kind of store is laid out in a snapshot: a capture of type X, what was kept of type K."""

    def parts(self, capture: X_contra) -> Sequence[Part]:
        """What may be on the disk already."""

    def sections(self, capture: X_contra) -> tuple[Sections, dict[str, Any]]:
        """The rest by name, and what the manifest says besides."""

    def kept(self, manifest: dict[str, Any], sections: Pieces, parts: Iterable[tuple[dict[str, Any], Pieces]]) -> K_co:
        """What was written. Of each part, as they are found whole: what was said of it, and its sections.

        Raises SnapshotCorrupt.
        """


class Restorable(Protocol[K_contra]):
    def restore(self, kept: K_contra) -> None:
        """Fills an empty store with what a snapshot kept."""


@dataclass(frozen=True, slots=True)
class _Written:
    """A file that this process wrote or has found whole."""

    name: str
    bytes: int
    manifest: str  # its SHA-256


class Snapshots(Generic[X, K]):
    """A folder of snapshots of one store. One thread writes at a time.

    `bytes_per_s`: how fast it writes while the store serves; None: as fast as it can.
    """

    def __init__(self, folder: Path, form: Format[X, K], bytes_per_s: float | None = None) -> None:
        self.folder = folder
        self._form = form
        self._bytes_per_s = bytes_per_s
        self._whole: dict[str, _Written] = {}  # parts by key
        folder.mkdir(parents=True, exist_ok=True)
        for torn in folder.glob("*.tmp"):  # a writer that was killed
            torn.unlink()

    def paths(self) -> list[Path]:
        """Newest first."""
        return sorted(self.folder.glob("snapshot-*.penstock"), reverse=True)

    def write(self, capture: X, covered: Covered, *, hurry: bool = False) -> Path:
        """Writes a capture and releases it; what no snapshot needs any more goes. `hurry`: without resting.

        Raises OSError when the disk refuses.
        """
        pace = _Pace(None if hurry else self._bytes_per_s)
        try:
            parts = []
            for part in self._form.parts(capture):
                whole = self._whole.get(part.key)
                if whole is None:
                    whole = self._whole[part.key] = self._write(f"part-{part.key}", *part.sections(), pace)
                parts.append(
                    {"file": whole.name, "bytes": whole.bytes, "manifest": whole.manifest, "about": part.about}
                )
            sections, more = self._form.sections(capture)
            manifest = {
                "epoch": capture.epoch,
                **more,
                "offsets": {str(partition): offset for partition, offset in covered.offsets.items()},
                "log_id": covered.log_id,
                "parts": parts,
            }
            _sync_folder(self.folder)
            final = self.folder / self._write(f"snapshot-{capture.epoch:020d}", sections, manifest, pace).name
            _sync_folder(self.folder)
        finally:
            capture.release()
        self._tidy()
        return final

    def restore(self, store: Restorable[K]) -> Restored:
        """Fills the empty store from the newest snapshot that is whole."""
        problems = []
        for path in self.paths():
            try:
                kept, covered, parts = _read(path, self._form)
            except SnapshotCorrupt as error:
                problems.append(str(error))
                self._set_aside(path)
                continue
            store.restore(kept)
            self._whole = parts
            return Restored(covered, path, tuple(problems))
        return Restored(None, None, tuple(problems))

    def _write(self, name: str, sections: Sections, more: Mapping[str, Any], pace: _Pace) -> _Written:
        final = self.folder / f"{name}.penstock"
        draft = final.with_suffix(".tmp")
        try:
            with draft.open("wb") as out:
                digest = _write_file(out, sections, more, pace)
                size = out.tell()
                out.flush()
                os.fsync(out.fileno())
            draft.replace(final)
        finally:
            draft.unlink(missing_ok=True)
        return _Written(final.name, size, digest)

    def _tidy(self) -> None:
        """Older snapshots but one go, and then the parts that none of those left names."""
        for old in self.paths()[KEEP:]:
            old.unlink()
        needed = set()
        for path in self.paths():
            try:
                with path.open("rb") as file:
                    needed |= {part["file"] for part in _manifest(path, file)[0]["parts"]}
            except SnapshotCorrupt:
                continue  # the next start names it
        for part in self.folder.glob("part-*.penstock"):
            if part.name not in needed:
                part.unlink()
        self._whole = {key: whole for key, whole in self._whole.items() if whole.name in needed}

    def _set_aside(self, path: Path) -> None:
        """Out of the way of the next start, and kept for whoever looks into it; one such file at a time."""
        for older in self.folder.glob("*.corrupt"):
            older.unlink()
        path.replace(path.with_suffix(".corrupt"))


class _Pace:
    """Rests between pieces, so that a scan beside it keeps its processor time."""

    def __init__(self, bytes_per_s: float | None) -> None:
        self._per_s = bytes_per_s
        self._waiting = 0

    def wrote(self, count: int) -> None:
        self._waiting += count
        if self._per_s is not None and self._waiting >= PIECE:
            time.sleep(self._waiting / self._per_s)
            self._waiting = 0


# --- files -------------------------------------------------------------------------------------------------------


def _write_file(out: IO[bytes], sections: Sections, more: Mapping[str, Any], pace: _Pace) -> str:
    """SHA-256 of the manifest."""
    out.write(MAGIC)
    manifest = {**more, "sections": [_section(out, name, parts, pace) for name, parts in sections.items()]}
    text = json.dumps(manifest).encode()
    digest = hashlib.sha256(text)
    out.write(text + _TAIL.pack(len(text), digest.digest(), MAGIC))
    return digest.hexdigest()


def _section(out: IO[bytes], name: str, parts: Iterable[bytes], pace: _Pace) -> dict[str, Any]:
    digest, length = hashlib.sha256(), 0
    for part in parts:
        out.write(part)
        digest.update(part)
        length += len(part)
        pace.wrote(len(part))
    return {"name": name, "bytes": length, "sha256": digest.hexdigest()}


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read(path: Path, form: Format[X, K]) -> tuple[K, Covered]:
    """What a snapshot kept, and what it covers. Raises SnapshotCorrupt before anything of it is used."""
    kept, covered, _ = _read(path, form)
    return kept, covered


def _read(path: Path, form: Format[X, K]) -> tuple[K, Covered, dict[str, _Written]]:
    manifest, sections, _ = _checked(path)
    with ThreadPoolExecutor(READERS, "snapshot") as pool:
        found = pool.map(lambda part: _checked_part(path, part), manifest["parts"])
        parts = (
            ({**part["about"], **more}, pieces) for part, (more, pieces) in zip(manifest["parts"], found, strict=True)
        )
        try:
            kept = form.kept(manifest, sections, parts)
        except SnapshotCorrupt as error:
            raise SnapshotCorrupt(f"{path}: {error}") from error
    offsets = {int(partition): offset for partition, offset in manifest["offsets"].items()}
    whole = {
        part["file"].removeprefix("part-").removesuffix(".penstock"): _Written(
            part["file"], part["bytes"], part["manifest"]
        )
        for part in manifest["parts"]
    }
    return kept, Covered(offsets, manifest["log_id"]), whole


def _checked_part(snapshot: Path, part: dict[str, Any]) -> tuple[dict[str, Any], Pieces]:
    path = snapshot.with_name(part["file"])
    try:
        manifest, sections, digest = _checked(path)
    except FileNotFoundError as error:
        raise SnapshotCorrupt(f"{path.name}, which it needs, is not there") from error
    if digest != part["manifest"]:
        raise SnapshotCorrupt(f"{path.name} is not the one that it was written with")
    return manifest, sections


def _checked(path: Path) -> tuple[dict[str, Any], Pieces, str]:
    """The manifest, the sections, which lie in the file and are read when they are looked at, and the manifest's
    SHA-256. Raises SnapshotCorrupt."""
    with path.open("rb") as file:
        manifest, digest = _manifest(path, file)
        whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    sections, at = {}, len(MAGIC)
    for section in manifest["sections"]:
        data = whole[at : at + section["bytes"]]
        at += section["bytes"]
        if hashlib.sha256(data).hexdigest() != section["sha256"]:
            raise SnapshotCorrupt(f"{path}: section {section['name']} is not what was written")
        sections[section["name"]] = data
    return manifest, sections, digest


def _manifest(path: Path, file: IO[bytes]) -> tuple[dict[str, Any], str]:
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
    found = hashlib.sha256(text)
    if found.digest() != digest:
        raise SnapshotCorrupt(f"{path}: the manifest is not what was written")
    manifest: dict[str, Any] = json.loads(text)
    written = len(MAGIC) + sum(section["bytes"] for section in manifest["sections"]) + length + _TAIL.size
    if written != size:
        raise SnapshotCorrupt(f"{path}: {size} bytes, {written} were written")
    return manifest, found.hexdigest()
