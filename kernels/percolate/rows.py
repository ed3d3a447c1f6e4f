"""A standing query as a device holds it: one record of bytes, and how far off a score from it can be.

    dense   bfloat16 [width]: the query's values rounded, zeros behind the last
    words   int32 [terms]: of its lexical part the greatest weights, each a term (low 16 bits) and a weight rounded to
            bfloat16 (high 16 bits: with the low ones cleared they are the weight as float32)
    least   float32: the threshold, lowered by what float32 costs
    errors  float32 [2]: how far off either part of a score may be, dense and lexical, for a posting of norm 1

One record and not an array a value: the queries that pass are gathered from all over, and a record is whole sectors of
device memory, all of which are used.

The bound. A query q is stored as q', |q'_i - q_i| <= 2^-9 |q_i|, so for a posting p

    |sum of q' p as tensor cores add it - q . p| <= (2^-9 + g (1 + 2^-9)) |q| |p|

by Cauchy and Schwarz, where g bounds the accumulation: 4 n u / (1 - n u) with u = 2^-24, as in
retrieval/search/scan_first.py (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1; four times, since
tensor cores align a few products and truncate: Fasi, Higham, Mikaitis and Pranesh, Numerical behavior of NVIDIA tensor
cores, 2021). The lexical part is bounded likewise; terms that a record has no word for add their norm to the error.
A query that is outside of bfloat16's range has an infinite error: its pairs are always found.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

ALIGN = 32  # bytes: a sector of device memory
MOST_SKETCH = 1 << 16  # terms that a word can name

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class RowLayout:
    """`width`: bfloat16 values, 0, 16, 32, 64 or a multiple of 128; `terms`: words of the lexical part."""

    width: int
    terms: int

    def __post_init__(self) -> None:
        if self.width not in (0, 16, 32, 64) and (self.width < 0 or self.width % 128):
            raise ValueError(f"records of {self.width} dense values: expected 0, 16, 32, 64 or a multiple of 128")
        if self.terms < 0:
            raise ValueError(f"records of {self.terms} terms: expected 0 or more")

    @property
    def words_at(self) -> int:
        """Where the words begin, in bytes."""
        return 2 * self.width

    @property
    def bounds_at(self) -> int:
        """Where `least` and `errors` begin, in bytes."""
        return self.words_at + 4 * self.terms

    @property
    def stride(self) -> int:
        """Bytes of a record."""
        return -(-(self.bounds_at + 12) // ALIGN) * ALIGN


def padded(width: int) -> int:
    """How many values a record has for vectors of `width`."""
    if width <= 64:
        return width and max(16, 1 << (width - 1).bit_length())
    return -(-width // 128) * 128


@dataclass(frozen=True, slots=True)
class Queries:
    """Standing queries of one space on the host, n of them, as a caller has them."""

    dense: torch.Tensor  # float32 [n, D]
    starts: npt.NDArray[np.int64]  # [n + 1]: where each query's terms begin
    terms: npt.NDArray[np.int64]  # [t]
    weights: Floats  # [t]
    norms: Doubles  # [n, 2]: Euclidean, of the dense and the lexical part, rounded up
    thresholds: Doubles  # [n]; -inf: found whatever the score

    def __len__(self) -> int:
        return len(self.thresholds)


def encoded(layout: RowLayout, queries: Queries) -> torch.Tensor:
    """The records of these queries: uint8 [n, stride]."""
    count, width = len(queries), queries.dense.shape[1]
    if width > layout.width:
        raise ValueError(f"queries of {width} values for records of {layout.width}")
    out = torch.zeros((count, layout.stride), dtype=torch.uint8)
    rounded = torch.zeros((count, layout.width), dtype=torch.bfloat16)
    rounded[:, :width] = queries.dense.to(torch.bfloat16)
    out[:, : layout.words_at] = rounded.view(torch.uint8) if layout.width else out[:, :0]
    words, rest, whole = _words(layout.terms, queries)
    out[:, layout.words_at : layout.bounds_at] = (
        torch.from_numpy(words).view(torch.uint8) if layout.terms else out[:, :0]
    )
    whole &= torch.isfinite(rounded).all(dim=1).numpy()
    bounds = np.empty((count, 3), np.float32)
    bounds[:, 0] = lowered(queries.thresholds)
    bounds[:, 1:] = errors(width, layout.terms, queries.norms, rest)
    bounds[~whole, 1:] = np.inf
    out[:, layout.bounds_at : layout.bounds_at + 12] = torch.from_numpy(bounds).view(torch.uint8)
    return out


def lowered(thresholds: Doubles) -> Floats:
    """The thresholds in float32, so much lower that `least - slack` in float32 is not above the real difference."""
    with np.errstate(over="ignore"):  # beyond float32 it becomes infinite, and nextafter brings it back
        low = (thresholds - np.where(np.isfinite(thresholds), np.abs(thresholds), 0) * 2.0**-22).astype(np.float32)
    out: Floats = np.nextafter(low, np.float32(-np.inf))
    return out


def errors(width: int, terms: int, norms: Doubles, rest: Doubles) -> Floats:
    """float32 [n, 2] for vectors of `width` values and `terms` words a record. rest [n]: norms of the terms left out.

    Room of 2^-20 for the float32 arithmetic behind it, and of 2^-125 a value for what is flushed to zero.
    """
    unit = (width + terms + 5) * 2.0**-24
    share = 2.0**-9 + 4 * unit / (1 - unit) * (1 + 2.0**-9)
    out = norms * share
    out[:, 1] += rest
    out = out * (1 + 2.0**-20) + np.sqrt([max(width, 1), max(terms, 1)]) * 2.0**-125
    with np.errstate(over="ignore"):
        return np.nextafter(out.astype(np.float32), np.float32(np.inf))


def floor(width: int, terms: int) -> float:
    """What underflow in float32 can take from a score, whatever the norms."""
    return (width + terms + 1) * 1e-37


def _words(most: int, queries: Queries) -> tuple[npt.NDArray[np.int32], Doubles, npt.NDArray[np.bool_]]:
    """The words int32 [n, most], the norms [n] of the terms that no word was left for, and whose weights are finite."""
    count = len(queries)
    counts = np.diff(queries.starts)
    owner = np.repeat(np.arange(count), counts)
    if len(queries.terms) and int(queries.terms.max()) >= MOST_SKETCH:
        raise ValueError(f"term {int(queries.terms.max())} of a query: expected terms below {MOST_SKETCH}")
    # The greatest weights of each query first.
    order = np.lexsort((-np.abs(queries.weights), owner))
    place = np.arange(len(order)) - np.repeat(queries.starts[:-1] - queries.starts[0], counts)
    weights, terms = queries.weights[order], queries.terms[order]
    fits = place < most
    rest = np.zeros(count)
    np.add.at(rest, owner[~fits], weights[~fits].astype(np.float64) ** 2)
    out = np.zeros((count, most), np.int32)
    kept = torch.from_numpy(weights[fits]).to(torch.bfloat16)
    halves = kept.view(torch.int16).numpy().astype(np.int32) << 16
    out[owner[fits], place[fits]] = halves | terms[fits].astype(np.int32)
    whole = np.ones(count, np.bool_)
    whole[owner[fits][~torch.isfinite(kept).numpy()]] = False
    return out, np.sqrt(rest) * (1 + 1e-12), whole
