"""The int8 plane of a store: what it holds, and that whoever scores by it finds what the rows themselves give.

A row is int8 * step + rest. An int8 score differs from the exact one by at most |rest of the row| * (|q| + |rest of the
query|) + |row| * |rest of the query| (Cauchy and Schwarz), so rows whose int8 score plus that bound reaches the
threshold are a superset of the best: the oracle is filtered_topk's, of the bfloat16 rows, and the ids are identical.
"""

from __future__ import annotations

from penstock.kernels.filtered_topk.prepare import plane
from penstock.kernels.filtered_topk.reference import filtered_topk as int8_topk

__all__ = ["int8_topk", "plane"]
