"""Which (standing query, posting) pairs score enough: a float32 pass with a certified error, then float64.

    1. float32   a block's queries times a group's postings at once, and a bound e on every score's distance from the
                 exact one
    2. certify   a pair is left out only where its score + e is below the query's threshold
    3. float64   what filters leave of the rest is rescored exactly (kernels/filtered_topk/reference.py)

The bound is that of retrieval/search/scan.py (Higham, section 3.1), here of D + t + 1 terms added in any order: the
dense product is accumulated onto the lexical one.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from penstock.kernels.filtered_topk.reference import exact_dot
from penstock.retrieval.percolate.batch import Group
from penstock.retrieval.percolate.blocks import Scored
from penstock.retrieval.store.planes import Space

RESCORE = 256  # pairs rescored at a time: the float64 products stay in cache
_SAFE = 1e37  # |q| |p| below it: no product and no partial sum of theirs leaves float32's range

Pairs = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]


def comparable(query: Space, posting: Space | None) -> bool:
    """Whether an inner product of the two means anything. A part that one of them lacks scores 0."""
    if posting is None:
        return True
    widths = ((query.dense, posting.dense), (query.sketch, posting.sketch))
    return query.space_id == posting.space_id and all(not a or not b or a == b for a, b in widths)


def candidates(scored: Scored, group: Group) -> tuple[Pairs, Pairs]:
    """(rows of the block, rows of the group) of every pair that may reach the query's threshold; those that do are in.

    Call it with what is `comparable`.
    """
    by_dense, by_term = _parts(scored, group)
    if not by_dense and not by_term:
        rows = np.flatnonzero(scored.thresholds <= 0)
        count = len(group.places)
        return np.repeat(rows, count), np.tile(np.arange(count), len(rows))
    score = torch.zeros((len(scored.thresholds), len(group.places)))
    if by_term:
        score = torch.nn.functional.embedding_bag(
            scored.terms,
            group.table,
            scored.starts,
            mode="sum",
            per_sample_weights=scored.weights,
            include_last_offset=True,
        )
    if by_dense:
        score.addmm_(scored.dense, group.columns)
    sizes = scored.norms * np.asarray(group.norms)
    longest = int(np.diff(scored.starts.numpy()).max()) if by_term else 0
    terms = scored.space.dense * by_dense + longest
    slack = _bound(terms) * (sizes[:, 0] * by_dense + sizes[:, 1] * by_term)
    # What the norms' own rounding and underflow in float32 can add.
    slack = slack * (1 + 1e-9) + terms * 1e-37
    with np.errstate(over="ignore"):  # a threshold beyond float32 becomes infinite, and nextafter brings it back
        least = np.nextafter((scored.thresholds - slack).astype(np.float32), np.float32(-np.inf))
    keep = score >= torch.from_numpy(least)[:, None]
    if not sizes.max() < _SAFE:  # a product that left float32's range says nothing: such a pair is always rescored
        keep |= ~torch.isfinite(score)
    found = keep.nonzero().numpy()
    return np.ascontiguousarray(found[:, 0]), np.ascontiguousarray(found[:, 1])


def exact(scored: Scored, group: Group, rows: Pairs, columns: Pairs) -> tuple[Doubles, Doubles]:
    """Both parts of the exact scores of pairs, float64 [m] each. A part that either side lacks scores 0."""
    by_dense, by_term = _parts(scored, group)
    dense, lexical = np.zeros(len(rows)), np.zeros(len(rows))
    starts = scored.starts.numpy().astype(np.int64)
    for begin in range(0, len(rows), RESCORE):
        some = slice(begin, begin + RESCORE)
        mine, theirs = torch.from_numpy(rows[some]), torch.from_numpy(columns[some])
        if by_dense:
            dense[some] = exact_dot(group.dense[theirs], scored.dense[mine]).numpy()
        if by_term:
            first, counts = starts[rows[some]], starts[rows[some] + 1] - starts[rows[some]]
            offsets = np.arange(int(counts.max()))
            held = offsets < counts[:, None]
            places = torch.from_numpy(np.where(held, first[:, None] + offsets, 0))
            weights = torch.where(torch.from_numpy(held), scored.weights[places], 0.0)
            values = group.sketch[theirs[:, None], scored.terms[places].long()]
            lexical[some] = exact_dot(values, weights).numpy()
    return dense, lexical


def _parts(scored: Scored, group: Group) -> tuple[bool, bool]:
    """Whether both sides have a dense part, and a lexical one."""
    if group.space is None:
        return False, False
    both_dense = bool(scored.space.dense and group.space.dense)
    return both_dense, bool(len(scored.terms) and group.space.sketch)


def _bound(length: int) -> float:
    """g(n) with room for the float64 roundings behind it."""
    unit = (length + 5) * 2.0**-24
    return unit / (1 - unit)
