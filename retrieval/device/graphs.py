"""Scans as CUDA graphs: one launch of what was captured, instead of a launch for each kernel.

A graph is captured for a bucket: queries padded to a power of two, terms to 0, 16, 64 or 256, filters and k likewise.
Its inputs lie in buffers of its own, which are filled anew for every batch; what is not there is nobody's: a filter
that no block can pass, a query whose filter does not exist. How many rows there are and where is read from device
memory, so rows that come, die and change disturb no graph. Only a page table that is replaced, because it was full or
the planes have another width, makes its graphs useless: they are captured again when they are asked for.

What is not proven is asked again outside of the graph, in memory of its own: the graph's stays where it is.

One thread at a time (the lock of retrieval/device/search.py).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import fields, replace

import torch

from penstock.kernels.filtered_topk.answer import Found, read
from penstock.kernels.filtered_topk.autotune import Tunings
from penstock.kernels.filtered_topk.prepare import Prepared, prepared
from penstock.kernels.filtered_topk.run import WIDEST, Run, Workspace, room_for
from penstock.kernels.slabs.batch import Filters, Queries, Slabs
from penstock.retrieval.store.page import HASHED

MOST = 8  # graphs that are kept, each with the memory that it works in; of more the one that rested longest goes
FILTERS = (1, 8, 63)
STEPS = 256  # of all programs of a batch, and operands of each kind: past them a batch is launched kernel by kernel
OPERANDS = 4_096
TERMS = 16_384  # of all queries of a batch

Capture = Callable[[Callable[[], None]], Callable[[], None]]


def captured(launch: Callable[[], None]) -> Callable[[], None]:
    """What launches again what `launch` does, in the current stream."""
    launch()  # what has to be compiled is, and what has to be allocated
    torch.cuda.current_stream().synchronize()
    graph = torch.cuda.CUDAGraph()
    # The store's writer may allocate meanwhile: only what this thread does must be fit for a capture.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        launch()
    return graph.replay


class Graphs:
    """Those of one store."""

    def __init__(self, device: torch.device, capture: Capture = captured, tunings: Tunings | None = None) -> None:
        self._capture, self._tunings = capture, tunings
        self._kept: OrderedDict[tuple[object, ...], _Graph] = OrderedDict()
        self._reruns = Workspace(device)
        self.captures = 0

    @property
    def nbytes(self) -> int:
        return self._reruns.nbytes + sum(graph.nbytes for graph in list(self._kept.values()))

    def answer(self, slabs: Slabs, filters: Filters, queries: Queries, k: int) -> Found | None:
        """As filtered_topk; `filters` on the device, `queries` on the host. None: too large for any bucket."""
        most = max(16, 1 << (k - 1).bit_length())
        if not fits(filters, queries) or room_for(most, slabs.pages * slabs.layout.rows) > WIDEST:
            return None
        ready = prepared(queries, slabs.layout).to(slabs.table.device)
        count = next(size for size in FILTERS if size >= filters.count)
        key = (id(slabs), ready.batch, len(ready.terms), count, most)
        graph = self._kept.get(key)
        if graph is None or graph.run.slabs is not slabs:
            for stale in [other for other, kept in self._kept.items() if kept.run.slabs is not slabs]:
                del self._kept[stale]
            while len(self._kept) >= MOST:
                self._kept.popitem(last=False)
            graph = self._kept[key] = _Graph(slabs, ready, count, most, filters, self._capture, self._tunings)
            self.captures += 1
        self._kept.move_to_end(key)
        return graph.answer(filters, ready, self._reruns)


def fits(filters: Filters, queries: Queries) -> bool:
    operands = max(len(filters.codes), len(filters.numbers), len(filters.longs))
    return len(filters.steps) <= STEPS and operands <= OPERANDS and len(queries.terms) <= TERMS


class _Graph:
    """One bucket's: buffers, and what was captured over them."""

    def __init__(
        self,
        slabs: Slabs,
        queries: Prepared,
        filters: int,
        k: int,
        given: Filters,
        capture: Capture,
        tunings: Tunings | None,
    ) -> None:
        device = slabs.table.device
        self._filters = Filters(
            **{
                one.name: torch.zeros(
                    (_places(one.name, filters), *getattr(given, one.name).shape[1:]),
                    dtype=getattr(given, one.name).dtype,
                    device=device,
                )
                for one in fields(Filters)
            }
        )
        blank = {
            one.name: torch.zeros_like(value, device=device)
            for one in fields(Prepared)
            if isinstance(value := getattr(queries, one.name), torch.Tensor)
        }
        for name in ("exact_terms", "exact_weights"):
            blank[name] = torch.zeros(TERMS, dtype=getattr(queries, name).dtype, device=device)
        self._queries = replace(queries, count=queries.batch, **blank)
        self.run = Run(slabs, self._filters, k, HASHED, tunings=tunings)
        self._workspace = self.run.workspace
        self._fill(given, queries)
        self._replay = capture(self._launch)

    @property
    def nbytes(self) -> int:
        return self._workspace.nbytes

    def answer(self, filters: Filters, queries: Prepared, reruns: Workspace) -> Found:
        self._fill(filters, queries)
        self._replay()
        self.run.workspace = reruns
        try:
            return read(self.run, replace(self._queries, count=queries.count), self._launched)
        finally:
            self.run.workspace = self._workspace

    def _launch(self) -> None:
        self._launched = self.run.launched(self._queries)

    def _fill(self, filters: Filters, queries: Prepared) -> None:
        """The buffers' contents for a batch. Past its filters there are some that no row passes."""
        count = filters.count
        for one in fields(Filters):
            given, buffer = getattr(filters, one.name), getattr(self._filters, one.name)
            buffer[: len(given)].copy_(given, non_blocking=True)
        self._filters.bounds[count + 1 :] = self._filters.bounds[count]
        self._filters.owners[count:] = 0
        self._filters.tenants[count:] = -2
        for one in fields(Prepared):
            buffer = getattr(self._queries, one.name)
            if isinstance(buffer, torch.Tensor):
                given = getattr(queries, one.name)
                buffer[: len(given)].copy_(given, non_blocking=True)


def _places(name: str, filters: int) -> int:
    """How many values a buffer of filters has room for."""
    if name in ("steps", "marks"):
        return STEPS
    if name in ("codes", "numbers", "longs"):
        return OPERANDS
    return filters + 1 if name == "bounds" else filters
