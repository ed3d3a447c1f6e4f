"""Standing queries in blocks of a thousand: what percolation reads of them, as arrays.

A block is immutable. A change builds it anew beside the old one, which its readers keep for as long as they need it:
so there is nothing to lock, to pin or to reclaim, and a change costs one block (1.5 MB of 384 values) and not the
store. The queries of a block are of one space, or have no vector at all.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from penstock.retrieval.percolate.entries import CONDITIONS, Condition, Draft, Entry
from penstock.retrieval.store.planes import QueryPlanes, Space
from penstock.schemas.events import QueryVector

BLOCK = 1_024  # queries

K = TypeVar("K", bound=Hashable)
Rows = npt.NDArray[np.int64]
Codes = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Scored:
    """The vectors of a block: dense rows, and the lexical parts' few values that are not zero (CSR)."""

    space: Space
    dense: torch.Tensor  # float32 [n, D]
    starts: torch.Tensor  # int32 [n + 1]: where each query's terms begin
    terms: torch.Tensor  # int32 [t]
    weights: torch.Tensor  # float32 [t]
    norms: npt.NDArray[np.float64]  # [n, 2]: Euclidean, of the dense and the lexical part, rounded up
    thresholds: npt.NDArray[np.float64]  # [n]
    longest: int  # terms that no query has more of

    @property
    def nbytes(self) -> int:
        tensors = (self.dense, self.starts, self.terms, self.weights)
        return sum(tensor.nbytes for tensor in tensors) + self.norms.nbytes + self.thresholds.nbytes

    def planes(self, row: int) -> QueryPlanes:
        """One query's values."""
        begin, end = self.starts.numpy()[row : row + 2].tolist()
        terms, weights = self.terms.numpy()[begin:end], self.weights.numpy()[begin:end]
        return QueryPlanes(self.dense.numpy()[row], terms.astype(np.int64), weights)


@dataclass(frozen=True, slots=True)
class Block:
    """At most BLOCK standing queries."""

    number: int
    built: int  # in which epoch: of two blocks with the same number and epoch either may stand for the other
    entries: tuple[Entry, ...]
    tenants: tuple[str, ...]
    tenant_of: Codes  # [n]: places in `tenants`
    conditions: tuple[Condition, ...]  # the distinct ones, by number
    numbers: Codes  # theirs, ascending
    demands: Codes  # [k, n]: numbers of the conditions that all must hold for a query; 0: none
    costs: Rows  # [n]: bytes a match takes in a reply
    scored: Scored | None  # None: filters alone decide

    @property
    def nbytes(self) -> int:
        own = sum(array.nbytes for array in (self.tenant_of, self.numbers, self.demands, self.costs))
        return own + (self.scored.nbytes if self.scored is not None else 0)

    def vector(self, row: int) -> QueryVector | None:
        """One query's vector, as it was published."""
        if self.scored is None:
            return None
        entry, planes, space = self.entries[row], self.scored.planes(row), self.scored.space
        lexical = np.zeros(space.sketch, "<f4")
        lexical[planes.terms] = planes.weights
        return QueryVector(
            space_id=space.space_id,
            encoder_id=entry.encoder_id,
            dense=planes.dense.astype("<f4", copy=False).tobytes(),
            lexical=lexical.tobytes() if space.sketch else None,
        )


def build(number: int, built: int, space: Space | None, old: Block | None, kept: Rows, fresh: Sequence[Draft]) -> Block:
    """The rows `kept` of the old block (ascending), then the fresh ones, all of one space."""
    entries = tuple(old.entries[row] for row in kept.tolist()) if old is not None else ()
    entries += tuple(draft.entry for draft in fresh)
    tenants, tenant_of = _coded([entry.query.tenant for entry in entries])
    demands, conditions = _demands(old, kept, fresh)
    costs = np.asarray([draft.entry.cost for draft in fresh], np.int64)
    return Block(
        number=number,
        built=built,
        entries=entries,
        tenants=tenants,
        tenant_of=tenant_of,
        conditions=conditions,
        numbers=np.asarray([condition.number for condition in conditions], np.int32),
        demands=demands,
        costs=costs if old is None else np.concatenate((old.costs[kept], costs)),
        scored=None if space is None else _scored(space, old.scored if old is not None else None, kept, fresh),
    )


