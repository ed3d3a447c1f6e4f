"""What a percolation must find and what it may find besides, in float64 with masks: the oracle of the kernels.

torch only, and nothing of how a device holds queries: no records, words, lists or tiles.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from penstock.kernels.filtered_topk.reference import exact_dot


@dataclass(frozen=True, slots=True)
class Case:
    """n standing queries and m postings, m at most 64."""

    dense: Tensor  # float32 [n, D]: of the queries
    lexical: Tensor  # float32 [n, L]
    thresholds: Tensor  # float64 [n]
    tenants: Tensor  # int64 [n]
    demands: Tensor  # int64 [k, n]: conditions that must all hold
    posting_dense: Tensor  # bfloat16 [m, D]
    posting_sketch: Tensor  # int8 [m, L]
    posting_tenants: Tensor  # int64 [m]
    holds: Tensor  # bool [conditions, m]; of condition 0 all


@dataclass(frozen=True, slots=True)
class Pairs:
    """bool [n, m] each."""

    must: Tensor  # passes and reaches its threshold
    may: Tensor  # passes and reaches it but for what bfloat16 queries can cost; contains `must`


def passing(case: Case) -> Tensor:
    """Which pairs pass the query's filters: bool [n, m]."""
    out = case.tenants[:, None] == case.posting_tenants[None, :]
    for demanded in case.demands:
        out = out & case.holds[demanded]
    return out


def scores(case: Case) -> Tensor:
    """float64 [n, m], each part the correctly rounded real sum."""
    count = len(case.posting_dense)
    out = torch.empty((len(case.dense), count), dtype=torch.float64)
    for row in range(len(case.dense)):
        out[row] = exact_dot(case.posting_dense, case.dense[row]) + exact_dot(case.posting_sketch, case.lexical[row])
    return out


def pairs(case: Case, terms: int) -> Pairs:
    """terms: how many of a query's a device holds; of a query with more, the others' norm is how far off it may be."""
    exact, passes = scores(case), passing(case)
    reached = exact >= case.thresholds[:, None]
    magnitudes = case.lexical.double().abs().sort(dim=1, descending=True).values
    rest = torch.linalg.vector_norm(magnitudes[:, terms:], dim=1)
    both = [
        torch.linalg.vector_norm(part.double(), dim=1)
        for part in (case.dense, case.lexical, case.posting_dense, case.posting_sketch)
    ]
    dense, sketch = (float(part.max()) if len(part) else 0.0 for part in both[2:])
    products = both[0] * dense + both[1] * sketch
    # Once where the score is off, once where the threshold is lowered; an eighth more for accumulation and float32.
    slack = 2.25 * (2.0**-9 * products + rest * sketch) + case.thresholds.abs() * 2.0**-20 + 1e-30
    near = exact >= (case.thresholds - slack)[:, None]
    beyond = (products > 1e33) | (case.dense.abs() > 3e38).any(dim=1) | (case.lexical.abs() > 3e38).any(dim=1)
    return Pairs(must=passes & reached, may=passes & (reached | near | beyond[:, None]))
