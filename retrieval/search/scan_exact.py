"""Exact scores of a few rows, bit for bit those of kernels/filtered_topk/reference.py, several times faster.

A dense product is taken apart on two grids, x = h + l and q = H + L, so coarse that every partial sum of h . H is an
integer that float64 holds (26 bits below each Euclidean norm: Cauchy and Schwarz bound all sums by 2^52 units). What is
left, h . L + l . q, is small, and so is its rounding error, which is bounded. Where adding the error on either side
rounds to the same float64, that is the correctly rounded sum (Ziv's test); the few others go to `exact_dot`.

The scheme is Ozaki's (Ozaki, Ogita, Oishi, Rump, Error-free transformations of matrix multiplication, 2012), one level.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from penstock.kernels.filtered_topk.reference import exact_dot
from penstock.retrieval.store.planes import QueryPlanes

RESCORE = 128  # rows at a time: their float64 copies (2 x 393 KB of 384 values) stay in cache
_BITS = 26  # of the rows' grid below their norm; the query's has what float64 has left

Rows = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]


class Planes(Protocol):
    """What a scan reads of a page (retrieval/store/page.py)."""

    @property
    def first(self) -> int: ...
    @property
    def rows(self) -> int: ...
    @property
    def dense(self) -> torch.Tensor: ...  # bfloat16 [rows, D]
    @property
    def sketch(self) -> torch.Tensor: ...  # int8 [rows, L]
    @property
    def norms(self) -> Doubles: ...  # [rows, 2]
    @property
    def ties(self) -> npt.NDArray[np.uint64]: ...  # [rows]


def by_page(pages: Sequence[Planes], slots: Rows) -> Iterator[tuple[Planes, slice, Rows]]:
    """Of ascending slots: the page, where in `slots` its own are, and their rows of the page."""
    ends = np.searchsorted(slots, [page.first + page.rows for page in pages])
    begin = 0
    for page, end in zip(pages, ends.tolist(), strict=True):
        if end > begin:
            yield page, slice(begin, end), slots[begin:end] - page.first
        begin = end


def exact(pages: Sequence[Planes], slots: Rows, query: QueryPlanes) -> tuple[Doubles, Doubles]:
    """Both parts of the exact scores of ascending `slots`, float64 [m] each. A part that a row lacks scores 0."""
    dense, lexical = np.zeros(len(slots)), np.zeros(len(slots))
    by_dense = _Dense(query.dense) if query.dense.any() else None
    by_term = _Lexical(query) if len(query.terms) else None
    for page, where, rows in by_page(pages, slots):
        if by_dense is not None and page.dense.shape[1]:
            norms = page.norms[rows, 0]
            some = np.flatnonzero(norms)
            if len(some):
                dense[where.start + some] = by_dense.scores(page.dense, float(norms.max()), rows[some])
        if by_term is not None and page.sketch.shape[1]:
            lexical[where] = by_term.scores(page.sketch, rows)
    return dense, lexical


class _Dense:
    """The dense part of one query."""

    def __init__(self, query: npt.NDArray[np.float32]) -> None:
        self.query = torch.from_numpy(query)
        self.whole = self.query.double()
        self.norm = float(torch.linalg.vector_norm(self.whole)) * (1 + 1e-12)

    def scores(self, plane: torch.Tensor, norm: float, rows: Rows) -> Doubles:
        """float64 [m]; `norm`: no row's is greater."""
        # Of either grid; no partial sum reaches 2^53 of their product. Rounding adds less than 2^-20 to either norm.
        unit = math.frexp(norm)[1] - _BITS
        query_unit = math.frexp(norm * self.norm * (1 + 2.0**-18))[1] - 53 - unit
        coarse = _rounded(self.whole, query_unit)
        rest_of_query = self.whole - coarse
        rest_norm = float(torch.linalg.vector_norm(rest_of_query)) * (1 + 1e-12)
        low_norm = math.sqrt(len(self.query)) * math.ldexp(0.5, unit)
        gamma = (len(self.query) + 8) * 2.0**-53
        error = 1.01 * gamma * ((norm + low_norm) * rest_norm + low_norm * self.norm)
        out = np.empty(len(rows))
        places = torch.from_numpy(rows)
        for start in range(0, len(rows), RESCORE):
            some = slice(start, start + RESCORE)
            found = torch.index_select(plane, 0, places[some])
            low = found.double()
            high = _rounded(low, unit)
            low.sub_(high)
            main = torch.mv(high, coarse).numpy()
            rest = torch.mv(high, rest_of_query).add_(torch.mv(low, self.whole)).numpy()
            score = main + rest
            out[some] = score
            unsettled = np.flatnonzero((main + (rest - error) != score) | (main + (rest + error) != score))
            if len(unsettled):
                out[start + unsettled] = exact_dot(found[torch.from_numpy(unsettled)], self.query).numpy()
        return out


class _Lexical:
    """The lexical part of one query: few terms, of weights so alike that float64 nearly always holds every sum."""

    def __init__(self, query: QueryPlanes) -> None:
        self.terms, self.weights = query.terms, query.weights
        self.whole = query.weights.astype(np.float64)
        unit = int(np.frexp(self.whole)[1].min()) - 24  # every weight is a multiple of 2^unit
        self.holds = 128.0 * float(np.abs(self.whole).sum()) < math.ldexp(1.0, unit + 53)

    def scores(self, plane: torch.Tensor, rows: Rows) -> Doubles:
        found = plane.numpy()[rows[:, None], self.terms]
        if self.holds:
            sums: Doubles = found.astype(np.float64) @ self.whole
            return sums
        out = np.empty(len(rows))
        for start in range(0, len(rows), RESCORE):
            some = slice(start, start + RESCORE)
            out[some] = exact_dot(torch.from_numpy(found[some]), torch.from_numpy(self.weights)).numpy()
        return out


def _rounded(values: torch.Tensor, unit: int) -> torch.Tensor:
    """To multiples of 2^unit: float64 of magnitude below 2^(unit + 51)."""
    shift = math.ldexp(1.5, unit + 52)
    return (values + shift).sub_(shift)
