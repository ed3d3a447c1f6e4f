"""The exact best k of some rows of the planes, for several queries in one pass over them.

    1. seed      a sample of each query's passing rows says how high a score its best k will reach, a little too low
    2. scan      block by block: approximate scores of all queries, with a bound on their error; what may be among a
                 query's best is kept (scan_first.py). Where few rows pass they alone are gathered and scored
    3. certify   t = the k-th largest lower bound; a row whose upper bound is below t cannot be among the best k: the
                 rest is a superset. A seed that turns out too high is seen here, and its query scanned again without
    4. float64   the superset is rescored exactly (scan_exact.py), then put in the total order

No score matrix is ever written out, and what a query costs hardly depends on k.

Where it stands: life-of-a-query.md, step 6.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from penstock.retrieval.search.scan_exact import Doubles, Planes, Rows, by_page, exact
from penstock.retrieval.search.scan_first import CHUNK, Batch, Bounds, Scorer, Survivors
from penstock.retrieval.search.workers import alone, share
from penstock.retrieval.store.planes import QueryPlanes

Mask = npt.NDArray[np.bool_]
Passing = Rows | tuple[Mask, ...]

SAMPLED = 32  # one row in so many seeds the thresholds
DOUBT = 5.0  # standard deviations by which a seed is too low, so that it is too high once in millions
# What a row costs, in units of its product with one query: what decides between gathering and scanning all.
GATHERED, SCANNED = 40.0, 9.0
STARTED = 40_000.0  # and what gathering costs before the first row
DIRECT = 512  # up to so many rows are rescored at once, without a first pass
SPARSE = 1 / 16  # share of rows that pass, below which the last is taken to be anywhere
SHARED = 16_384  # rows from which on threads share what is done a few hundred rows at a time
RUN = 8  # chunks that a thread takes at a time
MOST = 64  # queries of one pass: more would push the block out of the cache


@dataclass(frozen=True, slots=True)
class Ask:
    """One query of a batch.

    passing: ascending slots, int64 [m]; or one bool [rows] a page, in the order of the pages. Asks that share a filter
    share the object, which is then looked at once.
    """

    query: QueryPlanes
    passing: Passing
    k: int


@dataclass(frozen=True, slots=True)
class Best:
    """The best rows in the total order, and both parts of their scores (float64)."""

    rows: Rows
    dense: Doubles
    lexical: Doubles
    rescored: int  # size of the certified superset


def best_many(pages: Sequence[Planes], asks: Sequence[Ask]) -> list[Best]:
    """The best `k` of each ask, in order. All queries are of one space.

    Uses as many threads as torch is set to. A row that does not pass may change meanwhile; one that passes may not.
    """
    groups = _groups(asks)
    gathered, scanned = _chosen(groups, _read(pages, groups))
    with alone() as threads:
        supersets: dict[int, Rows] = {}
        together = [place for group in scanned for place in group.places]
        for start in range(0, len(together), MOST):
            supersets |= _scan(pages, asks, together[start : start + MOST], threads)
        # A few rows a step is mostly Python, which two threads only hand to and fro.
        many = threads if gathered and gathered[-1].count >= SHARED else 1
        for some in share(many, lambda left: [_gather(pages, asks, group) for group in left], gathered):
            for found in some:
                supersets |= found
        rows = sum(len(slots) for slots in supersets.values())
        return _ordered(pages, asks, supersets, threads if rows >= SHARED else 1)


def best(
    dense: torch.Tensor,
    sketch: torch.Tensor,
    norms: Doubles,
    rows: Rows,
    query: QueryPlanes,
    ties: npt.NDArray[np.uint64],
    k: int,
) -> Best:
    """The best `k` of `rows` for one query.

    dense bfloat16 [n, D]; sketch int8 [n, L]; norms float64 [n, 2], upper bounds of each part's Euclidean norm;
    rows int64 [m], ascending slots that pass; ties uint64 [n], of equal scores the smaller comes first.
    """
    return best_many((_Whole(0, len(dense), dense, sketch, norms, ties),), (Ask(query, rows, k),))[0]


def unscored(rows: Rows, ties: npt.NDArray[np.uint64], k: int) -> Best:
    """The first `k` of rows that all score 0, because nothing stored can be compared with the query."""
    if len(rows) > k:
        rows = rows[np.argpartition(ties[rows], k - 1)[:k]]
    top = rows[np.argsort(ties[rows])]
    return Best(top, np.zeros(len(top)), np.zeros(len(top)), 0)


@dataclass(frozen=True, slots=True)
class _Whole:
    """Arrays that are one page."""

    first: int
    rows: int
    dense: torch.Tensor
    sketch: torch.Tensor
    norms: Doubles
    ties: npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class _Group:
    """Asks whose passing rows are one object."""

    passing: Passing
    places: list[int]  # of the asks in the batch
    count: int  # rows that pass


def _groups(asks: Sequence[Ask]) -> list[_Group]:
    by_object: dict[int, list[int]] = {}
    for place, ask in enumerate(asks):
        by_object.setdefault(id(ask.passing), []).append(place)
    out = []
    for places in by_object.values():
        passing = asks[places[0]].passing
        several = isinstance(passing, tuple)
        count = sum(int(np.count_nonzero(mask)) for mask in passing) if several else len(passing)
        out.append(_Group(passing, places, count))
    return out


def _read(pages: Sequence[Planes], groups: Sequence[_Group]) -> int:
    """About how many rows a scan would read: of each page none past the last that passes."""
    ends = [0] * len(pages)
    for group in groups:
        for number, page in enumerate(pages):
            if not isinstance(group.passing, tuple) or group.count < SPARSE * page.rows * len(pages):
                ends[number] = page.rows
            elif ends[number] < page.rows:
                last = int(group.passing[number][::-1].argmax())
                ends[number] = max(ends[number], page.rows - last if group.passing[number][-1 - last] else 0)
    return sum(ends)


def _chosen(groups: Sequence[_Group], rows: int) -> tuple[list[_Group], list[_Group]]:
    """Which groups' rows are gathered, and which are found by scanning all rows: what costs least together."""
    groups = sorted(groups, key=lambda group: group.count)
    asks = sum(len(group.places) for group in groups)
    cost = least = rows * (SCANNED * math.ceil(asks / MOST) + asks)
    gathered = 0
    for number, group in enumerate(groups, 1):
        many = len(group.places)
        before, asks = asks, asks - many
        cost += STARTED + group.count * (GATHERED + many)
        cost -= rows * (SCANNED * (math.ceil(before / MOST) - math.ceil(asks / MOST)) + many)
        if cost <= least:
            least, gathered = cost, number
    return groups[:gathered], groups[gathered:]


