"""Exact filtered top-k over the pages of a live store: plan, seed, scan, finish, in a few launches and one answer.

    1. plan      zone maps say which blocks are live for some filter of the batch                         (scan.py)
    2. seed      a sample of the live blocks says how high a query's best k will very probably reach      (scan.py)
    3. scan      one pass over the live blocks appends every row that may be among a query's best         (scan.py)
    4. finish    the survivors are narrowed by their bounds, scored exactly, and put in the total order (finish.py)

Nothing waits for the host before the answer is copied: how many blocks are live, how many survive and which threshold
holds are all read from device memory by the next launch. With the answer comes whether it is proven: at least k rows
reach the threshold that others were left out by, and no survivor was dropped for want of room. Queries of which that
does not hold are asked again together, with what they learnt (answer.py; `reruns` counts them): a lower threshold that
is certain, or room for as many as there are.

The specification is reference.py; the launches run as they are on a CPU under Triton's interpreter.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from penstock.kernels.filtered_topk.answer import Found
from penstock.kernels.filtered_topk.autotune import Tunings, key_of, operator_of, quickest
from penstock.kernels.filtered_topk.prepare import prepared
from penstock.kernels.filtered_topk.run import INTERPRETED, Run
from penstock.kernels.filtered_topk.sampling import SAMPLED
from penstock.kernels.filtered_topk.tuning import Tuning, fitting
from penstock.kernels.filtered_topk.workspace import Workspace
from penstock.kernels.slabs.batch import Filters, Queries, Slabs

__all__ = ["INTERPRETED", "SAMPLED", "Found", "Run", "Tuning", "Workspace", "autotune", "filtered_topk"]


def filtered_topk(
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
    quantised: bool = False,
    doubted: bool = False,
) -> Found:
    """The exact best `k` rows of each query among those that pass its filter.

    `queries` on the host, `filters` on the slabs' device; `hashes` names the HASH column that orders equal scores. One
    live block in `sampled` seeds the thresholds, of few blocks more (sampling.py). `quantised`: by the int8 planes
    (kernels/int8_topk). `doubted`: every query is asked again (Run). Raises ValueError for a batch that is too large or
    has wrong shapes.
    """
    run = Run(
        slabs,
        filters,
        k,
        hashes,
        workspace=workspace,
        tuning=tuning,
        tunings=tunings,
        sampled=sampled,
        quantised=quantised,
        doubted=doubted,
    )
    return run.answer(prepared(queries, slabs.layout, quantised=quantised).to(slabs.table.device))


def autotune(
    slabs: Slabs,
    filters: Filters,
    queries: Queries,
    k: int,
    *,
    hashes: str,
    tunings: Tunings,
    quantised: bool = False,
    clock: Callable[[], float] | None = None,
) -> Tuning:
    """Runs the batch with every tuning that fits, and keeps the quickest for batches of its shape.

    `clock`: seconds, once all that was launched is done; None: the device's.
    """
    device = slabs.table.device
    ready = prepared(queries, slabs.layout, quantised=quantised).to(device)
    width, terms = slabs.layout.width, ready.terms.shape[0]
    workspace = Workspace(device)

    def run(tuning: Tuning) -> None:
        asked = Run(slabs, filters, k, hashes, workspace=workspace, tuning=tuning, quantised=quantised)
        asked.answer(ready)

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    found = quickest(list(fitting(width, ready.batch, terms, quantised=quantised)), run, clock or now)
    tunings.keep(key_of(operator_of(quantised), width, ready.batch, terms, device), found)
    return found
