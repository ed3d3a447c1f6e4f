"""The exact top k of some rows of the planes: a float32 pass with a certified error, then float64 on what is left.

    1. float32   every passing row's score s, and a bound e on its distance from the exact score
    2. certify   t = the k-th largest s - e; a row with s + e < t cannot be among the best k: the rest is a superset
    3. float64   the superset is rescored exactly (kernels/filtered_topk/reference.py), then put in the total order

The bound is the classical one for a dot product of length n in any order of summation, |error| <= g(n) |x| |q| with
g(n) = n u / (1 - n u) and u = 2^-24 (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1).

Where it stands: life-of-a-query.md, step 6.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from penstock.kernels.filtered_topk.reference import exact_dot
from penstock.retrieval.store.planes import QueryPlanes

BLOCK = 2_048  # rows converted to float32 at a time: 3 MB of 384 values, which stays in cache
RESCORE = 256  # rows rescored at a time: the float64 products stay in cache (a thousand at once take twice as long)
FEW_TERMS = 128  # up to so many lexical terms their columns are gathered; beyond, whole rows are cheaper
GATHER_BELOW = 0.3  # share of the rows that pass, below which they are gathered instead of scanning all

Rows = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Best:
    """The best rows in the total order, and both parts of their scores (float64)."""

    rows: Rows
    dense: Doubles
    lexical: Doubles
    rescored: int  # size of the certified superset


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
    candidates = rows if len(rows) <= k else rows[_superset(dense, sketch, norms, rows, query, k)]
    by_dense, by_term = _exact(dense, sketch, norms, candidates, query)
    order = np.lexsort((ties[candidates], -(by_dense + by_term)))[:k]
    return Best(candidates[order], by_dense[order], by_term[order], len(candidates))


def unscored(rows: Rows, ties: npt.NDArray[np.uint64], k: int) -> Best:
    """The first `k` of rows that all score 0, because nothing stored can be compared with the query."""
    if len(rows) > k:
        rows = rows[np.argpartition(ties[rows], k - 1)[:k]]
    top = rows[np.argsort(ties[rows])]
    return Best(top, np.zeros(len(top)), np.zeros(len(top)), 0)


def _superset(
    dense: torch.Tensor, sketch: torch.Tensor, norms: Doubles, rows: Rows, query: QueryPlanes, k: int
) -> npt.NDArray[np.bool_]:
    """bool [m]: the rows that may be among the best `k`. Every row that is, is in it, ties included."""
    approximate = _float32(dense, sketch, rows, query)
    sizes = norms[rows]
    slack = _bound(len(query.dense)) * float(np.linalg.norm(query.dense.astype(np.float64))) * sizes[:, 0]
    slack += _bound(len(query.terms)) * float(np.linalg.norm(query.weights.astype(np.float64))) * sizes[:, 1]
    # What the norms' own rounding, the sum of the parts and underflow in float32 can add.
    slack = slack * (1 + 1e-9) + (len(query.dense) + len(query.terms)) * 1e-37
    # A product that left float32's range says nothing: such a row is always rescored.
    lost = ~np.isfinite(approximate)
    lower = np.where(lost, -np.inf, approximate - slack)
    upper = np.where(lost, np.inf, approximate + slack)
    threshold = np.partition(lower, len(lower) - k)[len(lower) - k]
    candidates: npt.NDArray[np.bool_] = upper >= threshold
    return candidates


def _bound(length: int) -> float:
    """g(n) with room for the float64 roundings behind it."""
    unit = (length + 4) * 2.0**-24
    return unit / (1 - unit)


def _float32(dense: torch.Tensor, sketch: torch.Tensor, rows: Rows, query: QueryPlanes) -> Doubles:
    """Scores of `rows`, float64 [m] holding sums of two float32 dot products."""
    count = int(rows[-1]) + 1
    gather = len(rows) < GATHER_BELOW * count
    places = torch.from_numpy(rows)
    q_dense = torch.from_numpy(query.dense)
    terms, weights = torch.from_numpy(query.terms), torch.from_numpy(query.weights)
    few = len(query.terms) <= FEW_TERMS
    if not few:
        whole = torch.zeros(sketch.shape[1])
        whole[terms] = weights
        weights = whole
    out = np.empty(len(rows) if gather else count)
    for start in range(0, len(out), BLOCK):
        end = min(start + BLOCK, len(out))
        which = places[start:end] if gather else slice(start, end)
        score = (dense[which].float() @ q_dense).double()
        if len(terms):
            part = sketch[which]
            score += ((part[:, terms] if few else part).float() @ weights).double()
        out[start:end] = score.numpy()
    return out if gather else out[rows]


def _exact(
    dense: torch.Tensor, sketch: torch.Tensor, norms: Doubles, rows: Rows, query: QueryPlanes
) -> tuple[Doubles, Doubles]:
    """Both parts of the exact scores of `rows`, float64 [m] each. A part that a row does not have scores 0."""
    terms = torch.from_numpy(query.terms)
    parts = ((dense, torch.from_numpy(query.dense), None), (sketch, torch.from_numpy(query.weights), terms))
    out = (np.zeros(len(rows)), np.zeros(len(rows)))
    for part, (plane, values, columns) in enumerate(parts):
        scored = np.flatnonzero(norms[rows, part]) if len(values) else np.zeros(0, np.int64)
        for start in range(0, len(scored), RESCORE):
            some = scored[start : start + RESCORE]
            found = plane[torch.from_numpy(rows[some])]
            out[part][some] = exact_dot(found if columns is None else found[:, columns], values).numpy()
    return out
