"""Exact scores of (standing query, posting) pairs, bit for bit those of kernels/filtered_topk/reference.py.

The scheme is that of retrieval/search/scan_exact.py, a query a pair: each dense vector is taken apart on a grid so
coarse that every partial sum of the coarse parts' products is an integer which float64 holds; what is left is small,
and so is its rounding error, which is bounded. Where adding the error on either side rounds to the same float64, that
is the correctly rounded sum (Ziv's test); the few others go to `exact_dot`.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from penstock.kernels.filtered_topk.reference import exact_dot
from penstock.retrieval.percolate.batch import Group
from penstock.retrieval.percolate.blocks import Scored

RESCORE = 128  # pairs at a time: their float64 copies stay in cache
_BITS = 26  # of the postings' grid below their norm; a query's has what float64 has left
_WIDEST = 4_096  # values of a dense vector: past it rounding to the grid may add too much to a norm

Pairs = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]


class Exact:
    """Rescores pairs of one group of postings, which it takes apart once. Used by one thread."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._unit = math.frexp(group.norms[0])[1] - _BITS
        shift = math.ldexp(1.5, self._unit + 52)
        self._high = (group.whole + shift) - shift
        self._low = group.whole - self._high
        self._has_low = bool(self._low.any())
        self._low_norm = math.sqrt(max(group.whole.shape[1], 1)) * math.ldexp(0.5, self._unit) * self._has_low
        self._grids = _lowest(group.whole) - 8  # of each posting: its values are multiples of 2^grid

    def scores(self, scored: Scored, rows: Pairs, columns: Pairs) -> tuple[Doubles, Doubles]:
        """Both parts of the scores of pairs, float64 [m] each. A part that either side lacks scores 0."""
        by_dense, by_term = parts(scored, self._group)
        dense = np.zeros(len(rows))
        if by_dense:
            for begin in range(0, len(rows), RESCORE):
                some = slice(begin, begin + RESCORE)
                dense[some] = self._dense(scored, rows[some], columns[some])
        return dense, self._lexical(scored, rows, columns) if by_term else np.zeros(len(rows))

    def _dense(self, scored: Scored, rows: Pairs, columns: Pairs) -> Doubles:
        asked, norms = scored.dense.numpy().take(rows, axis=0), scored.norms[rows, 0]
        if asked.shape[1] > _WIDEST:
            return exact_dot(self._group.dense[torch.from_numpy(columns)], torch.from_numpy(asked)).numpy()
        whole, norm = asked.astype(np.float64), self._group.norms[0]
        # No partial sum reaches 2^53 of both grids' product: rounding adds less than 2^-19 to it.
        units = np.frexp(norm * norms * (1 + 2.0**-18))[1] - 53 - self._unit
        shifts = np.ldexp(1.5, units + 52)[:, None]
        coarse = whole + shifts
        coarse -= shifts
        rest_of_query = whole - coarse
        high = self._high.take(columns, axis=0)
        main = np.einsum("ij,ij->i", high, coarse)
        rest = np.einsum("ij,ij->i", high, rest_of_query)
        if self._has_low:
            rest += np.einsum("ij,ij->i", self._low[columns], whole)
        rest_norms = math.sqrt(asked.shape[1]) * np.ldexp(0.5, units)
        sizes = (norm + self._low_norm) * rest_norms + self._low_norm * norms  # of both sums behind `rest`, at most
        errors = 1.01 * (asked.shape[1] + 8) * 2.0**-53 * sizes
        out: Doubles = main + rest
        unsettled = np.flatnonzero((main + (rest - errors) != out) | (main + (rest + errors) != out))
        if len(unsettled):
            # Half way between two float64, most likely. Sums of few enough units have no error: the rounding was right.
            grids = self._grids[columns[unsettled]] + _lowest(whole[unsettled]) - 24
            unsettled = unsettled[sizes[unsettled] >= np.ldexp(1.0, np.minimum(grids + 52, 1_000))]
        if len(unsettled):
            theirs = self._group.dense[torch.from_numpy(columns[unsettled])]
            out[unsettled] = exact_dot(theirs, torch.from_numpy(asked[unsettled])).numpy()
        return out

    def _lexical(self, scored: Scored, rows: Pairs, columns: Pairs) -> Doubles:
        """Few terms, of weights so alike that float64 nearly always holds every sum."""
        begins = scored.starts.numpy()[rows].astype(np.int64)
        counts = scored.starts.numpy()[rows + 1] - begins
        out, having = np.zeros(len(rows)), np.flatnonzero(counts)
        if not len(having):
            return out
        begins, counts, columns = begins[having], counts[having], columns[having]
        ends = np.cumsum(counts)
        starts = ends - counts
        places = np.repeat(begins - starts, counts) + np.arange(ends[-1])
        weights = scored.weights.numpy()[places].astype(np.float64)
        values = self._group.sketch.numpy()[np.repeat(columns, counts), scored.terms.numpy()[places]]
        sums = np.add.reduceat(weights * values, starts)
        # Every weight is a multiple of 2^unit, and a sum below 2^53 of those has no rounding error in any order.
        units = np.minimum.reduceat(np.frexp(weights)[1], starts) - 24
        holds = 128.0 * np.add.reduceat(np.abs(weights), starts) < np.ldexp(1.0, units + 53)
        for pair in np.flatnonzero(~holds).tolist():
            some = slice(starts[pair], ends[pair])
            row = torch.from_numpy(np.ascontiguousarray(values[some]))[None]
            sums[pair] = exact_dot(row, torch.from_numpy(weights[some].astype(np.float32))).item()
        out[having] = sums
        return out


def _lowest(values: Doubles) -> npt.NDArray[np.int64]:
    """Of each row, the least exponent of a value that is not zero: int64 [m]."""
    exponents = np.where(values == 0, 2_000, np.frexp(values)[1])
    least: npt.NDArray[np.int64] = exponents.min(axis=1, initial=2_000).astype(np.int64)
    return least


def parts(scored: Scored, group: Group) -> tuple[bool, bool]:
    """Whether both sides have a dense part, and a lexical one."""
    if group.space is None:
        return False, False
    both_dense = bool(scored.space.dense and group.space.dense)
    return both_dense, bool(len(scored.terms) and group.space.sketch)
