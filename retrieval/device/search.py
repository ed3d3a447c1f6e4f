"""Searches by vector on the device: what retrieval/search/scan.py answers on the host, to the bit.

    1. sort     which asks are the device's; of the rest it says why the host has to answer
    2. plan     filters by the host's zone maps: those that few rows pass, or that leave few blocks, are gathered, the
                others scanned
    3. batch    asks that see and let pass the same rows share a filter; 256 queries and 63 filters at most
    4. send     programs and operands: packed, one copy; queries, rounded and with their bounds
    5. launch   kernels/filtered_topk, on CUDA as a graph (graphs.py), or kernels/gather_topk, behind the writes of the
                newest epoch
    6. read     the best of each ask, cut to its own k; an ask with a score that kernels cannot settle is the host's

One batch at a time: the device is one, and its workspace is used over and over.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from triton.runtime.errors import OutOfResources

from penstock.kernels.filtered_topk.answer import Found
from penstock.kernels.filtered_topk.sampling import enough
from penstock.kernels.filtered_topk.triton import filtered_topk
from penstock.kernels.filtered_topk.tuning import tuning_for
from penstock.kernels.filtered_topk.workspace import Workspace
from penstock.kernels.gather_topk.triton import gather_topk
from penstock.kernels.int8_topk.triton import int8_topk
from penstock.kernels.slabs.batch import FILTERS, QUERIES, TERMS, Filters, Queries, Slabs
from penstock.retrieval.device.arenas import Arenas
from penstock.retrieval.device.backend import INT8, Backend, Claim
from penstock.retrieval.device.graphs import Capture, Graphs, captured
from penstock.retrieval.device.mirror import Mirror
from penstock.retrieval.device.programs import Compiled, compiled, joined
from penstock.retrieval.device.staging import Staging
from penstock.retrieval.search.plan import GATHER_BELOW, Choice
from penstock.retrieval.search.program import Overflow
from penstock.retrieval.search.scan import Best
from penstock.retrieval.store.errors import OutOfRoom
from penstock.retrieval.store.page import HASHED, Doubles
from penstock.retrieval.store.pages import Table
from penstock.retrieval.store.planes import QueryPlanes
from penstock.retrieval.store.reading import Scored, Sought
from penstock.retrieval.store.reading import plan as plan_of
from penstock.retrieval.store.zones import signature_bits

SAFE = 1e37  # of a query and a row, the product of their norms up to which no float32 product leaves its range
NO_TENANT = -2
LEAST_QUERIES = 16  # that a scan has a tile of
GATHERED = 16  # filters that are gathered together: each has tiles of queries of its own
LEAST_ROOM = 1_024 - 1  # of a list of rows that are gathered

TOO_WIDE = "its rows are wider than kernels take"
TOO_LARGE = "its values leave float32's range"
NO_VALUES = "its vector has no value"
UNSETTLED = "a score lies between two that float64 holds"
NO_MEMORY = "the device has no memory left"
NO_SHARED_MEMORY = "rows of this width do not fit into the device's shared memory"


@dataclass(frozen=True, slots=True)
class Answer:
    best: Best
    total: int  # rows that pass
    looked_at: int  # rows of the blocks that zone maps did not rule out, for some ask of its batch where it is a scan
    plan: Choice


@dataclass(frozen=True, slots=True)
class Filtered:
    """A filter of a batch. `expected`: rows that the plan thinks will pass, where they are to be gathered."""

    program: Compiled
    expected: int | None
    looked_at: int | None  # rows, as the plan has it; None: the device says so of the batch


class Device:
    """A store's: the mirror, which its writer owns, and searches, from any thread."""

    def __init__(self, backend: Backend, page_rows: int) -> None:
        self.mirror = Mirror(backend, page_rows)
        self._backend = backend
        self._lock = threading.Lock()  # over all below
        self._workspace = workspace_of(backend)
        self._graphs = self.graphs() if backend.is_cuda else None
        self._doubting = False
        self._staging = Staging(backend.device)
        self._stream = torch.cuda.Stream() if backend.is_cuda else None  # type: ignore[no-untyped-call]  # torch's

    def graphs(self, capture: Capture = captured) -> Graphs:
        quantised = self._backend.planes == INT8
        return Graphs(self._workspace, capture, self._backend.tunings, quantised=quantised)

    @property
    def name(self) -> str:
        return self._backend.name

    @property
    def nbytes(self) -> int:
        """The pages' arenas, and what searches use over and over."""
        return self.mirror.nbytes + self._workspace.nbytes

    def best_many(self, table: Table, overflow: Overflow, asks: Sequence[Scored]) -> list[Answer | str]:
        """The best of each ask, or why the host has to say. `table`: the one that the asks are pinned to."""
        arenas = table.arenas
        assert arenas is not None
        out: list[Answer | str] = [""] * len(asks)
        filters: dict[Sought, Filtered] = {}
        scanned: list[int] = []
        gathered: list[int] = []
        most_k = max((ask.k for ask in asks), default=0)
        for place, ask in enumerate(asks):
            reason = unfit(ask.query, self.mirror.norms) if takes(arenas.layout.width) else TOO_WIDE
            if reason:
                out[place] = reason
                continue
            known = filters.get(ask.sought)
            if known is None:
                known = filters[ask.sought] = _filtered(ask.sought, arenas, overflow, enough(most_k))
            (scanned if known.expected is None else gathered).append(place)
        for some, most in ((scanned, FILTERS - 1), (gathered, GATHERED)):
            for batch in batches([asks[place].sought for place in some], most):
                places = [some[at] for at in batch]
                theirs = {asks[place].sought: filters[asks[place].sought] for place in places}
                try:
                    answers = self._answers(arenas, theirs, [asks[place] for place in places])
                except (torch.OutOfMemoryError, OutOfRoom):
                    answers = [NO_MEMORY] * len(places)
                except OutOfResources:
                    answers = [NO_SHARED_MEMORY] * len(places)
                for place, answer in zip(places, answers, strict=True):
                    out[place] = answer
        return out

    def _answers(
        self, arenas: Arenas, filters: Mapping[Sought, Filtered], asks: Sequence[Scored]
    ) -> list[Answer | str]:
        """Of one batch: all scanned, or all gathered."""
        places = {one: place for place, one in enumerate(filters)}
        filter_of = [places[ask.sought] for ask in asks]
        queries = queries_of(arenas.layout.dense, [ask.query for ask in asks], filter_of)
        k, expected = max(ask.k for ask in asks), [one.expected for one in filters.values()]
        with self._launching():
            sent = filters_of(self._staging, filters)
            if None in expected:
                found = self._scanned(arenas.slabs, sent, queries, k)
                plan = Choice.DEVICE_SCAN
            else:
                room = room_of(max(one for one in expected if one is not None))
                found = self._gathered(arenas.slabs, sent, queries, k, room)
                plan = Choice.DEVICE_GATHER
            return _read(found, asks, filter_of, [one.looked_at for one in filters.values()], plan)

    def _scanned(self, slabs: Slabs, filters: Filters, queries: Queries, k: int) -> Found:
        found = None if self._graphs is None else self._graphs.answer(slabs, filters, queries, k)
        if found is None or self._doubting:
            search = int8_topk if self._backend.planes == INT8 else filtered_topk
            how: dict[str, Any] = {"workspace": self._workspace, "tunings": self._backend.tunings}
            return search(slabs, filters, queries, k, hashes=HASHED, doubted=self._doubting, **how)
        return found

    def _gathered(self, slabs: Slabs, filters: Filters, queries: Queries, k: int, room: int) -> Found:
        if self._doubting:  # lists are so long that they are seeded
            room = slabs.pages * slabs.layout.rows
        how: dict[str, Any] = {"workspace": self._workspace, "hashes": HASHED}
        return gather_topk(slabs, filters, queries, k, room=room, doubted=self._doubting, **how)

    @contextmanager
    def doubting(self) -> Iterator[None]:
        """Searches launch all that a search may: what asks again what was not proven, and seeds where there is room
        for them. For who compiles ahead, and nobody else searches meanwhile."""
        self._doubting = True
        try:
            yield
        finally:
            self._doubting = False

    @contextmanager
    def _launching(self) -> Iterator[None]:
        """Alone, in the stream of searches, behind all that the writer has sent."""
        with self._lock, self._backend.launching():
            if self._stream is None:
                yield
                return
            with torch.cuda.stream(self._stream):
                if self.mirror.written is not None:
                    self._stream.wait_event(self.mirror.written)
                yield


