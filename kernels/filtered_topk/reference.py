"""Exact filtered top-k over two planes: the specification that every kernel and scan is held to. torch only.

    score(row, query) = fl(dense . q_dense) + fl(sketch . q_lexical)

Each dot product is the correctly rounded float64 of the real sum over the stored values: a bfloat16 or int8 times a
float32 is exact in float64, and the sum is compensated. So a score is a function of the row's and the query's bits
alone, never of the row's position, the batch or the order of summation, and equal rows tie exactly.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def exact_dot(rows: Tensor, query: Tensor) -> Tensor:
    """The inner product of each row with the query, correctly rounded: float64 [m].

    rows [m, d] bfloat16, int8 or float32; query float32 [d], or [m, d] with one a row. A tree of error-free additions
    (Knuth's TwoSum), the errors summed beside it. Where what their own sum may lack decides how the result is rounded,
    math.fsum does: sums next to half-way between two float64 are not rare, since few bits take part. Values that are
    not finite, or whose products leave float64's range, are the caller's to refuse.
    """
    terms = (rows.to(torch.float64) * query.to(torch.float64)).T.contiguous()  # [d, m]: one term a line
    if terms.shape[0] == 0:
        return torch.zeros(rows.shape[0], dtype=torch.float64, device=rows.device)
    products = terms
    errors = torch.zeros(terms.shape[1], dtype=torch.float64, device=terms.device)
    while terms.shape[0] > 1:
        half = terms.shape[0] // 2
        a, b = terms[:half], terms[half : 2 * half]
        total = a + b
        virtual = total - a
        errors = errors + ((a - (total - virtual)) + (b - virtual)).sum(0)
        terms = total if terms.shape[0] % 2 == 0 else torch.cat((total, terms[2 * half :]))
    found = terms[0] + errors
    # Fewer than d errors, each at most 2^-53 of the sum of magnitudes, in any order of summation.
    lacking = products.abs().sum(0) * (len(products) ** 2 * 2.0**-105)
    doubtful = (terms[0] + (errors - lacking) != found) | (terms[0] + (errors + lacking) != found)
    for row in doubtful.nonzero().flatten().tolist():
        found[row] = math.fsum(products[:, row].tolist())
    return found


def filtered_topk(
    dense: Tensor,
    sketch: Tensor,
    q_dense: Tensor,
    q_lexical: Tensor,
    passes: Tensor,
    ties: Tensor,
    k: int,
) -> tuple[Tensor, Tensor]:
    """The best `k` rows of each query among those that pass: scores float64 [B, k] and row indices int64 [B, k].

    dense     bfloat16 [N, D]      sketch     int8 [N, L]
    q_dense   float32  [B, D]      q_lexical  float32 [B, L]
    passes    bool [N], or [B, N] where each query has a filter of its own
    ties      int64 [N], distinct: of equal scores the smaller comes first

    Best first. Where fewer than `k` rows pass, the rest is -inf and -1.
    """
    batch, count = q_dense.shape[0], dense.shape[0]
    scores = torch.full((batch, k), -torch.inf, dtype=torch.float64, device=dense.device)
    index = torch.full((batch, k), -1, dtype=torch.int64, device=dense.device)
    for query in range(batch):
        passing = passes[query] if passes.dim() == 2 else passes
        rows = torch.arange(count, device=dense.device)[passing]
        found = exact_dot(dense[rows], q_dense[query]) + exact_dot(sketch[rows], q_lexical[query])
        by_tie = torch.argsort(ties[rows], stable=True)
        order = by_tie[torch.argsort(found[by_tie], descending=True, stable=True)][:k]
        scores[query, : len(order)] = found[order]
        index[query, : len(order)] = rows[order]
    return scores, index