def _gather(pages: Sequence[Planes], asks: Sequence[Ask], group: _Group) -> dict[int, Rows]:
    """A superset of the best of each ask of the group, of whose rows alone anything is read."""
    slots = _slots(pages, group.passing)
    found = dict.fromkeys(group.places, slots)
    some = [place for place in group.places if len(slots) > max(asks[place].k, DIRECT)]
    for start in range(0, len(some), MOST):
        places = some[start : start + MOST]
        batch, ks = Batch([asks[place].query for place in places]), [asks[place].k for place in places]
        survivors = Survivors(batch, ks, len(slots))
        for begin in range(0, len(slots), CHUNK):
            picked = slots[begin : begin + CHUNK]
            survivors.offer_picked(pages, picked, _greatest(pages, picked))
        for query, place in enumerate(places):
            superset = survivors.superset(query)
            assert superset is not None  # no threshold was guessed
            found[place] = superset
    return found


def _scan(pages: Sequence[Planes], asks: Sequence[Ask], places: Sequence[int], threads: int) -> dict[int, Rows]:
    """A superset of the best of these asks, in one pass over all rows; in another, of those whose seed was too high."""
    masks = [_masks(page, number, [asks[place].passing for place in places]) for number, page in enumerate(pages)]
    tops = [_tops(page.norms) for page in pages]
    batch, ks = Batch([asks[place].query for place in places]), [asks[place].k for place in places]
    thresholds = _seeds(pages, batch, masks, ks)
    found: dict[int, Rows] = {}
    while True:
        survivors = _pass(pages, masks, tops, batch, ks, thresholds, threads)
        again = []
        for query, place in enumerate(places):
            superset = survivors.superset(query)
            if superset is None:
                again.append(query)
            else:
                found[place] = superset
        if not again:
            return found
        thresholds = survivors.reached[again]
        places = [places[query] for query in again]
        masks = [each if len(each) == 1 else each[again] for each in masks]
        batch, ks = Batch([asks[place].query for place in places]), [asks[place].k for place in places]


def _pass(
    pages: Sequence[Planes],
    masks: Sequence[Mask],
    tops: Sequence[Doubles],
    batch: Batch,
    ks: Sequence[int],
    thresholds: Doubles,
    threads: int,
) -> Survivors:
    """What is left of all rows. A thread takes RUN chunks of a page at a time."""
    bounds = [batch.bounds(norms) for norms in tops]

    def work(left: Iterator[tuple[int, int]]) -> Survivors:
        survivors = Survivors(batch, ks)
        survivors.thresholds[:] = thresholds
        for number, chunk in left:
            page, end = pages[number], chunk + RUN
            rows = slice(chunk * CHUNK, min(end * CHUNK, pages[number].rows))
            whole = bounds[number]
            part = Bounds(whole.slack[chunk:end], whole.finite[chunk:end])
            survivors.offer_run(page, rows, masks[number][:, rows], part)
        return survivors

    runs = [(number, chunk) for number, norms in enumerate(tops) for chunk in range(0, len(norms), RUN)]
    survivors, *others = share(threads, work, runs)
    survivors.join(others)
    return survivors


