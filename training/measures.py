"""What rankings are judged by: NDCG over the judged pool and recall of good postings in the whole corpus.

Gain 2^grade - 1 and ties broken by the pool's order, as in the judgements' README.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

GOOD = 3  # grades 3 and 4


@dataclass(frozen=True, slots=True)
class Measured:
    """Means over queries. NDCG@10 re-ranks the judged pool; recall is the share of all judged
    postings of grade >= 3 found at that depth of the whole corpus."""

    ndcg10: float
    recall50: float
    recall250: float
    queries: int

    def row(self) -> dict[str, float]:
        return {
            "ndcg10": round(self.ndcg10, 4),
            "recall50": round(self.recall50, 4),
            "recall250": round(self.recall250, 4),
            "queries": self.queries,
        }


def ndcg(grades: Sequence[int], scores: npt.ArrayLike, depth: int = 10) -> float:
    """NDCG of one pool ordered by falling score; 0 when nothing in it has a positive grade."""
    gains = np.exp2(np.asarray(grades, dtype=np.float64)) - 1
    discount = 1 / np.log2(np.arange(2, depth + 2))
    order = np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")[:depth]
    ideal = np.sort(gains)[::-1][:depth]
    best = float(ideal @ discount[: len(ideal)])
    return float(gains[order] @ discount[: len(order)]) / best if best > 0 else 0.0


def measure(
    scores: npt.NDArray[np.float32], pools: Sequence[npt.NDArray[np.int64]], grades: Sequence[Sequence[int]]
) -> Measured:
    """Scores [queries, corpus], each query's pool as corpus rows and its grades."""
    ndcgs: list[float] = []
    ranks: list[npt.NDArray[np.int64]] = []
    for row, pool, judged in zip(scores, pools, grades, strict=True):
        ndcgs.append(ndcg(judged, row[pool]))
        good = pool[np.asarray(judged) >= GOOD]
        ranks.append((row[None, :] > row[good][:, None]).sum(axis=1))
    rank = np.concatenate(ranks)
    return Measured(float(np.mean(ndcgs)), float((rank < 50).mean()), float((rank < 250).mean()), len(ndcgs))
