"""Scans as CUDA graphs: one launch of what was captured, instead of a launch for each kernel.

A graph is captured for a bucket: queries padded to a power of two, terms to 0, 16, 64 or 256, filters and k likewise.
Its inputs lie in buffers, which are filled anew for every batch; what is not there is nobody's: a filter
that no block can pass, a query whose filter does not exist. How many rows there are and where is read from device
memory, so rows that come, die and change disturb no graph. Only a page table that is replaced, because it was full or
the planes have another width, makes its graphs useless: they are captured again when they are asked for.

All graphs work in one workspace, which is the searches' as well: replays never overlap, so it costs what the greatest
of them takes. A piece of it that had to grow lies elsewhere, and graphs that were captured before are captured again;
batches come in few sizes, so that ends soon.

One thread at a time (the lock of retrieval/device/search.py).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial

import torch

from penstock.kernels.filtered_topk.answer import Found, read
from penstock.kernels.filtered_topk.autotune import Tunings
from penstock.kernels.filtered_topk.prepare import Prepared, prepared, tensors_of
from penstock.kernels.filtered_topk.run import WIDEST, Run, room_for
from penstock.kernels.filtered_topk.workspace import Workspace
from penstock.kernels.slabs.batch import Filters, Queries, Slabs
from penstock.retrieval.store.page import HASHED

MOST = 32  # graphs that are kept; of more the one that rested longest goes
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

    def __init__(
        self,
        workspace: Workspace,
        capture: Capture = captured,
        tunings: Tunings | None = None,
        *,
        quantised: bool = False,
    ) -> None:
        self._workspace, self._capture, self._tunings, self._quantised = workspace, capture, tunings, quantised
        self._kept: OrderedDict[tuple[object, ...], _Graph] = OrderedDict()
        self.captures = 0

    def answer(self, slabs: Slabs, filters: Filters, queries: Queries, k: int) -> Found | None:
        """As filtered_topk; `filters` on the device, `queries` on the host. None: too large for any bucket."""
        most = max(16, 1 << (k - 1).bit_length())
        if not fits(filters, queries) or room_for(most, slabs.pages * slabs.layout.rows) > WIDEST:
            return None
        ready = prepared(queries, slabs.layout, quantised=self._quantised).to(slabs.table.device)
        count = next(size for size in FILTERS if size >= filters.count)
        key = (id(slabs), ready.batch, len(ready.terms), count, most)
        graph = self._kept.get(key)
        if graph is None or not graph.stands(slabs):
            self._let_go(slabs)
            while len(self._kept) >= MOST:
                self._kept.popitem(last=False)
            run = partial(Run, slabs, k=most, hashes=HASHED, tunings=self._tunings, quantised=self._quantised)
            graph = self._kept[key] = _Graph(run, ready, count, filters, self._workspace, self._capture)
            self.captures += 1
            self._let_go(slabs)  # of those whose memory this one moved: they would keep what is no longer counted
        self._kept.move_to_end(key)
        return graph.answer(filters, ready)

    def _let_go(self, slabs: Slabs) -> None:
        """Of what can no longer be replayed."""
        for stale in [key for key, kept in self._kept.items() if not kept.stands(slabs)]:
            del self._kept[stale]


def fits(filters: Filters, queries: Queries) -> bool:
    operands = max(len(filters.codes), len(filters.numbers), len(filters.longs))
    return len(filters.steps) <= STEPS and operands <= OPERANDS and len(queries.terms) <= TERMS


class _Graph:
    """One bucket's: buffers, and what was captured over them."""

    def __init__(
        self,
        run: Callable[..., Run],
        queries: Prepared,
        filters: int,
        given: Filters,
        workspace: Workspace,
        capture: Capture,
    ) -> None:
        def buffer(name: str, like: torch.Tensor, most: int, count: int) -> torch.Tensor:
            return workspace.take(f"asked.{name}", (most, *like.shape[1:]), like.dtype)[:count]

        of_filters = {
            one.name: buffer(
                one.name, getattr(given, one.name), _places(one.name, FILTERS[-1]), _places(one.name, filters)
            )
            for one in fields(Filters)
        }
        self._filters = Filters(**of_filters)
        of_queries = {}
        for name, like in tensors_of(queries).items():
            places = TERMS if name in ("exact_terms", "exact_weights") else len(like)
            of_queries[name] = buffer(f"queries.{name}", like, places, places)
        self._queries = replace(queries, count=queries.batch, **of_queries)
        self._run = run(filters=self._filters, workspace=workspace)
        self._fill(given, queries)
        self._replay = capture(self._launch)
        self._moved = workspace.moved  # captured once everything has its place

    def stands(self, slabs: Slabs) -> bool:
        """Whether it may be replayed: its rows are those asked for, and its memory is where it was."""
        return self._run.slabs is slabs and self._run.workspace.moved == self._moved

    def answer(self, filters: Filters, queries: Prepared) -> Found:
        self._fill(filters, queries)
        self._replay()
        return read(self._run, replace(self._queries, count=queries.count), self._launched)

    def _launch(self) -> None:
        self._launched = self._run.launched(self._queries)

    def _fill(self, filters: Filters, queries: Prepared) -> None:
        """The buffers' contents for a batch. Past its filters there are some that no row passes."""
        count = filters.count
        for one in fields(Filters):
            given, buffer = getattr(filters, one.name), getattr(self._filters, one.name)
            buffer[: len(given)].copy_(given, non_blocking=True)
        self._filters.bounds[count + 1 :] = self._filters.bounds[count]
        self._filters.owners[count:] = 0
        self._filters.tenants[count:] = -2
        for name, buffer in tensors_of(self._queries).items():
            value = getattr(queries, name)
            buffer[: len(value)].copy_(value, non_blocking=True)


def _places(name: str, filters: int) -> int:
    """How many values a buffer of filters has room for."""
    if name in ("steps", "marks"):
        return STEPS
    if name in ("codes", "numbers", "longs"):
        return OPERANDS
    return filters + 1 if name == "bounds" else filters
