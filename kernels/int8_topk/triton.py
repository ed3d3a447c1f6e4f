"""Exact filtered top-k by way of an int8 copy of the dense plane: half the bytes of a scan, the same ids and scores.

The scan (kernels/filtered_topk/scan.py, QUANTISED) multiplies int8 rows with int8 queries on the tensor cores, exactly,
in int32, and widens each row's bound by what its own rounding lost (reference.py). What may be among a query's best is
a few rows more than by bfloat16; they are scored from the bfloat16 rows as always.
"""

from __future__ import annotations

from penstock.kernels.filtered_topk.answer import Found
from penstock.kernels.filtered_topk.autotune import Tunings
from penstock.kernels.filtered_topk.prepare import prepared
from penstock.kernels.filtered_topk.run import SAMPLED, Run
from penstock.kernels.filtered_topk.tuning import Tuning
from penstock.kernels.filtered_topk.workspace import Workspace
from penstock.kernels.slabs.batch import Filters, Queries, Slabs


def int8_topk(
    slabs: Slabs,
    filters: Filters,
    queries: Queries,
    k: int,
    *,
    hashes: str,
    workspace: Workspace | None = None,
    tuning: Tuning | None = None,
    tunings: Tunings | None = None,
    sampled: int = SAMPLED,
    doubted: bool = False,
) -> Found:
    """As `filtered_topk`, of pages whose layout is `quantised`. Raises ValueError for others."""
    run = Run(
        slabs,
        filters,
        k,
        hashes,
        workspace=workspace,
        tuning=tuning,
        tunings=tunings,
        sampled=sampled,
        quantised=True,
        doubted=doubted,
    )
    return run.answer(prepared(queries, slabs.layout, quantised=True).to(slabs.table.device))
