"""Exact filtered top-k by way of an int8 copy of the dense plane: half the bytes of a scan, the same ids and scores.

The scan (kernels/filtered_topk/scan.py, QUANTISED) multiplies int8 rows with int8 queries on the tensor cores, exactly,
in int32, and widens each row's bound by what its own rounding lost (reference.py). What may be among a query's best is
a few rows more than by bfloat16; they are scored from the bfloat16 rows as always.
"""

from __future__ import annotations

from functools import partial

from penstock.kernels.filtered_topk.triton import filtered_topk

# As `filtered_topk`, of pages whose layout is `quantised`. Raises ValueError for others.
int8_topk = partial(filtered_topk, quantised=True)