def _filtered(sought: Sought, arenas: Arenas, overflow: Overflow, seeded: int) -> Filtered:
    """Without a filter there is nothing to estimate: the device's own zone maps say what to look at.

    A scan samples the blocks of all its filters alike. One that leaves a small part of the store, of fewer rows than
    `seeded`, would have next to nothing in a sample of it all, and no threshold; a gather samples each list for itself.
    """
    program = compiled(sought.program, arenas.layout, overflow)
    if sought.program is None:
        return Filtered(program, None, None)
    planned = plan_of(sought.scope, sought.program)
    few = planned.choice in (Choice.GATHER, Choice.NOTHING)
    few = few or (planned.rows < seeded and planned.rows < GATHER_BELOW * planned.held)
    return Filtered(program, int(planned.share * planned.rows) if few else None, planned.rows)


def workspace_of(backend: Backend) -> Workspace:
    """Taken from the budget, which has it back when nobody holds it any more."""
    return Workspace(backend.device, functools.partial(Claim(backend.budget).resize, "what searches work in"))


@functools.cache
def takes(width: int) -> bool:
    """Whether a scan of rows so wide (padded) fits into a multiprocessor's memory."""
    try:
        tuning_for(width, LEAST_QUERIES, TERMS)
    except ValueError:
        return False
    return True


