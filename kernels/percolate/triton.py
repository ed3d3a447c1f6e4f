"""Percolation on a device: the queries whose filters some posting passes, then of those the pairs that score enough.

    1. select  a program a place of 1,024 queries: of each query the bits of the postings that pass its filters, from
               small tables; the queries that any posting passes are appended to a list               (scan.py)
    2. match   persistent programs over tiles of that list: queries on the tensor cores' M axis, postings on N; pairs
               that pass and whose score may reach the query's threshold are appended to the result   (scan.py)

Nothing waits for the host. Both lengths stay on the device; the result's goes on counting past its capacity, so that
who reads it sees what room was needed, and runs again. What is found is a superset, certified by `rows.py`; who asked
scores it exactly. The specification is reference.py; on a CPU the launches run as they are in Triton's interpreter.
"""

from __future__ import annotations

import torch
import triton

from penstock.kernels.percolate import rows, tuning
from penstock.kernels.percolate.postings import Postings
from penstock.kernels.percolate.room import Room, Survivors
from penstock.kernels.percolate.scan import match, select
from penstock.kernels.percolate.standing import Standing
from penstock.kernels.percolate.tuning import DEMANDS, PLACE

INTERPRET = not isinstance(match, triton.JITFunction)  # TRITON_INTERPRET was set when this module was imported


def percolate(standing: Standing, places: torch.Tensor, batch: Postings, room: Room) -> Survivors:
    """The pairs of the queries in `places` (int32 [n], on the device, each once) and the batch's postings that pass and
    may reach the query's threshold: all that do, and some within twice the bound of `rows.py` below it.

    Launches two kernels on the current stream and waits for nothing.
    """
    layout = standing.layout
    if batch.dense.shape[1] != layout.width:
        raise ValueError(f"a batch of {batch.dense.shape[1]} values for records of {layout.width}: stage it for these")
    count = len(places)
    room.counters.zero_()
    if not count or not batch.count:
        return Survivors(room)
    rows_, slots, masks = room.listed(count * PLACE)
    select[(count,)](
        standing.table,
        places,
        batch.bits,
        batch.tenants,
        rows_,
        slots,
        masks,
        room.counters,
        STRIDE=layout.stride,
        SLAB=standing.slab,
        PLACE=PLACE,
        DEMANDS=DEMANDS,
        num_warps=tuning.SELECT_WARPS,
    )
    form = tuning.tuned(layout.width, layout.terms, batch.bucket)
    programs = min(_multiprocessors(standing.device) * form.ctas, count * (PLACE // tuning.TILE))
    match[(programs,)](
        rows_,
        slots,
        masks,
        room.counters,
        batch.dense,
        batch.sketches,
        batch.dense_norm,
        batch.lexical_norm,
        rows.floor(layout.width, layout.terms),
        room.slots,
        room.postings,
        room.scores,
        room.capacity,
        **form.constants(interpret=INTERPRET),
        num_warps=form.warps,
        num_stages=form.stages,
    )
    return Survivors(room)


def _multiprocessors(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).multi_processor_count)
    return 3  # of the interpreter, which runs one after the other: some, so that tiles are shared
