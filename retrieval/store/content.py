"""What a store holds as one number: a sum of hashes of its rows, so that it can follow every change, and two stores
with the same content have the same number wherever their rows lie.

A row's hash is of its id's hash, version, revision and vector: multilinear over the vector's 64-bit words with odd
keys (Carter and Wegman 1979), then mixed so that no two rows' parts can be swapped (the finaliser of splitmix64,
Steele, Lea and Flood 2014). It tells apart by accident what differs, with a chance of about 2^-64 to miss it; it is
no protection against somebody who wants two stores to look alike.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
import torch

from penstock.retrieval.store.page import Longs, Page

Hashes = npt.NDArray[np.uint64]

ROWS = 512  # hashed at a time


def row_hashes(page: Page, rows: Longs) -> Hashes:
    """uint64 [m], of rows of a page (int64)."""
    out = np.empty(len(rows), np.uint64)
    dense, sketch = page.dense.view(torch.int16).numpy(), page.sketch.numpy()
    for start in range(0, len(rows), ROWS):
        some = rows[start : start + ROWS]
        value = _mix(page.ties[some])
        value = _mix(value ^ page.version[some].view(np.uint64))
        value = _mix(value ^ page.revision[some].view(np.uint64))
        for part, plane in enumerate((dense, sketch)):
            # Zeros add nothing: a row without a plane is one whose plane is zeros, as it is to every search.
            value = _mix(value + _linear(plane[some], part))
        out[start : start + ROWS] = value
    return out


def total(hashes: Hashes) -> int:
    """Their sum, modulo 2**64."""
    return int(hashes.sum(dtype=np.uint64))


def _linear(rows: npt.NDArray[np.int16] | npt.NDArray[np.int8], part: int) -> Hashes:
    raw = np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), -1)
    missing = -raw.shape[1] % 8
    if missing:
        raw = np.concatenate([raw, np.zeros((len(rows), missing), np.uint8)], axis=1)
    words = raw.view(np.uint64)
    out: Hashes = (words * _keys(words.shape[1], part)).sum(1, dtype=np.uint64)
    return out


@cache
def _keys(count: int, part: int) -> Hashes:
    places = np.arange(1, count + 1, dtype=np.uint64) + np.uint64(part << 32)
    return _mix(places * np.uint64(0x9E3779B97F4A7C15)) | np.uint64(1)


def _mix(value: Hashes) -> Hashes:
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
