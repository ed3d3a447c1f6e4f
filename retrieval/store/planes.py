"""The two planes of the vectors, inside the pages: dense bfloat16 [R, D] and sketch int8 [R, L], a row a slot.

Written by the store's one writer at slots that no reader can see. All vectors are of one space, which the first
vector decides; a vector of another space, or a malformed one, is not stored: the row stays findable by its
attributes, and the reason is the caller's to count. Once no row holds a vector the next one decides anew.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from penstock.retrieval.store.errors import SpaceMismatch
from penstock.retrieval.store.page import Longs, Page
from penstock.retrieval.store.pages import Pages, Space
from penstock.schemas.errors import InvalidRecord
from penstock.schemas.events import QueryVector, Vector

__all__ = [
    "DENSE",
    "REFUSED",
    "SKETCH",
    "Planes",
    "QueryPlanes",
    "Space",
    "query_floats",
    "query_planes",
    "read",
    "vector_fault",
]

DENSE, SKETCH = 1, 2  # bits of `held`: which planes a row has
REFUSED = 4  # … and that its update came with a vector that could not be stored
_EITHER = np.uint8(DENSE | SKETCH)

STAGE = 2_048  # vectors that may wait to be written
_EXPONENT = 0x7F80  # of a bfloat16: all ones in infinities and NaN

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class QueryPlanes:
    """A query's side: float32 [D], and the places and values of the lexical part that are not zero (int64, float32)."""

    dense: Floats
    terms: npt.NDArray[np.int64]
    weights: Floats


def query_planes(vector: QueryVector, space: Space | None) -> QueryPlanes | None:
    """The query's planes; None where no row has a vector. Raises SpaceMismatch or InvalidRecord."""
    parts = {"dense": query_floats("dense", vector.dense), "lexical": query_floats("lexical", vector.lexical)}
    if space is None:
        return None
    if vector.space_id != space.space_id:
        raise SpaceMismatch(vector.space_id, space.space_id)
    for name, width in (("dense", space.dense), ("lexical", space.sketch)):
        if width and len(parts[name]) not in (0, width):
            raise InvalidRecord(f"vector.{name}", f"{len(parts[name])} values", f"{width}, as the stored rows have")
    dense = parts["dense"] if len(parts["dense"]) == space.dense else np.zeros(space.dense, np.float32)
    lexical = parts["lexical"] if space.sketch else np.zeros(0, np.float32)
    terms = np.flatnonzero(lexical)
    return QueryPlanes(dense, terms, lexical[terms])


class Planes:
    """Puts vectors into pages. Only the store's one writer calls it."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        # dense, sketch: by number of a page, (row, its bytes)
        self._staged: tuple[dict[int, list[tuple[int, bytes]]], ...] = (defaultdict(list), defaultdict(list))
        self.waiting = 0  # vectors taken since the last flush
        self.rows = 0  # slots that hold a vector, dead ones that are not retired included

    def refusal(self, vector: Vector) -> str | None:
        """Why this vector cannot be stored; None when it can."""
        reason = vector_fault(vector)
        space = self._pages.table.space
        if reason is not None or space is None:
            return reason
        dense, sketch = len(vector.dense) // 2, len(vector.sketch or b"")
        if vector.space_id != space.space_id:
            return f"space {vector.space_id!r}, the store holds {space.space_id!r}"
        if dense and space.dense and dense != space.dense:
            return f"dense: {dense} values, the store's rows have {space.dense}"
        if sketch and space.sketch and sketch != space.sketch:
            return f"sketch: {sketch} values, the store's rows have {space.sketch}"
        return None

    def wanted(self, vector: Vector) -> Space:
        """The store's space once it holds this vector too: each width is decided once a space."""
        space = self._pages.table.space or Space(vector.space_id, 0, 0)
        return Space(space.space_id, space.dense or len(vector.dense) // 2, space.sketch or len(vector.sketch or b""))

    def take(self, page: int, row: int, vector: Vector) -> int:
        """Takes a vector of the store's space for an empty row of a page (its number): what the row then holds.

        `flush` before anybody may see it.
        """
        held = 0
        for part, (values, bit) in enumerate(((vector.dense, DENSE), (vector.sketch, SKETCH))):
            if values:
                self._staged[part][page].append((row, values))
                held |= bit
        self.rows += 1
        self.waiting += 1
        return held

    def flush(self) -> None:
        """Puts what was taken since the last flush into the planes: many rows at once is several times faster."""
        pages = self._pages.table.pages
        for part, (staged, stored) in enumerate(zip(self._staged, (np.int16, np.int8), strict=True)):
            for number, taken in staged.items():
                page = pages[number]
                plane = page.sketch if part else page.dense
                rows = np.asarray([row for row, _ in taken])
                raw = np.frombuffer(bytearray().join(values for _, values in taken), np.dtype(stored).newbyteorder("<"))
                values = torch.from_numpy(raw.astype(stored, copy=False).reshape(len(taken), -1)).view(plane.dtype)
                plane[torch.from_numpy(rows)] = values
                page.norms[rows, part] = np.linalg.norm(values.double().numpy(), axis=1) * (1 + 1e-12)
        self.forget()

    def forget(self) -> None:
        """Drops what was taken since the last flush: it has been written, or its batch has failed."""
        for staged in self._staged:
            staged.clear()
        self.waiting = 0

    def clear(self, page: Page, rows: Longs) -> None:
        """Empties these rows. Harmless on empty ones."""
        filled = rows[page.held[rows] & _EITHER > 0]
        page.held[rows] = 0
        if not len(filled):
            return
        places = torch.from_numpy(filled)
        page.dense[places] = 0
        page.sketch[places] = 0
        page.norms[filled] = 0
        self.rows -= len(filled)
        self.settle()

    def settle(self) -> None:
        """Once no row holds a vector the next one decides the space."""
        if self.rows == 0 and self._pages.table.space is not None:
            self._pages.adopt(None)


def read(page: Page, row: int) -> tuple[bytes, bytes | None] | None:
    """(dense, sketch) of a row as a Vector carries them; None for a row without."""
    held = page.held[row]
    if not held & _EITHER:
        return None
    dense = page.dense[row].view(torch.int16).numpy().astype("<i2").tobytes() if held & DENSE else b""
    return dense, page.sketch[row].numpy().tobytes() if held & SKETCH else None


def vector_fault(vector: Vector) -> str | None:
    """Why nothing can be compared with this vector; None when all is well."""
    if len(vector.dense) % 2:
        return f"dense: {len(vector.dense)} bytes, expected two a value"
    if not vector.dense and not vector.sketch:
        return "neither plane has a value"
    if len(vector.dense) and (np.frombuffer(vector.dense, "<u2") & _EXPONENT).max() == _EXPONENT:
        return "dense: a value that is not finite"
    return None


def query_floats(name: str, raw: bytes | None) -> Floats:
    """A part of a QueryVector as float32; of none, no values. Raises InvalidRecord naming `vector.<name>`."""
    if raw is None:
        return np.zeros(0, np.float32)
    if len(raw) % 4:
        raise InvalidRecord(f"vector.{name}", f"{len(raw)} bytes", "float32 values, four bytes each")
    floats = np.frombuffer(raw, "<f4").astype(np.float32)
    if not np.isfinite(floats).all():
        raise InvalidRecord(f"vector.{name}", "a value that is not finite", "finite float32 values")
    return floats
