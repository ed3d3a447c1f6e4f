"""The fast pass over rows: approximate scores of several queries, block by block, and what survives of them.

A block's rows become float32 once for all queries of a batch; the lexical part is the few columns of the sketch that
some query has a term in, put beside the dense values, so that one matrix product gives both. Of the scores only those
that may still be among a query's best are kept.

The bound on a score's distance from the exact one is the classical one for a dot product of length n in any order of
summation, |error| <= g(n) |x| |q| with g(n) = n u / (1 - n u) and u = 2^-24 (Higham, Accuracy and Stability of
Numerical Algorithms, section 3.1). A zero adds no error, so n counts the terms that a query has. Where torch multiplies
bfloat16 natively the query is rounded to it, and so is the score: 2^-9 each.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from penstock.retrieval.search.scan_exact import Doubles, Planes, Rows
from penstock.retrieval.store.planes import QueryPlanes

CHUNK = 2_048  # rows at a time: 3 MB of 384 float32 values, which stays in cache
_ALIGN = 16  # float32 values of a cache line
_SAFE = 1e37  # |q| |x| below it: no product and no partial sum leaves float32's range
_TINY = 1e-37  # what underflow can take from a term
_BF16_FASTER = 1.5  # times that bfloat16 must be faster than converting and float32

Floats = npt.NDArray[np.float32]


class Batch:
    """Queries that one pass answers together. Not thread-safe: it owns the buffers that the pass works in."""

    def __init__(self, queries: Sequence[QueryPlanes], native: bool | None = None) -> None:
        self.count = len(queries)
        self.width = len(queries[0].dense)
        self.terms = np.unique(np.concatenate([query.terms for query in queries]))
        self.columns = self.width + len(self.terms)
        padded = -(-max(self.columns, 1) // _ALIGN) * _ALIGN
        both = np.zeros((self.count, padded), np.float32)
        for line, query in zip(both, queries, strict=True):
            line[: self.width] = query.dense
            line[self.width + np.searchsorted(self.terms, query.terms)] = query.weights
        self.native = bfloat16_is_native(self.width, self.count) if native is None else native
        self._both = torch.from_numpy(both)
        self._rounded = self._both[:, : self.width].bfloat16()
        self._buffer = torch.zeros((CHUNK, padded))
        self._scores = torch.empty(self.count * CHUNK)
        sizes = [(_norm(query.dense), _norm(query.weights)) for query in queries]
        self.sizes = np.asarray(sizes).reshape(self.count, 2)  # |q| of either part
        added = self.width + np.asarray([len(query.terms) for query in queries])
        unit = (added + 5) * 2.0**-24  # one for the sum of the parts; room for the float64 roundings behind it
        bound = unit / (1 - unit)
        self.factors = self.sizes * bound[:, None] * (1 + 1e-9)  # of either norm of a row
        if torch.get_float32_matmul_precision() != "highest":
            self.factors += self.sizes * 2.0**-6  # somebody lets float32 products be rounded
        if self.native:
            self.factors *= 4  # products summed in pairs, by instructions that truncate
            self.factors[:, 0] += self.sizes[:, 0] * 2.0**-7
        self.floor = _TINY * added * (1 + self.sizes.sum(1))

    def slack(self, norms: Doubles) -> Doubles:
        """How far off any score can be of rows no greater than these norms (float64 [2]): float64 [queries]."""
        out: Doubles = self.factors @ norms + self.floor * (1 + norms.sum())
        return out

    def slack_of(self, query: int, norms: Doubles) -> Doubles:
        """How far off the scores of rows with norms float64 [m, 2] can be for one query: float64 [m]."""
        out: Doubles = norms @ self.factors[query] + self.floor[query] * (1 + norms.sum(1))
        return out

    def scores(self, page: Planes, rows: slice | Rows) -> torch.Tensor:
        """Approximate scores, float32 [queries, n], in a buffer that the next call overwrites.

        `rows` of the page, at most CHUNK. Infinite or NaN where a product left float32's range.
        """
        plane, sketch = page.dense, page.sketch
        dense = self.width if plane.shape[1] else 0
        places = None if isinstance(rows, slice) else torch.from_numpy(rows)
        found = plane[rows] if places is None else torch.index_select(plane, 0, places)
        count = len(found)
        out = self._scores[: self.count * count].view(self.count, count)
        buffer = self._buffer[:count]
        if len(self.terms) and sketch.shape[1]:
            stored = sketch.numpy()
            # numpy's: torch takes several times as long for columns.
            taken = (
                stored[rows].take(self.terms, axis=1) if isinstance(rows, slice) else stored[rows[:, None], self.terms]
            )
            buffer[:, self.width : self.columns] = torch.from_numpy(taken)
        else:
            buffer[:, self.width : self.columns] = 0
        if self.native and dense:
            torch.mm(self._both[:, self.width :], buffer[:, self.width :].T, out=out)
            out += torch.mm(self._rounded, found.T)
            return out
        if dense:
            buffer[:, : self.width].copy_(found)
        else:
            buffer[:, : self.width] = 0
        return torch.mm(self._both, buffer.T, out=out)

    def stays_finite(self, norms: Doubles) -> bool:
        """Whether no product with rows of at most these norms (float64 [2]) can leave float32's range."""
        return bool(((self.sizes @ norms) < _SAFE).all())


