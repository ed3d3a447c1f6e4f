"""Measures which tuning of a scan is quickest on the device that is there, over pages of random rows, and keeps it.

The rows are drawn on the device: a store's own writer would take minutes to bring as many. What is kept, searches of
every process of this user take from then on (kernels/filtered_topk/autotune.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import torch

from penstock.kernels.filtered_topk.prepare import plane, term_bucket
from penstock.kernels.filtered_topk.triton import Tuning, autotune
from penstock.kernels.slabs.batch import Filters, Queries, Slabs
from penstock.kernels.slabs.layout import page_table
from penstock.retrieval.device.arenas import Arena, layout_of
from penstock.retrieval.device.backend import INT8, Backend
from penstock.retrieval.device.warmup import BATCHES, TERMS, Compiled
from penstock.retrieval.store.page import HASHED, PAGE_ROWS

PAGES = 32  # some two million rows: long enough for a launch not to count, and a few GB
FAR = 1 << 62


def tuned(
    backend: Backend,
    dense: int,
    sketch: int,
    k: int,
    batches: Sequence[int] = BATCHES,
    *,
    pages: int = PAGES,
    page_rows: int = PAGE_ROWS,
    clock: Callable[[], float] | None = None,
) -> Iterator[Compiled]:
    """A shape after the other, as it is done. Raises OutOfRoom where the device cannot hold the pages."""
    slabs, arenas = _drawn(backend, dense, sketch, pages, page_rows)
    for batch in batches:
        for terms in TERMS if sketch else TERMS[:1]:
            asked = min(terms, sketch)
            began = time.perf_counter()
            with backend.launching():
                found = autotune(
                    slabs,
                    _everything(backend.device),
                    _queries(batch, dense, asked),
                    k,
                    hashes=HASHED,
                    tunings=backend.tunings,
                    quantised=backend.planes == INT8,
                    clock=clock,
                )
            yield Compiled(f"{batch} queries, {term_bucket(asked)} terms: {_said(found)}", time.perf_counter() - began)
    del arenas  # held until here: the page table has only their addresses


def _drawn(backend: Backend, dense: int, sketch: int, pages: int, rows: int) -> tuple[Slabs, list[Arena]]:
    layout, arenas = layout_of(rows, dense, sketch, quantised=backend.planes == INT8), []
    g = torch.Generator(backend.device).manual_seed(1)
    for _ in range(pages):
        arena = Arena(backend, layout)
        arenas.append(arena)
        drawn = layout.view(arena.bytes, "dense")[:, :dense]
        drawn.normal_(std=max(dense, 1) ** -0.5, generator=g)
        if layout.quantised:
            values, scales = plane(layout.view(arena.bytes, "dense"))
            layout.view(arena.bytes, "quantised")[:], layout.view(arena.bytes, "scales")[:] = values, scales
        if sketch:
            layout.view(arena.bytes, "sketch").random_(-3, 4, generator=g)
        layout.view(arena.bytes, f"column.{HASHED}").random_(generator=g)
        for name, value in (("birth", 1), ("death", FAR), ("expires", FAR)):
            layout.view(arena.bytes, name).fill_(value)
        zones = {"rows": rows // layout.blocks, "expires_max": FAR, "tenants": 1}
        for name, value in zones.items():
            layout.view(arena.bytes, f"zone.{name}").fill_(value)
        norms = layout.view(arena.bytes, "zone.norms")
        norms[:, 0], norms[:, 1] = 2.0, 3.0 * max(sketch, 1) ** 0.5  # above any that are drawn
    table = page_table([arena.bytes for arena in arenas])
    return Slabs(layout, table, layout.offsets().to(backend.device)), arenas


def _everything(device: torch.device) -> Filters:
    def of(value: int, dtype: torch.dtype = torch.int64, count: int = 1) -> torch.Tensor:
        return torch.full((count,), value, dtype=dtype, device=device)

    return Filters(
        steps=torch.zeros(1, 10, dtype=torch.int32, device=device),
        marks=of(0),
        codes=of(0, torch.int32),
        numbers=torch.zeros(1, dtype=torch.float64, device=device),
        longs=of(0),
        bounds=of(0, torch.int32, 2),
        epochs=of(1),
        nows=of(0),
        tenants=of(0, torch.int32),
        owners=of(1),
    )


def _queries(count: int, dense: int, terms: int) -> Queries:
    g = torch.Generator().manual_seed(2)
    return Queries(
        dense=torch.randn(count, dense, generator=g),
        starts=torch.arange(count + 1, dtype=torch.int32) * terms,
        terms=torch.arange(terms, dtype=torch.int32).repeat(count),
        weights=torch.ones(count * terms) / max(terms, 1),
        filter_of=torch.zeros(count, dtype=torch.int32),
    )


def _said(tuning: Tuning) -> str:
    return f"tiles of {tuning.tile} rows by {tuning.queries} queries, {tuning.stages} stages, {tuning.warps} warps"