def _greatest(pages: Sequence[Planes], slots: Rows) -> Doubles:
    """The greatest norms of ascending slots: float64 [2]."""
    parts: list[Doubles] = [page.norms.take(rows, axis=0).max(axis=0) for page, _, rows in by_page(pages, slots)]
    out: Doubles = np.max(parts, axis=0)
    return out


def _masks(page: Planes, number: int, passing: Sequence[Passing]) -> Mask:
    """Which rows of the page count: bool [queries, rows], or [1, rows] where they are the same for all."""
    if all(each is passing[0] for each in passing):
        passing = passing[:1]
    lines = {}
    for each in passing:
        if id(each) in lines:
            continue
        if isinstance(each, tuple):
            line = each[number]
        else:
            line = np.zeros(page.rows, np.bool_)
            begin, end = np.searchsorted(each, (page.first, page.first + page.rows))
            line[each[begin:end] - page.first] = True
        lines[id(each)] = line
    return np.stack([lines[id(each)] for each in passing])


def _slots(pages: Sequence[Planes], passing: Passing) -> Rows:
    if not isinstance(passing, tuple):
        return passing
    return np.concatenate([np.flatnonzero(mask) + page.first for page, mask in zip(pages, passing, strict=True)])


def _seeds(pages: Sequence[Planes], batch: Batch, masks: Sequence[Mask], ks: Sequence[int]) -> Doubles:
    """A score for each query that at least k passing rows very probably reach; -inf where too few rows pass.

    Of the sample's scores the r-th, where r rows of the sample stand for k and DOUBT standard deviations more.
    """
    ranks = [math.ceil((DOUBT / 2 + math.sqrt(DOUBT**2 / 4 + k / SAMPLED)) ** 2) for k in ks]
    out = np.full(len(ks), -np.inf)
    slots, passing = [], []
    for page, mask in zip(pages, masks, strict=True):
        sample = _sample(page.rows)
        counted = mask[:, sample]
        useful = counted.any(axis=0)
        slots.append(sample[useful] + page.first)
        passing.append(counted[:, useful])
    sampled = np.concatenate(slots)
    if len(sampled) < 2 * min(ranks):
        return out
    counts, scorer = np.concatenate(passing, axis=1), Scorer(batch)
    parts = [slice(start, start + CHUNK) for start in range(0, len(sampled), CHUNK)]
    scores = np.concatenate([scorer.picked(pages, sampled[some]).numpy().copy() for some in parts], axis=1)
    every = bool(counts.all())
    for query, rank in enumerate(ranks):
        mine = scores[query] if every else scores[query][counts[query if len(counts) > 1 else 0]]
        if len(mine) >= 2 * rank:
            seed = np.partition(mine, len(mine) - rank)[len(mine) - rank]
            out[query] = seed if np.isfinite(seed) else -np.inf
    return out


@functools.lru_cache(maxsize=8)
def _sample(rows: int) -> Rows:
    """One row in SAMPLED, ascending, at no regular distance. The same in every process."""
    starts = np.arange(0, rows - SAMPLED + 1, SAMPLED)
    return starts + np.random.default_rng(0).integers(0, SAMPLED, len(starts))


def _tops(norms: Doubles) -> Doubles:
    """The greatest norms of each CHUNK rows: float64 [chunks, 2]."""
    whole = len(norms) // CHUNK * CHUNK
    # Long lines are reduced several times faster than pairs.
    lines = norms[:whole].reshape(-1, CHUNK // 512, 1024).max(axis=1)
    out = lines.reshape(-1, 512, 2).max(axis=1)
    return out if whole == len(norms) else np.concatenate((out, norms[whole:].max(axis=0, keepdims=True)))


def _ordered(pages: Sequence[Planes], asks: Sequence[Ask], supersets: Mapping[int, Rows], threads: int) -> list[Best]:
    """The best k of each ask, of a superset of them: ascending slots."""

    def work(left: Iterator[int]) -> dict[int, Best]:
        out = {}
        for place in left:
            slots = supersets[place]
            dense, lexical = exact(pages, slots, asks[place].query)
            ties = np.zeros(len(slots), np.uint64)
            for page, where, rows in by_page(pages, slots):
                ties[where] = page.ties[rows]
            order = np.lexsort((ties, -(dense + lexical)))[: asks[place].k]
            out[place] = Best(slots[order], dense[order], lexical[order], len(slots))
        return out

    found: dict[int, Best] = {}
    for some in share(threads, work, range(len(asks))):
        found |= some
    return [found[place] for place in range(len(asks))]