class Survivors:
    """What is left of one batch's scores: per query the rows that may be among its best, and a threshold.

    Invariant: a row that was offered and is not kept has an exact score below its query's threshold.
    """

    def __init__(self, batch: Batch, ks: Sequence[int]) -> None:
        self.batch = batch
        self.ks = tuple(ks)
        self.thresholds = np.full(batch.count, -np.inf)
        self.reached = np.full(batch.count, -np.inf)  # what the k best of the kept rows reach at least
        self._kept: list[Kept] = [Kept.none() for _ in ks]
        self._pending: list[tuple[npt.NDArray[np.int16], Rows, Floats, Doubles]] = []  # query, slot, score, norms
        self._count = 0
        self._limit = sum(8 * k + CHUNK for k in ks)

    def offer(
        self, page: Planes, rows: slice | Rows, passing: npt.NDArray[np.bool_] | None, norms: Doubles | None = None
    ) -> None:
        """Scores rows of a page (at most CHUNK) and keeps what may matter.

        passing bool [n] or [queries, n]: which rows count, all when None; norms float64 [2]: no row has greater ones.
        """
        if norms is None:
            norms = page.norms[rows].max(axis=0)
        scores = self.batch.scores(page, rows)
        if not self.batch.stays_finite(norms):
            scores[~torch.isfinite(scores)] = torch.inf  # says nothing: always rescored
        hit = torch.ge(scores, torch.from_numpy(self._least(norms))[:, None]).numpy()
        if passing is not None:
            np.logical_and(hit, passing, out=hit)
        found = np.flatnonzero(hit)
        if not len(found):
            return
        query, place = np.divmod(found, hit.shape[1])
        row = place + rows.start if isinstance(rows, slice) else rows[place]
        self._pending.append(
            (query.astype(np.int16), row + page.first, scores.view(-1).numpy()[found], page.norms[row])
        )
        self._count += len(found)
        if self._count > self._limit:
            self.tighten()

    def tighten(self) -> None:
        """Raises each threshold to what the k best of its rows reach at least, and drops the rows below."""
        if not self._pending:
            return
        query, slots, scores, norms = (np.concatenate(each) for each in zip(*self._pending, strict=True))
        self._pending.clear()
        self._count = 0
        order = np.argsort(query, kind="stable")
        ends = np.searchsorted(query[order], np.arange(1, self.batch.count + 1)).tolist()
        begin = 0
        for one, end in enumerate(ends):
            mine, begin = order[begin:end], end
            kept = self._kept[one]
            if len(mine):
                slack = self.batch.slack_of(one, norms[mine])
                score = scores[mine].astype(np.float64)
                lower = np.where(np.isinf(score), -np.inf, score - slack)
                kept = kept.joined(Kept(slots[mine], lower, score + slack))
            k = self.ks[one]
            if len(kept.slots) >= k:
                self.reached[one] = np.partition(kept.lower, len(kept.lower) - k)[len(kept.lower) - k]
                self.thresholds[one] = max(self.thresholds[one], self.reached[one])
            self._kept[one] = kept.above(self.thresholds[one])

    def superset(self, query: int) -> Rows | None:
        """Ascending slots among which the best k are; None when the threshold was set too high to tell."""
        self.tighten()
        proven = self.thresholds[query] <= self.reached[query] or np.isneginf(self.thresholds[query])
        return self._kept[query].slots if proven else None

    def _least(self, norms: Doubles) -> Floats:
        """The lowest score that a row of at most these norms (float64 [2]) may have and be kept: float32 [queries]."""
        with np.errstate(over="ignore"):  # beyond float32 it becomes infinite, and nextafter brings it back
            lowest = (self.thresholds - self.batch.slack(norms)).astype(np.float32)
        least: Floats = np.nextafter(lowest, np.float32(-np.inf))
        return least


@dataclass(frozen=True, slots=True)
class Kept:
    """Rows of one query with bounds on their exact scores: ascending int64 slots, float64 each."""

    slots: Rows
    lower: Doubles
    upper: Doubles

    @classmethod
    def none(cls) -> Kept:
        return cls(np.zeros(0, np.int64), np.zeros(0), np.zeros(0))

    def joined(self, other: Kept) -> Kept:
        return Kept(
            np.concatenate((self.slots, other.slots)),
            np.concatenate((self.lower, other.lower)),
            np.concatenate((self.upper, other.upper)),
        )

    def above(self, threshold: float) -> Kept:
        keep = self.upper >= threshold
        return Kept(self.slots[keep], self.lower[keep], self.upper[keep])


@functools.cache
def bfloat16_is_native(width: int, queries: int) -> bool:
    """Whether this machine multiplies bfloat16 faster than it converts and multiplies float32: timed, once a shape."""
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported() or width < _ALIGN:
        return False
    rows, query = torch.zeros((CHUNK, width), dtype=torch.bfloat16), torch.zeros((queries, width))
    rounded, buffer = query.bfloat16(), torch.empty((CHUNK, width))
    taken = [float("inf"), float("inf")]
    for _ in range(5):
        for which in (0, 1):
            begin = time.perf_counter()
            if which:
                torch.mm(rounded, rows.T)
            else:
                torch.mm(query, buffer.copy_(rows).T)
            taken[which] = min(taken[which], time.perf_counter() - begin)
    return taken[0] > _BF16_FASTER * taken[1]


def _norm(values: Floats) -> float:
    return float(np.linalg.norm(values.astype(np.float64)))
