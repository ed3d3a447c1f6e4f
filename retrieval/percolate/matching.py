"""Which standing queries a batch of postings satisfies. Exact; pure but for the arrays it reads.

1. live      only live UPSERTs can match; their vectors become planes (`batch.py`)
2. filters   each distinct condition of all standing queries is asked once, for the whole batch (`conditions.py`);
             block by block they leave the pairs of one tenant that pass, a bit each
3. score     … of these the pairs that may reach their query's threshold (`scan.py`); without a vector: all
4. bound     the first postings whose matches fit a reply; at least one
5. exact     scores in float64 on the stored values (`exact.py`); what reaches the threshold is a match

Where it stands: life-of-an-alert.md, step 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from penstock.retrieval.percolate import scan
from penstock.retrieval.percolate.batch import Batch, Group
from penstock.retrieval.percolate.blocks import Block
from penstock.retrieval.percolate.conditions import Bits, pack, unpack
from penstock.retrieval.percolate.entries import Entry
from penstock.retrieval.percolate.exact import Exact
from penstock.schemas.events import IndexUpdate, Match, StandingQuery
from penstock.schemas.rpc import Matches

REPLY_BYTES = 24 << 20  # of matches and their queries, about: well below what a call may carry
REASON_CHARS = 300

Pairs = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Percolated:
    """What was found, and what could not be compared."""

    found: tuple[Matches, ...]  # of the first updates, in order; of all of them unless a reply could not hold it
    other_space: int  # pairs whose vectors are not of one space
    vectors_refused: int  # postings whose vector is none
    without_vector: int  # queries sent without theirs, because one posting's alone were too many for a reply


@dataclass(slots=True)
class _Survivors:
    """Pairs of one block and one group (None: filters alone) that all but the exact score has let through."""

    block: Block
    group: Group | None
    rows: Pairs
    columns: Pairs  # of the group; of the batch without one
    places: Pairs  # of the batch


@dataclass(slots=True)
class _Hits:
    """What one posting matches."""

    matches: list[Match] = field(default_factory=list)
    sources: list[tuple[Block, int]] = field(default_factory=list)


def percolate(
    blocks: Sequence[Block], updates: Sequence[IndexUpdate], now_ms: int, *, reply_bytes: int = REPLY_BYTES
) -> Percolated:
    """The matches of each update, by subscription_id."""
    batch = Batch(updates, now_ms)
    if not len(batch):
        return Percolated((Matches(),) * len(updates), 0, 0, 0)
    batch.prepare(blocks)
    other_space = 0
    survivors: list[_Survivors] = []
    for block in blocks:
        passing = batch.passing(block)
        if block.scored is None:
            some = np.flatnonzero(passing.any(axis=1))
            rows, places = np.nonzero(unpack(passing[some], len(batch)))
            survivors.append(_Survivors(block, None, some[rows], places, places))
            continue
        for group in batch.groups:
            if not scan.comparable(block.scored.space, group.space):
                other_space += len(block.entries) * len(group.places)
                continue
            rows, columns = scan.candidates(block.scored, group, _of_group(passing, group, len(batch)))
            survivors.append(_Survivors(block, group, rows, columns, group.places[columns]))
    survivors = [some for some in survivors if len(some.rows)]
    served, costs = _bounded(survivors, batch, len(updates), reply_bytes)
    hits = [_Hits() for _ in range(served)]
    exact = {id(group): Exact(group) for group in batch.groups}
    for some in survivors:
        _score(some, batch, exact[id(some.group)] if some.group is not None else None, hits)
    heavy = served == 1 and costs[0] > reply_bytes
    found = tuple(_matches(of_one, heavy) for of_one in hits)
    without = sum(len(one.queries) for one in found) if heavy else 0
    return Percolated(found, other_space, batch.vectors_refused, without)


def _of_group(passing: Bits, group: Group, count: int) -> Bits:
    """`passing` of the batch's `count` postings with a bit for each row of the group instead."""
    if len(group.places) == count:
        return passing
    return pack(unpack(passing, count)[:, group.places], -(-len(group.places) // 64))


def _keep(pairs: _Survivors, mask: npt.NDArray[np.bool_]) -> None:
    pairs.rows, pairs.columns, pairs.places = pairs.rows[mask], pairs.columns[mask], pairs.places[mask]


def _bounded(
    survivors: list[_Survivors], batch: Batch, updates: int, reply_bytes: int
) -> tuple[int, npt.NDArray[np.float64]]:
    """How many updates are answered, and what each costs at most; the pairs of the others go."""
    costs = np.zeros(updates)
    live = np.asarray(batch.live)
    for some in survivors:
        costs += np.bincount(live[some.places], some.block.costs[some.rows], updates)
    served = max(1, int(np.searchsorted(np.cumsum(costs), reply_bytes, side="right")))
    if served < updates:
        for some in survivors:
            _keep(some, live[some.places] < served)
    return served, costs


def _score(some: _Survivors, batch: Batch, exact: Exact | None, hits: list[_Hits]) -> None:
    """Adds the pairs that match to their postings' hits."""
    block = some.block
    if block.scored is None or exact is None:
        dense = lexical = np.zeros(len(some.rows))
        enough = np.ones(len(some.rows), np.bool_)
    else:
        dense, lexical = exact.scores(block.scored, some.rows, some.columns)
        enough = dense + lexical >= block.scored.thresholds[some.rows]
    for row, place, by_dense, by_term in zip(
        some.rows[enough].tolist(),
        some.places[enough].tolist(),
        dense[enough].tolist(),
        lexical[enough].tolist(),
        strict=True,
    ):
        entry = block.entries[row]
        one = hits[batch.live[place]]
        one.sources.append((block, row))
        one.matches.append(
            Match(
                subscription_id=entry.query.subscription_id,
                version=entry.query.version,
                person_id=entry.query.person_id,
                match_score=by_dense + by_term,
                dense=by_dense,
                lexical=by_term,
                reason=reason(entry, batch, place, by_dense, by_term),
            )
        )


def _matches(hits: _Hits, heavy: bool) -> Matches:
    ordered = sorted(zip(hits.matches, hits.sources, strict=True), key=lambda pair: pair[0].subscription_id)
    return Matches(
        matches=tuple(match for match, _ in ordered),
        queries=tuple(
            query_of(block, row, bare=heavy)
            for _, (block, row) in ordered
            if block.entries[row].query.min_score is not None
        ),
    )


def query_of(block: Block, row: int, *, bare: bool = False) -> StandingQuery:
    """The standing query as it was published; `bare`: without its vector, which the ranker can make again."""
    query = block.entries[row].query
    return query if bare else replace(query, vector=block.vector(row))


def reason(entry: Entry, batch: Batch, place: int, dense: float, lexical: float) -> str:
    """For people: what each part of the score gave, and the conditions that the posting meets."""
    said = ""
    if entry.space is not None:
        said = f"meaning {dense:.2f}, words {lexical:.2f} (together at least {entry.query.threshold:.2f})"
    if entry.tree is not None:
        met = batch.satisfied(entry.tree, place)
        said = f"{said}; {met}" if said else met
    return said if len(said) <= REASON_CHARS else f"{said[: REASON_CHARS - 1]}…"
