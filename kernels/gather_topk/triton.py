"""Exact top-k of selective filters: the rows that pass are listed first, and nothing of any other is read.

    1. plan      zone maps say which blocks are live for some filter of the batch      (filtered_topk/scan.py)
    2. collect   the clause programs over their rows: a list of slots for each filter  (gather.py)
    3. seed      a sample of each list says how high its queries' best k reach         (gather.py)
    4. gather    the listed rows are scored, and what may be among the best appended   (gather.py)
    5. finish    as of a scan                                                          (filtered_topk/finish.py)

Cheaper than a scan while a filter lets through less than some three rows in ten: a gathered row costs its own bytes and
an address, a scanned one its bytes alone, and the queries of a filter share what is read. `room` is how long a list may
get; a list that would be longer is made again with room for all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from typing import Self

import torch
import triton
from torch import Tensor

from penstock.kernels.filtered_topk.answer import Found
from penstock.kernels.filtered_topk.prepare import NOBODY, Prepared, picked, prepared
from penstock.kernels.filtered_topk.run import INTERPRETED, Run
from penstock.kernels.filtered_topk.sampling import SAMPLED, Sampling
from penstock.kernels.filtered_topk.tuning import Tuning
from penstock.kernels.filtered_topk.workspace import Workspace
from penstock.kernels.gather_topk import gather
from penstock.kernels.gather_topk.tuning import MOST_TERMS, QUERIES, gather_tuning
from penstock.kernels.slabs.batch import Filters, Queries, Slabs
from penstock.kernels.slabs.layout import BLOCK, Layout

ROOM = 1 << 20  # rows of a list, to begin with


def gather_topk(
    slabs: Slabs,
    filters: Filters,
    queries: Queries,
    k: int,
    *,
    hashes: str,
    workspace: Workspace | None = None,
    tuning: Tuning | None = None,
    sampled: int = SAMPLED,
    room: int = ROOM,
    doubted: bool = False,
) -> Found:
    """As `filtered_topk`. `room`: rows of a filter's list, about as many as are expected to pass."""
    run = _Gather(
        slabs, filters, k, hashes, workspace=workspace, tuning=tuning, sampled=sampled, room=room, doubted=doubted
    )
    arranged, places = by_filter(queries, QUERIES)
    ready = tiled(arranged, slabs.layout).to(slabs.table.device)
    while True:
        found = run.answer(ready)
        longest = int(found.totals.max())
        if longest <= run.room:
            break
        run.room = 1 << (longest - 1).bit_length()
    by_query = ("slots", "dense", "lexical", "counts", "settled", "rescored")
    return replace(found, **{name: getattr(found, name)[places] for name in by_query})


