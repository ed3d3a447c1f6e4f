"""Which (standing query, posting) pairs score enough: a float32 pass with a certified error, then float64.

    1. float32   those of a block's queries that may have any of a group's postings, times these postings at once, and
                 a bound e on every score's distance from the exact one
    2. certify   a pair that passes is left out only where its score + e is below the query's threshold
    3. float64   the rest is rescored exactly (`exact.py`)

The bound is that of retrieval/search/scan.py (Higham, section 3.1), here of D + t + 1 terms added in any order: the
dense product is accumulated onto the lexical one.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from penstock.retrieval.percolate.batch import Group
from penstock.retrieval.percolate.blocks import Scored
from penstock.retrieval.percolate.conditions import Bits, pack, unpack
from penstock.retrieval.store.planes import Space

_WHOLE = 0.75  # of a block's queries: past it all of them are scored rather than copied
_SAFE = 1e37  # |q| |p| below it: no product and no partial sum of theirs leaves float32's range

Pairs = npt.NDArray[np.int64]


def comparable(query: Space, posting: Space | None) -> bool:
    """Whether an inner product of the two means anything. A part that one of them lacks scores 0."""
    if posting is None:
        return True
    widths = ((query.dense, posting.dense), (query.sketch, posting.sketch))
    return query.space_id == posting.space_id and all(not a or not b or a == b for a, b in widths)


def candidates(scored: Scored, group: Group, passing: Bits) -> tuple[Pairs, Pairs]:
    """(rows of the block, rows of the group) of the pairs to be rescored: of those in `passing`, every one that may
    reach its query's threshold.

    `passing` uint64 [n, words]: a bit for each row of the group. Call it with what is `comparable`.
    """
    count, some = len(group.places), np.flatnonzero(passing.any(axis=1))
    by_dense, by_term = parts(scored, group)
    if not by_dense and not by_term:
        some = some[scored.thresholds[some] <= 0]
        row, column = np.nonzero(unpack(passing[some], count))
        return some[row], column
    if not len(some):
        return some, some
    rows = None if len(some) > _WHOLE * len(passing) else some
    score = _scores(scored, group, rows, by_dense, by_term)
    least, safe = _least(scored, group, by_dense, by_term)
    if rows is not None:
        least, passing = least[rows], passing[rows]
    keep = torch.ge(score, torch.from_numpy(least)[:, None])
    if not safe:  # a product that left float32's range says nothing: such a pair is always rescored
        keep |= ~torch.isfinite(score)
    left = pack(keep.numpy(), passing.shape[1]) & passing
    some = np.flatnonzero(left.any(axis=1))
    row, column = np.nonzero(unpack(left[some], count))
    some = some[row]
    return some if rows is None else rows[some], column


def _scores(scored: Scored, group: Group, rows: Pairs | None, by_dense: bool, by_term: bool) -> torch.Tensor:
    """Approximate scores of these queries (None: of all), float32 [n, m]."""
    places = None if rows is None else torch.from_numpy(rows)
    count = len(scored.thresholds) if rows is None else len(rows)
    if by_term:
        terms, starts, weights = scored.terms, scored.starts, scored.weights
        if rows is not None:
            begins = scored.starts.numpy()[rows]
            counts = scored.starts.numpy()[rows + 1] - begins
            ends = np.cumsum(counts)
            where = torch.from_numpy(np.repeat(begins - (ends - counts), counts) + np.arange(ends[-1]))
            starts = torch.from_numpy(np.concatenate(([0], ends)).astype(np.int32))
            terms, weights = terms[where], weights[where]
        score = torch.nn.functional.embedding_bag(
            terms, group.table, starts, mode="sum", per_sample_weights=weights, include_last_offset=True
        )
    else:
        score = torch.zeros((count, len(group.places)))
    if by_dense:
        score.addmm_(scored.dense if places is None else torch.index_select(scored.dense, 0, places), group.columns)
    return score


def _least(scored: Scored, group: Group, by_dense: bool, by_term: bool) -> tuple[npt.NDArray[np.float32], bool]:
    """The lowest score that each query may show and be kept, float32 [n]; whether no product can leave float32."""
    sizes = scored.norms * np.asarray(group.norms)
    terms = scored.space.dense * by_dense + scored.longest * by_term
    slack = _bound(terms) * (sizes[:, 0] * by_dense + sizes[:, 1] * by_term)
    # What the norms' own rounding and underflow in float32 can add.
    slack = slack * (1 + 1e-9) + terms * 1e-37
    with np.errstate(over="ignore"):  # a threshold beyond float32 becomes infinite, and nextafter brings it back
        least = np.nextafter((scored.thresholds - slack).astype(np.float32), np.float32(-np.inf))
    return least, bool(sizes.max() < _SAFE)


def parts(scored: Scored, group: Group) -> tuple[bool, bool]:
    """Whether both sides have a dense part, and a lexical one."""
    if group.space is None:
        return False, False
    both_dense = bool(scored.space.dense and group.space.dense)
    return both_dense, bool(len(scored.terms) and group.space.sketch)


def _bound(length: int) -> float:
    """g(n) with room for the float64 roundings behind it."""
    unit = (length + 5) * 2.0**-24
    return unit / (1 - unit)
