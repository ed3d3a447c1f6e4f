"""The two planes of the vector store: dense bfloat16 [capacity, D] and sketch int8 [capacity, L], a row a slot.

Written by the store's one writer at slots that no reader can see. All vectors are of one space, which the first
vector decides; a vector of another space, or a malformed one, is not stored: the row stays findable by its
attributes, and the reason is the caller's to count. Once no row holds a vector the next one decides anew.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from penstock.retrieval.store.columns import grown
from penstock.retrieval.store.errors import SpaceMismatch
from penstock.schemas.errors import InvalidRecord
from penstock.schemas.events import QueryVector, Vector

DENSE, SKETCH = 1, 2  # bits of `held`: which planes a row has
REFUSED = 4  # … and that its update came with a vector that could not be stored

STAGE = 2_048  # rows gathered before they are written
_EXPONENT = 0x7F80  # of a bfloat16: all ones in infinities and NaN

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Space:
    """What may be compared: the space's name and the widths of its planes (a width of 0: not known yet)."""

    space_id: str
    dense: int
    sketch: int


@dataclass(frozen=True, slots=True)
class QueryPlanes:
    """A query's side: float32 [D], and the places and values of the lexical part that are not zero (int64, float32)."""

    dense: Floats
    terms: npt.NDArray[np.int64]
    weights: Floats


@dataclass(frozen=True, slots=True)
class Layout:
    """One consistent set of arrays: a reader takes `Planes.layout` once and works on what it got."""

    space: Space | None
    dense: torch.Tensor  # bfloat16 [capacity, D]
    sketch: torch.Tensor  # int8 [capacity, L]
    norms: npt.NDArray[np.float64]  # [capacity, 2]: Euclidean, of the dense and the sketch part, rounded up

    def query(self, vector: QueryVector) -> QueryPlanes | None:
        """The query's planes; None where no row has a vector. Raises SpaceMismatch or InvalidRecord."""
        parts = {"dense": query_floats("dense", vector.dense), "lexical": query_floats("lexical", vector.lexical)}
        space = self.space
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
    """Vectors by slot. The store's one writer calls everything but `layout`."""

    def __init__(self, capacity: int) -> None:
        self.layout = Layout(
            None,
            torch.zeros((capacity, 0), dtype=torch.bfloat16),
            torch.zeros((capacity, 0), dtype=torch.int8),
            np.zeros((capacity, 2)),
        )
        self.held = np.zeros(capacity, np.uint8)
        self._staged: tuple[list[tuple[int, bytes]], list[tuple[int, bytes]]] = ([], [])  # dense, sketch: (slot, row)
        self.rows = 0  # slots that hold a vector, dead ones that are not retired included

    @property
    def nbytes(self) -> int:
        layout = self.layout
        return layout.dense.nbytes + layout.sketch.nbytes + layout.norms.nbytes + self.held.nbytes

    def write(self, slot: int, vector: Vector) -> str | None:
        """Takes a vector for its empty slot, or says why it cannot be stored. `flush` before anybody may see it."""
        reason = self._refusal(vector)
        if reason is not None:
            self.held[slot] = REFUSED
            return reason
        self._admit(vector)
        if vector.dense:
            self._staged[0].append((slot, vector.dense))
            self.held[slot] |= DENSE
        if vector.sketch:
            self._staged[1].append((slot, vector.sketch))
            self.held[slot] |= SKETCH
        self.rows += 1
        if len(self._staged[0]) + len(self._staged[1]) >= STAGE:
            self.flush()
        return None

    def flush(self) -> None:
        """Puts what was taken since the last flush into the planes: many rows at once is several times faster."""
        layout = self.layout
        for part, (plane, stored) in enumerate(((layout.dense, np.int16), (layout.sketch, np.int8))):
            staged = self._staged[part]
            if not staged:
                continue
            slots = np.asarray([slot for slot, _ in staged])
            raw = np.frombuffer(bytearray().join(row for _, row in staged), np.dtype(stored).newbyteorder("<"))
            rows = torch.from_numpy(raw.astype(stored, copy=False).reshape(len(staged), -1)).view(plane.dtype)
            plane[torch.from_numpy(slots)] = rows
            layout.norms[slots, part] = np.linalg.norm(rows.double().numpy(), axis=1) * (1 + 1e-12)
            staged.clear()

    def forget(self) -> None:
        """Drops what was taken since the last flush: its batch has failed."""
        for staged in self._staged:
            staged.clear()

    def read(self, slot: int) -> tuple[bytes, bytes | None] | None:
        """(dense, sketch) as a Vector carries them; None for a row without."""
        held = self.held[slot]
        if not held & (DENSE | SKETCH):
            return None
        layout = self.layout
        dense = layout.dense[slot].view(torch.int16).numpy().astype("<i2").tobytes() if held & DENSE else b""
        return dense, layout.sketch[slot].numpy().tobytes() if held & SKETCH else None

    def clear(self, slot: int) -> None:
        """Empties the slot. Harmless on an empty one."""
        held, self.held[slot] = self.held[slot], 0
        if not held & (DENSE | SKETCH):
            return
        layout = self.layout
        layout.dense[slot] = 0
        layout.sketch[slot] = 0
        layout.norms[slot] = 0
        self.rows -= 1
        if self.rows == 0:
            self.layout = replace(layout, space=None)

    def grow(self, capacity: int) -> None:
        old = self.layout
        self.layout = Layout(
            old.space,
            _resized(old.dense, capacity, old.dense.shape[1]),
            _resized(old.sketch, capacity, old.sketch.shape[1]),
            grown(old.norms, capacity, 0),
        )
        self.held = grown(self.held, capacity, 0)

    def _refusal(self, vector: Vector) -> str | None:
        reason = vector_fault(vector)
        space = self.layout.space
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

    def _admit(self, vector: Vector) -> None:
        """Makes the planes as wide as this vector needs them; each width is decided once a space."""
        layout = self.layout
        space = layout.space or Space(vector.space_id, 0, 0)
        wanted = Space(space.space_id, space.dense or len(vector.dense) // 2, space.sketch or len(vector.sketch or b""))
        if wanted != layout.space:
            dense, sketch, capacity = layout.dense, layout.sketch, len(self.held)
            if dense.shape[1] != wanted.dense:
                dense = _resized(dense, capacity, wanted.dense)
            if sketch.shape[1] != wanted.sketch:
                sketch = _resized(sketch, capacity, wanted.sketch)
            self.layout = Layout(wanted, dense, sketch, layout.norms)


def vector_fault(vector: Vector) -> str | None:
    """Why nothing can be compared with this vector; None when all is well."""
    if len(vector.dense) % 2:
        return f"dense: {len(vector.dense)} bytes, expected two a value"
    if not vector.dense and not vector.sketch:
        return "neither plane has a value"
    if (np.frombuffer(vector.dense, "<u2") & _EXPONENT == _EXPONENT).any():
        return "dense: a value that is not finite"
    return None


def _resized(plane: torch.Tensor, capacity: int, width: int) -> torch.Tensor:
    """A copy of the plane with that many places and values a row; rows of another width hold nothing to copy."""
    out = torch.zeros((capacity, width), dtype=plane.dtype)
    if width == plane.shape[1]:
        out[: len(plane)] = plane
    return out


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