def by_filter(queries: Queries, tile: int) -> tuple[Queries, Tensor]:
    """The queries in tiles that share a filter each, filled up with nobody's; and where each one went (int64 [B])."""
    order = torch.argsort(queries.filter_of, stable=True)
    _, counts = torch.unique_consecutive(queries.filter_of[order], return_counts=True)
    wide = -(-counts // tile) * tile
    begins = torch.cumsum(wide, 0) - wide
    within = torch.arange(queries.count) - torch.repeat_interleave(torch.cumsum(counts, 0) - counts, counts)
    places = torch.empty(queries.count, dtype=torch.int64)
    places[order] = torch.repeat_interleave(begins, counts) + within
    total = int(wide.sum())
    dense = torch.zeros(total, queries.dense.shape[1])
    dense[places] = queries.dense
    filter_of = torch.full((total,), NOBODY, dtype=torch.int32)
    filter_of[places] = queries.filter_of.to(torch.int32)
    lengths = torch.zeros(total, dtype=torch.int64)
    own = queries.starts.long().diff()
    lengths[places] = own
    starts = torch.zeros(total + 1, dtype=torch.int32)
    starts[1:] = torch.cumsum(lengths, 0)
    # Of each term its new place: where its query's begin now, and its number among them.
    owners = torch.repeat_interleave(torch.arange(queries.count), own)
    moved = starts.long()[places[owners]] + torch.arange(len(owners)) - queries.starts.long()[owners]
    terms, weights = torch.empty_like(queries.terms), torch.empty_like(queries.weights)
    terms[moved], weights[moved] = queries.terms, queries.weights
    return Queries(dense, starts, terms, weights, filter_of), places


def tiled(arranged: Queries, layout: Layout) -> Prepared:
    """The queries prepared tile by tile, each with terms of its own: `terms` int32 [tiles, T]."""
    parts = []
    for begin in range(0, arranged.count, QUERIES):
        first, last = (int(arranged.starts[at]) for at in (begin, begin + QUERIES))
        some = slice(begin, begin + QUERIES)
        some_queries = Queries(
            arranged.dense[some],
            arranged.starts[begin : begin + QUERIES + 1] - first,
            arranged.terms[first:last],
            arranged.weights[first:last],
            arranged.filter_of[some],
        )
        parts.append(prepared(some_queries, layout, batch=QUERIES, most=MOST_TERMS))
    terms = max(part.terms.shape[0] for part in parts)
    wide = [part.terms.new_zeros(terms) for part in parts]
    weights = [part.weights.new_zeros(QUERIES, terms) for part in parts]
    for part, line, held in zip(parts, wide, weights, strict=True):
        count = part.terms.shape[0]
        line[:count], held[:, :count] = part.terms, part.weights
    return Prepared(
        count=arranged.count,
        vectors=torch.cat([part.vectors for part in parts]),
        steps_of=torch.cat([part.steps_of for part in parts], 1),
        weights=torch.cat(weights),
        terms=torch.stack(wide),
        slack=torch.cat([part.slack for part in parts], 1),
        filter_of=torch.cat([part.filter_of for part in parts]),
        exact=torch.cat([part.exact for part in parts]),
        starts=arranged.starts,
        exact_terms=arranged.terms,
        exact_weights=arranged.weights,
    )


class _Gather(Run):
    """A batch whose rows are listed by filter before they are scored."""

    def __init__(
        self,
        slabs: Slabs,
        filters: Filters,
        k: int,
        hashes: str,
        *,
        workspace: Workspace | None,
        tuning: Tuning | None,
        sampled: int,
        room: int,
        doubted: bool = False,
    ) -> None:
        super().__init__(
            slabs, filters, k, hashes, workspace=workspace, tuning=tuning, sampled=sampled, doubted=doubted
        )
        self.room = room

    def tuned(self, queries: Prepared) -> Tuning:
        return self.asked or gather_tuning(self.layout.width, queries.terms.shape[1])

    def picked(self, queries: Prepared, which: Sequence[int]) -> tuple[Prepared, list[int]]:
        """Whole tiles, whose queries share a filter and terms."""
        tiles = sorted({query // QUERIES for query in which})
        rows = [tile * QUERIES + at for tile in tiles for at in range(QUERIES)]
        terms = queries.terms[torch.tensor(tiles, device=self.device)]
        return replace(picked(queries, rows, len(rows)), terms=terms), rows

    unit = 1  # what is scanned are the lists' rows

    def units(self) -> int:
        return min(int(self.lengths.max()), self.room)

    def part(self, asked: Prepared, first: int, last: int) -> Self:
        part = copy(self)
        part.lists = self.lists[:, first:last]  # its rows are `room` apart as before
        part.lengths = (self.lengths - first).clamp_(min=0, max=last - first)
        return part

    def plan(self) -> None:
        super().plan()
        filters, count = self.filters, self.filters.count
        self.room = min(self.room, self.blocks * BLOCK)
        self.lists = self.workspace.take("lists", (count, self.room), torch.int32)
        self.lengths = self.workspace.take("lengths", (count,), torch.int64).zero_()
        gather.collect[(self.programs(self.blocks),)](
            self.slabs.table,
            self.slabs.offsets,
            self.live,
            self.live_bits,
            self.counters,
            filters.steps,
            filters.codes,
            filters.numbers,
            filters.longs,
            filters.bounds,
            filters.epochs,
            filters.nows,
            filters.tenants,
            count,
            self.lists,
            self.lengths,
            self.room,
            BLOCKS=self.layout.blocks,
            num_warps=4,
        )

    def seed(self, queries: Prepared, tau: Tensor, capacity: int) -> None:
        if self.room <= capacity:  # there is room for all of any list
            tau.fill_(-math.inf)
            return
        tile = self.tuning.tile
        tiles = (self.lengths.clamp(max=self.room) + tile - 1) // tile
        tiles = torch.nn.functional.pad(tiles, (0, 1))  # nobody's list, which has none
        which = queries.filter_of.clamp(max=self.filters.count)
        self.seeded(queries, tau, triton.cdiv(self.room, tile), tile, tiles, which)

    def _scan(
        self, queries: Prepared, tau: Tensor, *, maxima: Tensor | None = None, totals: Tensor | None = None
    ) -> None:
        self._gather(queries, tau, maxima)
        if totals is not None:
            totals.copy_(self.lengths)

    def _gather(self, queries: Prepared, tau: Tensor, maxima: Tensor | None) -> None:
        layout, tuning, seed = self.layout, self.tuning, maxima is not None
        nothing = self.workspace.take("nothing", (1,), torch.int32)
        programs = self.programs(triton.cdiv(self.room, tuning.tile), queries.batch // tuning.queries)
        gather.gather[(programs, queries.batch // tuning.queries)](
            self.slabs.table,
            self.slabs.offsets,
            self.lists,
            self.lengths,
            self.room,
            queries.vectors,
            queries.weights,
            queries.terms,
            queries.slack,
            queries.filter_of,
            tau,
            nothing if seed else self.found,
            tau if seed else self.scores,
            nothing if seed else self.slots,
            tau if maxima is None else maxima,
            layout.arrays["dense"].offset,
            layout.arrays["sketch"].offset,
            0 if seed else self.slots.shape[1],
            0 if maxima is None else maxima.shape[1],
            *Sampling(self.k, self.sampled, tuning.tile).ranks[:2],
            queries.batch,
            BLOCKS=layout.blocks,
            D=layout.width,
            PIECE=tuning.piece(layout.width),
            L=layout.sketch,
            T=queries.terms.shape[1],
            BN=tuning.queries,
            TILE=tuning.tile,
            PARTS=tuning.parts,
            SEED=seed,
            SAMPLED=self.sampled,
            STAGES=tuning.stages,
            INTERPRET=INTERPRETED,
            num_warps=tuning.warps,
        )
