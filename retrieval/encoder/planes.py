"""The two planes of a row as bytes: bfloat16 for the dense part, int8 for the sketch.

numpy has no bfloat16: it is the upper half of a float32, rounded to nearest, ties to even.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def to_bfloat16(values: Floats) -> npt.NDArray[np.uint16]:
    """float32 [...] to the bits of the nearest bfloat16 [...], ties to even. NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = ((bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    quiet = ((bits >> 16) | 0x0040).astype(np.uint16)  # rounding could carry a NaN's payload into infinity
    return np.where(np.isnan(values), quiet, rounded)


def from_bfloat16(bits: npt.NDArray[np.uint16]) -> Floats:
    """Bits of bfloat16 [...] to float32 [...], exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def dense_bytes(row: Floats) -> bytes:
    """A unit vector, float32 [D], as bfloat16 little endian."""
    return to_bfloat16(row).astype("<u2").tobytes()


def dense_floats(raw: bytes) -> Floats:
    """The other way: bfloat16 little endian to float32 [D]."""
    return from_bfloat16(np.frombuffer(raw, dtype="<u2"))


def float_bytes(row: Floats) -> bytes:
    """float32 [...] little endian, as queries carry it."""
    return np.ascontiguousarray(row, dtype="<f4").tobytes()


def to_int8(values: Floats) -> npt.NDArray[np.int8]:
    """Rounded to the nearest integer and clipped to [-127, 127]: nothing ever wraps around."""
    return np.clip(np.rint(values), -127, 127).astype(np.int8)


def normalised(rows: Floats) -> Floats:
    """Rows of unit length, float32 [n, D]. A zero row stays zero."""
    norms = np.linalg.norm(rows, axis=-1, keepdims=True)
    unit: Floats = (rows / np.maximum(norms, 1e-12)).astype(np.float32)
    return unit
