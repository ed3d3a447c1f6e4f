"""Which standing queries a batch of postings satisfies. Exact; pure but for the arrays it reads.

1. live      only live UPSERTs can match; their vectors become planes (`batch.py`)
2. filters   each distinct condition of all standing queries is asked once, for the whole batch (`conditions.py`);
             block by block they leave the pairs of one tenant that pass, a bit each
3. score     … of these the pairs that reach their query's threshold (`scan.py`); without a vector: all
4. bound     the first postings whose matches fit a reply; at least one
5. tell      each match with its reason

Where it stands: life-of-an-alert.md, step 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from penstock.retrieval.percolate import scan
from penstock.retrieval.percolate.batch import Batch, Group
from penstock.retrieval.percolate.blocks import Block, Scored
from penstock.retrieval.percolate.conditions import Bits, pack, unpack
from penstock.retrieval.percolate.entries import Entry
from penstock.retrieval.store.planes import Space
from penstock.schemas.events import IndexUpdate, Match, StandingQuery
from penstock.schemas.rpc import Matches

REPLY_BYTES = 24 << 20  # of matches and their queries, about: well below what a call may carry
REASON_CHARS = 300


@dataclass(frozen=True, slots=True)
class Percolated:
    """What was found, and what could not be compared."""

    found: tuple[Matches, ...]  # of the first updates, in order; of all of them unless a reply could not hold it
    other_space: int  # pairs whose vectors are not of one space
    vectors_refused: int  # postings whose vector is none
    without_vector: int  # queries sent without theirs, because one posting's alone were too many for a reply


def percolate(
    blocks: Sequence[Block], updates: Sequence[IndexUpdate], now_ms: int, *, reply_bytes: int = REPLY_BYTES
) -> Percolated:
    """The matches of each update, by subscription_id."""
    batch = Batch(updates, now_ms)
    if not len(batch):
        return Percolated((Matches(),) * len(updates), 0, 0, 0)
    batch.prepare(blocks)
    pairs, other_space = _pairs(blocks, batch)
    live = np.asarray(batch.live)
    served, heavy = _served(blocks, pairs, live, len(updates), reply_bytes)
    told = _Told(blocks, batch, bare=heavy)
    order = np.argsort(pairs.places, kind="stable")
    ends = np.searchsorted(live[pairs.places[order]], np.arange(1, served + 1)).tolist()
    found = tuple(told.matches(pairs, order[begin:end]) for begin, end in zip([0, *ends[:-1]], ends, strict=True))
    without = sum(len(one.queries) for one in found) if heavy else 0
    return Percolated(found, other_space, batch.vectors_refused, without)


def _pairs(blocks: Sequence[Block], batch: Batch) -> tuple[scan.Found, int]:
    """Every match, and how many pairs are of two spaces."""
    out = [scan.Found.none()]
    other_space = 0
    passing = [batch.passing(block) for block in blocks]
    spaces: dict[Space, list[tuple[int, Scored]]] = {}
    for number, block in enumerate(blocks):
        if block.scored is not None:
            spaces.setdefault(block.scored.space, []).append((number, block.scored))
            continue
        some = np.flatnonzero(passing[number].any(axis=1))
        rows, places = np.nonzero(unpack(passing[number][some], len(batch)))
        zeros = np.zeros(len(rows))
        out.append(scan.Found(np.full(len(rows), number), some[rows], places, zeros, zeros))
    for group in batch.groups:
        for space, scored in spaces.items():
            if scan.comparable(space, group.space):
                mine = [_of_group(passing[number], group, len(batch)) for number, _ in scored]
                out.extend(scan.matches(scored, mine, group))
            else:
                other_space += sum(len(one.thresholds) for _, one in scored) * len(group.places)
    return scan.found(out), other_space


def _of_group(passing: Bits, group: Group, count: int) -> Bits:
    """`passing` of the batch's `count` postings with a bit for each row of the group instead."""
    if len(group.places) == count:
        return passing
    return pack(unpack(passing, count)[:, group.places], -(-len(group.places) // 64))


def _served(
    blocks: Sequence[Block], pairs: scan.Found, live: npt.NDArray[np.int64], updates: int, reply_bytes: int
) -> tuple[int, bool]:
    """How many updates a reply can hold, and whether the first one is too much by itself."""
    begins = np.cumsum([0, *(len(block.costs) for block in blocks)])
    costs = np.concatenate([np.zeros(0, np.int64), *(block.costs for block in blocks)])
    taken = np.bincount(live[pairs.places], costs[begins[pairs.blocks] + pairs.rows], updates)
    served = max(1, int(np.searchsorted(np.cumsum(taken), reply_bytes, side="right")))
    return served, served == 1 and bool(taken[0] > reply_bytes)


class _Told:
    """Makes the matches of a batch, and the queries that go with them: each once, whatever the postings it matches."""

    def __init__(self, blocks: Sequence[Block], batch: Batch, *, bare: bool) -> None:
        self._blocks = blocks
        self._batch = batch
        self._bare = bare
        self._queries: dict[str, StandingQuery] = {}

    def matches(self, pairs: scan.Found, some: npt.NDArray[np.int64]) -> Matches:
        """Those of one posting, by subscription_id."""
        made: list[tuple[str, Match]] = []
        asking: list[tuple[str, int, int]] = []
        for number, row, place, dense, lexical in zip(
            pairs.blocks[some].tolist(),
            pairs.rows[some].tolist(),
            pairs.places[some].tolist(),
            pairs.dense[some].tolist(),
            pairs.lexical[some].tolist(),
            strict=True,
        ):
            entry = self._blocks[number].entries[row]
            query = entry.query
            match = Match(
                subscription_id=query.subscription_id,
                version=query.version,
                person_id=query.person_id,
                match_score=dense + lexical,
                dense=dense,
                lexical=lexical,
                reason=reason(entry, self._batch, place, dense, lexical),
            )
            made.append((query.subscription_id, match))
            if query.min_score is not None:
                asking.append((query.subscription_id, number, row))
        made.sort()  # no two ids are equal: nothing else is compared
        asking.sort()
        return Matches(
            matches=tuple([match for _, match in made]), queries=tuple([self._query(*one) for one in asking])
        )

    def _query(self, subscription_id: str, number: int, row: int) -> StandingQuery:
        query = self._queries.get(subscription_id)
        if query is None:
            query = self._queries[subscription_id] = query_of(self._blocks[number], row, bare=self._bare)
        return query


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