def _demands(old: Block | None, kept: Rows, fresh: Sequence[Draft]) -> tuple[Codes, tuple[Condition, ...]]:
    """Which conditions the queries demand, int32 [k, n], and the distinct ones by number."""
    out = np.zeros((CONDITIONS, len(kept) + len(fresh)), np.int32)
    known: dict[int, Condition] = {}
    if old is not None:
        out[: len(old.demands), : len(kept)] = old.demands[:, kept]
        known.update(zip(old.numbers.tolist(), old.conditions, strict=True))
    for row, draft in enumerate(fresh, len(kept)):
        for place, condition in enumerate(draft.entry.tree.conditions if draft.entry.tree is not None else ()):
            out[place, row] = condition.number
            known[condition.number] = condition
    used = [number for number in np.unique(out).tolist() if number]
    most = int((out > 0).any(axis=1).sum())
    return np.ascontiguousarray(out[:most]), tuple(known[number] for number in used)


def gathered(pieces: Sequence[tuple[Scored, Rows]]) -> Scored:
    """These rows of vectors of one space, one piece after the other."""
    starts, places = [np.zeros(1, np.int64)], []
    dense = np.empty((sum(len(rows) for _, rows in pieces), pieces[0][0].space.dense), np.float32)
    row = term = 0
    for scored, rows in pieces:
        np.take(scored.dense.numpy(), rows, axis=0, out=dense[row : row + len(rows)], mode="clip")
        begins = scored.starts.numpy()[rows].astype(np.int64)
        counts = scored.starts.numpy()[rows + 1] - begins
        ends = np.cumsum(counts)
        places.append(np.repeat(begins - (ends - counts), counts) + np.arange(counts.sum()))
        starts.append(ends + term)
        row, term = row + len(rows), term + len(places[-1])
    terms = [scored.terms.numpy()[some] for (scored, _), some in zip(pieces, places, strict=True)]
    weights = [scored.weights.numpy()[some] for (scored, _), some in zip(pieces, places, strict=True)]
    return Scored(
        space=pieces[0][0].space,
        dense=torch.from_numpy(dense),
        starts=torch.from_numpy(np.concatenate(starts).astype(np.int32)),
        terms=torch.from_numpy(np.concatenate(terms)),
        weights=torch.from_numpy(np.concatenate(weights)),
        norms=np.concatenate([scored.norms[rows] for scored, rows in pieces]),
        thresholds=np.concatenate([scored.thresholds[rows] for scored, rows in pieces]),
        longest=max(scored.longest for scored, _ in pieces),
    )


def _scored(space: Space, old: Scored | None, kept: Rows, fresh: Sequence[Draft]) -> Scored:
    pieces = [(old, kept)] if old is not None and len(kept) else []
    if fresh:
        pieces.append((_fresh(space, fresh), np.arange(len(fresh))))
    return gathered(pieces) if len(pieces) > 1 or not fresh else pieces[0][0]


def _fresh(space: Space, fresh: Sequence[Draft]) -> Scored:
    planes = [draft.planes for draft in fresh if draft.planes is not None]
    dense = np.empty((len(planes), space.dense), np.float32)
    norms = np.empty((len(planes), 2))
    for row, one in enumerate(planes):
        dense[row] = one.dense
        norms[row] = [np.linalg.norm(part.astype(np.float64)) * (1 + 1e-12) for part in (one.dense, one.weights)]
    counts = np.asarray([len(one.terms) for one in planes], np.int64)
    return Scored(
        space=space,
        dense=torch.from_numpy(dense),
        starts=torch.from_numpy(np.concatenate(([0], np.cumsum(counts))).astype(np.int32)),
        terms=torch.from_numpy(np.concatenate([one.terms for one in planes]).astype(np.int32)),
        weights=torch.from_numpy(np.concatenate([one.weights for one in planes])),
        norms=norms,
        thresholds=np.asarray([draft.entry.query.threshold for draft in fresh], np.float64),
        longest=int(counts.max()),
    )


def _coded(values: Sequence[K]) -> tuple[tuple[K, ...], Codes]:
    """The distinct values, and which of them each is."""
    codes: dict[K, int] = {}
    which = [codes.setdefault(value, len(codes)) for value in values]
    return tuple(codes), np.asarray(which, np.int32)