def room_of(expected: int) -> int:
    """Rows that a list has room for: twice what is expected, since an estimate is one."""
    return 1 << max(LEAST_ROOM, 2 * expected).bit_length()


def unfit(query: QueryPlanes, norms: Doubles) -> str:
    """Why a device cannot score this query; empty when it can. `norms`: the greatest of any row, dense and sketch.

    Kernels divide a query by a power of two so that its greatest term weight lies in [1/2, 1).
    """
    greatest = float(np.abs(query.weights).max()) if len(query.terms) else 0.0
    dense = query.dense.astype(np.float64)
    scale = math.ldexp(1.0, math.frexp(greatest)[1])
    sizes = np.sqrt(np.asarray([dense @ dense, np.square(query.weights.astype(np.float64)).sum()]))
    if not sizes.any():
        return NO_VALUES
    scaled = sizes / scale
    return "" if float(scaled @ norms) < SAFE and float(scaled.max()) < SAFE else TOO_LARGE


def batches(sought: Sequence[Sought], most: int) -> Iterator[list[int]]:
    """Places of asks that kernels take together, in order: of at most so many filters."""
    some: list[int] = []
    filters: set[Sought] = set()
    for place, one in enumerate(sought):
        if len(some) == QUERIES or (one not in filters and len(filters) == most):
            yield some
            some, filters = [], set()
        some.append(place)
        filters.add(one)
    if some:
        yield some


def filters_of(staging: Staging, filters: Mapping[Sought, Filtered]) -> Filters:
    """The distinct filters of a batch, on the device."""
    scopes = [one.scope for one in filters]
    whole, bounds = joined([one.program for one in filters.values()])
    tenants = np.asarray([NO_TENANT if one.tenant is None else one.tenant for one in scopes], np.int32)
    owners = signature_bits(tenants).view(np.int64)
    owners[tenants == NO_TENANT] = 0
    operands = whole.operands
    sent = staging.sent(
        (
            whole.steps,
            whole.marks,
            operands.codes,
            operands.numbers,
            operands.longs,
            bounds,
            np.asarray([one.pin.epoch for one in scopes], np.int64),
            np.asarray([one.now_ms for one in scopes], np.int64),
            tenants,
            owners,
        )
    )
    return Filters(*sent)


def queries_of(width: int, queries: Sequence[QueryPlanes], filter_of: Sequence[int]) -> Queries:
    """Of one batch, on the host."""
    dense = np.zeros((len(queries), width), np.float32)
    for line, query in zip(dense, queries, strict=True):
        line[:] = query.dense
    starts = np.cumsum([0, *(len(query.terms) for query in queries)]).astype(np.int32)
    terms = np.concatenate([query.terms for query in queries]).astype(np.int32)
    weights = np.concatenate([query.weights for query in queries]).astype(np.float32)
    arrays = (dense, starts, terms, weights, np.asarray(filter_of, np.int32))
    return Queries(*(torch.from_numpy(array) for array in arrays))


def _read(
    found: Found, asks: Sequence[Scored], filter_of: Sequence[int], looked_at: Sequence[int | None], plan: Choice
) -> list[Answer | str]:
    """Each ask's own of what came back. `looked_at`: of each filter, where its plan says it."""
    slots, dense, lexical = (one.numpy() for one in (found.slots, found.dense, found.lexical))
    counts, totals = found.counts.tolist(), found.totals.tolist()
    settled, rescored = found.settled.tolist(), found.rescored.tolist()
    out: list[Answer | str] = []
    for query, ask in enumerate(asks):
        if not settled[query]:
            out.append(UNSETTLED)
            continue
        mine = slice(0, min(counts[query], ask.k))
        best = Best(slots[query, mine], dense[query, mine], lexical[query, mine], rescored[query])
        looked = looked_at[filter_of[query]]
        looked = found.looked_at if looked is None else looked
        out.append(Answer(best, totals[filter_of[query]], looked, plan if looked else Choice.NOTHING))
    return out
