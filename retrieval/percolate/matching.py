"""Which standing queries a batch of postings satisfies. Exact; pure but for the arrays it reads.

1. live      only live UPSERTs can match; their vectors become planes (`batch.py`)
2. filters   each distinct condition of all standing queries is asked once, for the whole batch (`conditions.py`);
             block by block they leave the pairs of one tenant that pass, a bit each
3. score     … of these the pairs that reach their query's threshold (`scan.py`); without a vector: all
             (on a GPU both steps are kernels, `device.py`)
4. bound     the first postings whose matches fit a reply; at least one
5. tell      each match with its reason

Where it stands: life-of-an-alert.md, step 5.
"""

from __future__ import annotations

import bisect
import collections
import itertools
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt

from penstock.retrieval.percolate import scan
from penstock.retrieval.percolate.batch import Batch, Group
from penstock.retrieval.percolate.blocks import Block, Scored
from penstock.retrieval.percolate.conditions import Bits, pack, unpack
from penstock.retrieval.percolate.device import DeviceScan
from penstock.retrieval.percolate.entries import Entry
from penstock.retrieval.store.planes import Space
from penstock.schemas.events import IndexUpdate, Match, StandingQuery
from penstock.schemas.rpc import Matches

REPLY_BYTES = 24 << 20  # of matches and their queries, about: well below what a call may carry
REASON_CHARS = 300
_FIELDS = tuple(field.name for field in fields(Match))
_BY_ID = operator.attrgetter("subscription_id")


@dataclass(frozen=True, slots=True)
class Percolated:
    """What was found, and what could not be compared."""

    found: tuple[Matches, ...]  # of the first updates, in order; of all of them unless a reply could not hold it
    other_space: int  # pairs whose vectors are not of one space
    vectors_refused: int  # postings whose vector is none
    without_vector: int  # queries sent without theirs, because one posting's alone were too many for a reply
    on_host: Mapping[str, int]  # standing queries that the device left to the host, by why: found all the same


def percolate(
    blocks: Sequence[Block],
    updates: Sequence[IndexUpdate],
    now_ms: int,
    *,
    reply_bytes: int = REPLY_BYTES,
    pairs_on: DeviceScan | None = None,
) -> Percolated:
    """The matches of each update, by subscription_id. pairs_on: what finds them, if not this thread."""
    batch = Batch(updates, now_ms)
    if not len(batch):
        return Percolated((Matches(),) * len(updates), 0, 0, 0, {})
    batch.prepare(blocks)
    pairs, other_space, on_host = _pairs(blocks, batch, pairs_on)
    live = np.asarray(batch.live)
    served, heavy = _served(blocks, pairs, live, len(updates), reply_bytes)
    order = np.argsort(pairs.places, kind="stable")
    ends = np.searchsorted(live[pairs.places[order]], np.arange(1, served + 1)).tolist()
    found = _told(blocks, batch, pairs, order, ends, bare=heavy)
    without = sum(len(one.queries) for one in found) if heavy else 0
    return Percolated(found, other_space, batch.vectors_refused, without, on_host)


def _pairs(
    blocks: Sequence[Block], batch: Batch, pairs_on: DeviceScan | None
) -> tuple[scan.Found, int, Mapping[str, int]]:
    """Every match, how many pairs are of two spaces, and what the device left to the host."""
    if pairs_on is None:
        return *_pairs_here(blocks, batch, range(len(blocks))), {}
    told = pairs_on.pairs(blocks, batch)
    if not told.left:
        return told.found, told.other_space, {}
    found, other_space = _pairs_here(blocks, batch, sorted(told.left))
    on_host = collections.Counter[str]()
    for number, why in told.left.items():
        on_host[why] += len(blocks[number].entries)
    return scan.found((told.found, found)), told.other_space + other_space, on_host


def _pairs_here(blocks: Sequence[Block], batch: Batch, numbers: Iterable[int]) -> tuple[scan.Found, int]:
    """Of the blocks of these numbers every match, and how many pairs are of two spaces, by this thread."""
    out = [scan.Found.none()]
    other_space = 0
    passing = {number: batch.passing(blocks[number]) for number in numbers}
    spaces: dict[Space, list[tuple[int, Scored]]] = {}
    for number in passing:
        block = blocks[number]
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


def _told(
    blocks: Sequence[Block],
    batch: Batch,
    pairs: scan.Found,
    order: npt.NDArray[np.int64],
    ends: Sequence[int],
    *,
    bare: bool,
) -> tuple[Matches, ...]:
    """The matches of each posting, by subscription_id; where its own end in `order` is in `ends`.

    A query that goes along is one object, however many postings it matches.
    """
    order = order[: ends[-1]]
    sources = list(zip(pairs.blocks[order].tolist(), pairs.rows[order].tolist(), strict=True))
    entries = [blocks[number].entries[row] for number, row in sources]
    scores = [pairs.dense[order].tolist(), pairs.lexical[order].tolist()]
    made = _matches(entries, scores[0], scores[1], batch, pairs.places[order].tolist())
    asking = [place for place, entry in enumerate(entries) if entry.query.min_score is not None]
    queries = {source: query_of(blocks[source[0]], source[1], bare=bare) for source in {sources[at] for at in asking}}
    out, begin, first = [], 0, 0
    for end in ends:
        last = bisect.bisect_left(asking, end, first)
        mine = [queries[sources[at]] for at in asking[first:last]]
        out.append(
            Matches(
                matches=tuple(sorted(made[begin:end], key=_BY_ID)),
                queries=tuple(sorted(mine, key=_BY_ID)),
            )
        )
        begin, first = end, last
    return tuple(out)


def _matches(
    entries: Sequence[Entry], dense: Sequence[float], lexical: Sequence[float], batch: Batch, places: Sequence[int]
) -> list[Match]:
    """A match of each, filled a field at a time: the constructor of a frozen dataclass takes several times as long."""
    made = list(map(object.__new__, itertools.repeat(Match, len(entries))))
    queries = [entry.query for entry in entries]
    values: dict[str, Iterable[object]] = {
        "subscription_id": [query.subscription_id for query in queries],
        "version": [query.version for query in queries],
        "person_id": [query.person_id for query in queries],
        "match_score": map(operator.add, dense, lexical),
        "dense": dense,
        "lexical": lexical,
        "score": itertools.repeat(None),
        "reason": map(reason, entries, itertools.repeat(batch), places, dense, lexical),
    }
    for name in _FIELDS:
        collections.deque(map(getattr(Match, name).__set__, made, values[name]), maxlen=0)
    return made


def query_of(block: Block, row: int, *, bare: bool = False) -> StandingQuery:
    """The standing query as it was published; `bare`: without its vector, which the ranker can make again."""
    query = block.entries[row].query
    return query if bare else replace(query, vector=block.vector(row))


def reason(entry: Entry, batch: Batch, place: int, dense: float, lexical: float) -> str:
    """For people: what each part of the score gave, and the conditions that the posting meets."""
    if entry.space is None:
        said = batch.satisfied(entry.tree, place) if entry.tree is not None else ""
    else:
        least = entry.query.threshold
        said = f"meaning {dense:.2f}, words {lexical:.2f} (together at least {least:.2f})"
        if entry.tree is not None:
            said = f"{said}; {batch.satisfied(entry.tree, place)}"
    return said if len(said) <= REASON_CHARS else f"{said[: REASON_CHARS - 1]}…"
