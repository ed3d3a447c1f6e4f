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

RESCORE = 128  # rows at a time: their float64 copy (393 KB of 384 values) stays in cache
FEW = 32  # rows up to which math.fsum is quicker than additions of whole columns
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
    by_dense = query.dense.any()
    by_term = _Lexical(query) if len(query.terms) else None
    rows_of_dense = torch.zeros((len(slots) if by_dense else 0, len(query.dense)), dtype=torch.bfloat16)
    norm = 0.0
    for page, where, rows in by_page(pages, slots):
        if by_dense and page.dense.shape[1]:
            torch.index_select(page.dense, 0, torch.from_numpy(rows), out=rows_of_dense[where])
            norm = max(norm, float(page.norms[rows, 0].max()))
        if by_term is not None and page.sketch.shape[1]:
            lexical[where] = by_term.scores(page.sketch, rows)
    if norm:
        dense = _Dense(query.dense, norm).scores(rows_of_dense)
    return dense, lexical


class _Dense:
    """The dense part of one query, for rows of which none has a greater norm."""

    def __init__(self, query: npt.NDArray[np.float32], norm: float) -> None:
        self.query = torch.from_numpy(query)
        self.whole = self.query.double()
        query_norm = float(torch.linalg.vector_norm(self.whole)) * (1 + 1e-12)
        # Of either grid; no partial sum reaches 2^53 of their product. Rounding adds less than 2^-20 to either norm.
        self.unit = math.frexp(norm)[1] - _BITS
        query_unit = math.frexp(norm * query_norm * (1 + 2.0**-18))[1] - 53 - self.unit
        self.coarse = _rounded(self.whole, query_unit)
        self.rest = self.whole - self.coarse
        rest_norm = float(torch.linalg.vector_norm(self.rest)) * (1 + 1e-12)
        low_norm = math.sqrt(len(query)) * math.ldexp(0.5, self.unit)
        gamma = (len(query) + 8) * 2.0**-53
        self.error = 1.01 * gamma * ((norm + low_norm) * rest_norm + low_norm * query_norm)
        # A bfloat16 has eight bits: from this magnitude on it lies on the rows' grid. As its bits without the sign.
        lowest = torch.tensor(math.ldexp(1.0, self.unit + 7), dtype=torch.float64).bfloat16()
        self.on_grid = np.uint16(max(int(lowest.view(torch.int16)), 1))

    def scores(self, found: torch.Tensor) -> Doubles:
        """float64 [m] of bfloat16 [m, D]."""
        out = np.empty(len(found))
        for start in range(0, len(found), RESCORE):
            some = found[start : start + RESCORE]
            magnitudes = some.view(torch.int16).numpy().view(np.uint16) << 1
            # Less one, so that zero, which lies on every grid, is the greatest.
            low = np.flatnonzero((magnitudes - np.uint16(1)).min(axis=1) < (self.on_grid << 1) - np.uint16(1))
            wide = some.double()
            main, rest = torch.mv(wide, self.coarse).numpy(), torch.mv(wide, self.rest).numpy()
            if len(low):
                picked = wide[torch.from_numpy(low)]
                high = _rounded(picked, self.unit)
                picked.sub_(high)
                main[low] = torch.mv(high, self.coarse).numpy()
                rest[low] = torch.mv(high, self.rest).add_(torch.mv(picked, self.whole)).numpy()
            score = main + rest
            out[start : start + len(some)] = score
            unsettled = np.flatnonzero((main + (rest - self.error) != score) | (main + (rest + self.error) != score))
            if len(unsettled):
                out[start + unsettled] = self._settled(some[torch.from_numpy(unsettled)])
        return out

    def _settled(self, found: torch.Tensor) -> Doubles:
        """Of rows that arithmetic on two grids cannot decide."""
        if len(found) > FEW:
            decided: Doubles = exact_dot(found, self.query).numpy()
            return decided
        return np.asarray([math.fsum(products) for products in (found.double() * self.whole).tolist()])


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
