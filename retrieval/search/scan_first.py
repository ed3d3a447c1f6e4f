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
import math
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from penstock.retrieval.search.scan_exact import Doubles, Planes, Rows, by_page
from penstock.retrieval.store.planes import QueryPlanes

CHUNK = 2_048  # rows at a time: 3 MB of 384 float32 values, which stays in cache
_ALIGN = 16  # float32 values of a cache line
_SAFE = 1e37  # |q| |x| below it: no product and no partial sum leaves float32's range
_TINY = 1e-37  # what underflow can take from a term
_BF16_FASTER = 1.5  # times that bfloat16 must be faster than converting and float32

Floats = npt.NDArray[np.float32]

R = TypeVar("R")

_rooms = threading.local()


def off_by(terms: npt.NDArray[np.int64]) -> Doubles:
    """How far off a float32 dot product of so many terms, added in any order, can be, over the norms' product."""
    unit = (terms + 5) * 2.0**-24  # one for the sum of two parts; room for the float64 roundings behind it
    bound: Doubles = unit / (1 - unit)
    if torch.get_float32_matmul_precision() != "highest":
        bound += 2.0**-6  # somebody lets float32 products be rounded
    return bound


class Batch:
    """Queries that one pass answers together. Immutable: threads share it."""

    def __init__(self, queries: Sequence[QueryPlanes], native: bool | None = None) -> None:
        self.count = len(queries)
        self.width = len(queries[0].dense)
        terms = [query.terms for query in queries]
        self.terms = np.unique(np.concatenate(terms)) if self.count > 1 else terms[0]
        self.columns = self.width + len(self.terms)
        self.padded = -(-max(self.columns, 1) // _ALIGN) * _ALIGN
        both = np.zeros((self.count, self.padded), np.float32)
        for line, query in zip(both, queries, strict=True):
            line[: self.width] = query.dense
            line[self.width + np.searchsorted(self.terms, query.terms)] = query.weights
        self.native = bfloat16_is_native(self.width, self.count) if native is None else native
        self.both = torch.from_numpy(both)
        self.rounded = self.both[:, : self.width].bfloat16()
        sizes = [(_norm(query.dense), _norm(query.weights)) for query in queries]
        self.sizes = np.asarray(sizes).reshape(self.count, 2)  # |q| of either part
        added = self.width + np.asarray([len(query.terms) for query in queries])
        self.factors = self.sizes * off_by(added)[:, None] * (1 + 1e-9)  # of either norm of a row
        if self.native:
            self.factors *= 4  # products summed in pairs, by instructions that truncate
            self.factors[:, 0] += self.sizes[:, 0] * 2.0**-7
        self.floor = _TINY * added * (1 + self.sizes.sum(1))

    def bounds(self, norms: Doubles) -> Bounds:
        """Of rows no greater than norms float64 [n, 2], each line for itself."""
        slack = norms @ self.factors.T + self.floor * (1 + norms.sum(axis=1, keepdims=True))
        return Bounds(slack, ((norms @ self.sizes.T) < _SAFE).all(axis=1).tolist())


@dataclass(frozen=True, slots=True)
class Bounds:
    """How far off the scores of some chunks of rows can be."""

    slack: Doubles  # [chunks, queries]
    finite: list[bool]  # whether no product of a chunk can leave float32's range

    def least(self, thresholds: Doubles) -> torch.Tensor:
        """The lowest score that a row of each chunk may have and be kept: float32 [chunks, queries, 1]."""
        with np.errstate(over="ignore"):  # beyond float32 it becomes infinite, and nextafter brings it back
            lowest = (thresholds - self.slack).astype(np.float32)
        return torch.from_numpy(np.nextafter(lowest, np.float32(-np.inf)))[:, :, None]


class Scorer:
    """Scores rows for a batch, in its thread's room: one scorer a thread at a time, and its scores until the next."""

    def __init__(self, batch: Batch, most: int = 0) -> None:
        """`most`: rows that it will be given at a time; 0: CHUNK."""
        most = min(most or CHUNK, CHUNK)
        self.batch = batch
        self._most = most
        self._halves = _room("halves", most * batch.width, torch.bfloat16).view(most, batch.width)
        self._buffer = _room("buffer", most * batch.padded, torch.float32).view(most, batch.padded)
        self._buffer[:, batch.columns :] = 0
        self._scores = _room("scores", most * batch.count, torch.float32)

    def run(
        self, page: Planes, rows: slice, least: torch.Tensor, passing: npt.NDArray[np.bool_], finite: list[bool]
    ) -> tuple[Rows, Rows, Floats]:
        """Of rows in a row, those that pass and whose approximate scores reach the least of their chunk.

        least float32 [chunks, queries, 1], passing bool [1 or queries, n], finite: of each chunk. Returns query and
        place among the rows (int64 [m] each) and score (float32 [m]), chunk by chunk; infinite where a product left
        float32's range.
        """
        batch = self.batch
        dense = page.dense[rows]
        if not dense.shape[1]:
            dense = torch.zeros((len(dense), batch.width), dtype=torch.bfloat16)
        lexical = np.zeros((len(dense), len(batch.terms)), np.int8)
        if len(batch.terms) and page.sketch.shape[1]:
            # numpy's: torch takes several times as long for columns.
            page.sketch.numpy()[rows].take(batch.terms, axis=1, out=lexical)
        found: tuple[torch.Tensor, ...] = _reaching(
            dense,
            torch.from_numpy(lexical),
            batch.both,
            batch.rounded,
            batch.native,
            self._buffer,
            self._scores,
            least,
            torch.from_numpy(passing),
            finite,
            self._most,
        )
        query, place, score = (each.numpy() for each in found)
        return query, place, score

    def picked(self, pages: Sequence[Planes], slots: Rows) -> torch.Tensor:
        """The same of rows anywhere: ascending slots, at most CHUNK."""
        batch, count = self.batch, len(slots)
        dense = self._halves[:count]
        lexical = self._buffer[:count, batch.width : batch.columns].numpy()
        for page, where, rows in by_page(pages, slots):
            if page.dense.shape[1]:
                torch.index_select(page.dense, 0, torch.from_numpy(rows), out=dense[where])
            else:
                dense[where] = 0
            if len(batch.terms):
                lexical[where] = page.sketch.numpy()[rows[:, None], batch.terms] if page.sketch.shape[1] else 0
        out = self._scores[: batch.count * count].view(batch.count, count)
        _product(dense, batch.both, batch.rounded, batch.native, self._buffer[:count], out)
        return out


class Survivors:
    """What is left of a batch's scores: per query the rows that may be among its best, and a threshold.

    Invariant: a row that was offered and is not kept has an exact score below its query's threshold. One thread's own.
    """

    def __init__(self, batch: Batch, ks: Sequence[int], most: int = 0) -> None:
        """`most`: rows that it will be offered at a time; 0: CHUNK."""
        self.batch = batch
        self.ks = tuple(ks)
        self.thresholds = np.full(batch.count, -np.inf)
        self.reached = np.full(batch.count, -np.inf)  # what the k best of the kept rows reach at least
        self._scorer = Scorer(batch, most)
        self._kept: list[Kept] = [Kept.none() for _ in ks]
        self._pending: list[tuple[Rows, Rows, Doubles, Doubles]] = []  # query, slot, lower, upper
        self._count = 0
        self._limit = sum(8 * k + CHUNK for k in ks)

    def offer_run(self, page: Planes, rows: slice, passing: npt.NDArray[np.bool_], bounds: Bounds) -> None:
        """Scores rows in a row, a chunk at a time, and keeps what may matter.

        passing bool [1 or queries, n]: which rows count; bounds: of each CHUNK of them.
        """
        query, place, found = self._scorer.run(page, rows, bounds.least(self.thresholds), passing, bounds.finite)
        if len(query):
            score = found.astype(np.float64)
            off = bounds.slack[place // CHUNK, query]
            lower = np.where(np.isinf(score), -np.inf, score - off)
            self._keep(query, place + (page.first + rows.start), lower, score + off)

    def offer_picked(self, pages: Sequence[Planes], slots: Rows, norms: Doubles) -> None:
        """The same of ascending slots (at most CHUNK), all of which count and none of which has norms above these."""
        bounds = self.batch.bounds(norms[None])
        scores = self._scorer.picked(pages, slots)
        if not bounds.finite[0]:
            scores[~torch.isfinite(scores)] = torch.inf  # says nothing: always rescored
        mask = torch.ge(scores, bounds.least(self.thresholds)[0])
        query, place = np.divmod(np.flatnonzero(mask.numpy()), len(slots))
        if len(query):
            score = scores.numpy()[query, place].astype(np.float64)
            off = bounds.slack[0, query]
            lower = np.where(np.isinf(score), -np.inf, score - off)
            self._keep(query, slots[place], lower, score + off)

    def _keep(self, query: Rows, slots: Rows, lower: Doubles, upper: Doubles) -> None:
        self._pending.append((query, slots, lower, upper))
        self._count += len(query)
        if self._count > self._limit:
            self.tighten()

    def tighten(self) -> None:
        """Raises each threshold to what the k best of its rows reach at least, and drops the rows below."""
        if not self._pending:
            return
        query, slots, lower, upper = (np.concatenate(each) for each in zip(*self._pending, strict=True))
        self._pending.clear()
        self._count = 0
        order = np.argsort(query.astype(np.int16), kind="stable")
        ends = np.searchsorted(query[order], np.arange(1, self.batch.count + 1)).tolist()
        begin = 0
        for one, end in enumerate(ends):
            mine, begin = order[begin:end], end
            if len(mine):
                self._kept[one] = self._kept[one].joined(Kept(slots[mine], lower[mine], upper[mine]))
                self._raise(one)

    def join(self, others: Sequence[Survivors]) -> None:
        """Takes over what other threads kept of other rows for the same batch."""
        self.tighten()
        for other in others:
            other.tighten()
        for one in range(self.batch.count):
            for other in others:
                self.thresholds[one] = max(self.thresholds[one], other.thresholds[one])
                self._kept[one] = self._kept[one].joined(other._kept[one])
            self._raise(one)

    def superset(self, query: int) -> Rows | None:
        """Ascending slots among which the best k are; None when the threshold was set too high to tell."""
        self.tighten()
        proven = self.thresholds[query] <= self.reached[query] or np.isneginf(self.thresholds[query])
        return np.sort(self._kept[query].slots) if proven else None

    def _raise(self, one: int) -> None:
        kept, k = self._kept[one], self.ks[one]
        if len(kept.slots) >= k:
            self.reached[one] = np.partition(kept.lower, len(kept.lower) - k)[len(kept.lower) - k]
            self.thresholds[one] = max(self.thresholds[one], self.reached[one])
        self._kept[one] = kept.above(self.thresholds[one])


@dataclass(frozen=True, slots=True)
class Kept:
    """Rows of one query with bounds on their exact scores: int64 slots, float64 each."""

    slots: Rows
    lower: Doubles
    upper: Doubles

    @classmethod
    def none(cls) -> Kept:
        return cls(np.zeros(0, np.int64), np.zeros(0), np.zeros(0))

    def joined(self, other: Kept) -> Kept:
        if not len(self.slots):
            return other
        return Kept(
            np.concatenate((self.slots, other.slots)),
            np.concatenate((self.lower, other.lower)),
            np.concatenate((self.upper, other.upper)),
        )

    def above(self, threshold: float) -> Kept:
        keep = self.upper >= threshold
        return Kept(self.slots[keep], self.lower[keep], self.upper[keep])


def _product(
    dense: torch.Tensor,
    both: torch.Tensor,
    rounded: torch.Tensor,
    native: bool,
    wide: torch.Tensor,
    scores: torch.Tensor,
) -> None:
    """Scores float32 [queries, n] of dense bfloat16 [n, D] and of the lexical values that stand in `wide` behind
    column D: float32 [n, padded], whose first D columns it may overwrite."""
    width = dense.size(1)
    if native and width > 0:
        scores.copy_(torch.mm(rounded, dense.t()))
        if both.size(1) > width:
            scores.add_(torch.mm(both[:, width:], wide[:, width:].t()))
    else:
        wide[:, :width].copy_(dense)
        torch.mm(both, wide.t(), out=scores)


def _reach(
    dense: torch.Tensor,
    lexical: torch.Tensor,
    both: torch.Tensor,
    rounded: torch.Tensor,
    native: bool,
    buffer: torch.Tensor,
    room: torch.Tensor,
    least: torch.Tensor,
    passing: torch.Tensor,
    finite: list[bool],
    chunk: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`Scorer.run`: dense bfloat16 [n, D], lexical int8 [n, T], both float32 [queries, padded], rounded bfloat16
    [queries, D]; buffer float32 [chunk, padded], zero past D + T; room float32 [queries * chunk]."""
    queries, width, terms = both.size(0), dense.size(1), lexical.size(1)
    asked: list[torch.Tensor] = []
    places: list[torch.Tensor] = []
    found: list[torch.Tensor] = []
    for number, start in enumerate(range(0, dense.size(0), chunk)):
        end = min(start + chunk, dense.size(0))
        count = end - start
        counted = passing[:, start:end]
        if bool(counted.any()):
            wide = buffer[:count]
            scores = room[: queries * count].view(queries, count)
            if terms > 0:
                wide[:, width : width + terms].copy_(lexical[start:end])
            _product(dense[start:end], both, rounded, native, wide, scores)
            if not finite[number]:
                scores.masked_fill_(torch.isfinite(scores).logical_not(), float("inf"))  # says nothing: rescored
            mask = torch.ge(scores, least[number]).logical_and_(counted)
            flat = mask.view(-1).nonzero().view(-1)
            if flat.size(0) > 0:
                query = torch.div(flat, count, rounding_mode="floor")
                asked.append(query)
                places.append(flat - query * count + start)
                found.append(scores.view(-1).index_select(0, flat))
    if len(found) == 0:
        nothing = torch.empty([0], dtype=torch.int64)
        return nothing, nothing, torch.empty([0], dtype=torch.float32)
    return torch.cat(asked), torch.cat(places), torch.cat(found)


def _scripted(function: Callable[..., R]) -> Callable[..., R]:
    """The function run by TorchScript, which gives the interpreter up once for all its steps (docs/decisions, 10)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # it is deprecated, and there is no successor for this
        try:
            scripted: Callable[..., R] = torch.jit.script(function)
        except (AttributeError, RuntimeError):  # gone, or not for this Python: the same steps one by one
            return function
    return scripted


_reaching = _scripted(_reach)


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


def _room(name: str, count: int, dtype: torch.dtype) -> torch.Tensor:
    """Memory of this thread, used over and over: fresh memory costs more than the work done in it."""
    room: torch.Tensor | None = getattr(_rooms, name, None)
    if room is None or len(room) < count:
        room = torch.empty(count, dtype=dtype)
        setattr(_rooms, name, room)
    return room[:count]


def _norm(values: Floats) -> float:
    wide = values.astype(np.float64)
    return math.sqrt(float(wide @ wide))
