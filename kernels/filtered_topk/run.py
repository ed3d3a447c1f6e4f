"""The launches of a filtered top-k, for every form of it: dense or int8 planes, whole blocks or gathered rows. What the
steps are: triton.py beside this. What is done with what they leave: answer.py.

Nothing waits for the host before the answer is read: how many blocks are live, how many rows survive and which
threshold holds are read from device memory by the next launch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Self

import torch
import triton
from torch import Tensor

from penstock.kernels.filtered_topk import answer, finish, scan
from penstock.kernels.filtered_topk.answer import Found
from penstock.kernels.filtered_topk.autotune import Tunings, key_of, operator_of
from penstock.kernels.filtered_topk.prepare import Prepared, bucket, picked
from penstock.kernels.filtered_topk.result import Result
from penstock.kernels.filtered_topk.sampling import FINE, SAMPLED, Sampling, seed_rank
from penstock.kernels.filtered_topk.tuning import Tuning, select_warps, tuning_for
from penstock.kernels.filtered_topk.workspace import Workspace
from penstock.kernels.slabs.batch import FILTERS, Filters, Slabs
from penstock.kernels.slabs.layout import BLOCK, Layout

INTERPRETED = not isinstance(scan.scan, triton.JITFunction)

WIDEST = 16_384  # survivors that are narrowed in registers
RESCORED = 128 if INTERPRETED else 16  # rows that a program scores exactly
RANKED = 128 if INTERPRETED else 32  # rows whose places a program finds, and others that it compares at a time
RUN, SEEDS = 16, 4  # blocks whose rows are filtered before they are scored: of a scan, and of a seed, which has few
GATE = 4  # of them, how many at a time


def room_for(k: int, rows: int, sampled: int = SAMPLED) -> int:
    """Survivors that a query has room for: twice what its seed lets through and all where there is none, or every
    row."""
    wanted = max(1_024, FINE * k, 2 * sampled * seed_rank(k, sampled))
    return 1 << (min(wanted, max(rows, 64)) - 1).bit_length()


def started_for(k: int, capacity: int) -> int:
    """Rows of a query for which exact scores and ranks are started at once: about what is kept; more take turns."""
    return min(capacity, k + k // 2 + 64)


class Run:
    """One batch of filtered_topk. Launches in order on the current stream; `answer` waits for them once, at its end.
    `doubted`: every query is asked again, as if none had been proven, so that what that launches is compiled."""

    def __init__(
        self,
        slabs: Slabs,
        filters: Filters,
        k: int,
        hashes: str,
        *,
        workspace: Workspace | None = None,
        tuning: Tuning | None = None,
        tunings: Tunings | None = None,
        sampled: int = SAMPLED,
        quantised: bool = False,
        doubted: bool = False,
    ) -> None:
        if not 0 < filters.count < FILTERS:
            raise ValueError(f"{filters.count} filters: expected 1 to {FILTERS - 1} in a batch")
        if k < 1:
            raise ValueError(f"k {k}: expected at least 1")
        if quantised and not slabs.layout.quantised:
            raise ValueError("pages without an int8 plane: expected a layout made with quantised=True")
        self.slabs, self.filters, self.k = slabs, filters, k
        self.layout: Layout = slabs.layout
        self.hashes = self.layout.entry(hashes)
        self.device = slabs.table.device
        self.workspace = workspace or Workspace(self.device)
        self.asked, self.tunings = tuning, tunings
        self.sampled, self.quantised, self.doubted = sampled, quantised, doubted
        self.blocks = slabs.pages * self.layout.blocks

    def answer(self, queries: Prepared) -> Found:
        return answer.read(self, queries, self.launched(queries))

    def launched(self, queries: Prepared) -> Launched:
        """Plan, seed, scan and finish. Nothing is waited for, so a CUDA graph may capture it."""
        capacity = room_for(self.k, self.blocks * BLOCK, self.sampled)
        in_registers = capacity <= WIDEST
        self.result = Result.taken(self.workspace, queries.count, self.filters.count, self.k if in_registers else 0)
        self.tuning = self.tuned(queries)
        self.plan()
        tau = self.workspace.take("tau", (queries.batch,), torch.float32)
        self.seed(queries, tau, capacity)
        self.scan(queries, tau, self.result.totals, capacity)
        if in_registers:
            self.finish(queries, tau, capacity)
        return Launched(self.result, tau, capacity, in_registers)

    def tuned(self, queries: Prepared) -> Tuning:
        """How to launch the scan."""
        if self.asked is not None or INTERPRETED:
            return self.asked or Tuning()
        width, terms = self.layout.width, queries.terms.shape[0]
        kept = None
        if self.tunings is not None:
            key = key_of(operator_of(self.quantised), width, queries.batch, terms, self.device)
            kept = self.tunings.get(key)
        return kept or tuning_for(width, queries.batch, terms, quantised=self.quantised)

    def picked(self, queries: Prepared, which: Sequence[int]) -> tuple[Prepared, list[int]]:
        """Some queries as a batch of their own, and which they are: those asked for, perhaps with others of theirs."""
        return picked(queries, which, bucket(len(which))), list(which)

    # What is scanned: live blocks. A rerun may look at them in parts.
    unit = BLOCK  # rows of one of them, at most

    def units(self) -> int:
        """How many there are; waits for the device."""
        return int(self.counters[scan.LIVE])

    def part(self, asked: Prepared, first: int, last: int) -> Self:
        """This run of other queries over some of what is scanned: behind `launched`, and for `scan` alone."""
        part = copy(self)
        part.tuning = self.tuned(asked)
        part.live, part.live_bits = self.live[first:last], self.live_bits[first:last]
        part.counters = torch.tensor([last - first, 0], dtype=torch.int64, device=self.device)
        return part

    # --- launches --------------------------------------------------------------------------------------------------

    def plan(self) -> None:
        take, filters, blocks = self.workspace.take, self.filters, self.layout.blocks
        self.live = take("live", (self.blocks,), torch.int32)
        self.live_bits = take("live_bits", (self.blocks,), torch.int64)
        self.counters = self.result.counters.zero_()
        width = min(1_024, 1 << (blocks - 1).bit_length())
        scan.plan[(self.slabs.pages, triton.cdiv(blocks, width))](
            self.slabs.table,
            self.slabs.offsets,
            filters.steps,
            filters.marks,
            filters.numbers,
            filters.bounds,
            filters.nows,
            filters.owners,
            filters.count,
            self.live,
            self.live_bits,
            self.counters,
            BLOCKS=blocks,
            WIDTH=width,
            num_warps=4,
        )

    def seed(self, queries: Prepared, tau: Tensor, capacity: int) -> None:
        if self.blocks * BLOCK <= capacity:  # there is room for all
            tau.fill_(-math.inf)
            return
        every = self.workspace.take("unit_of", (queries.batch,), torch.int32).zero_()  # every query's are the same
        self.seeded(queries, tau, self.blocks, BLOCK, self.counters, every)

    def seeded(self, queries: Prepared, tau: Tensor, most: int, unit: int, units: Tensor, unit_of: Tensor) -> None:
        """Thresholds of what is there: units of so many rows, `most` of them; `units` and `unit_of` as `threshold`
        takes them."""
        sampling = Sampling(self.k, self.sampled, unit)
        maxima = self.workspace.take("maxima", (queries.batch, sampling.width(most)), torch.float32)
        self._scan(queries, tau, maxima=maxima)
        finish.threshold[(queries.count,)](
            maxima,
            units,
            unit_of,
            tau,
            maxima.shape[1],
            *sampling.ranks,
            SAMPLED=self.sampled,
            UNIT=unit,
            CHUNK=2_048,
            num_warps=8,
        )

    def scan(self, queries: Prepared, tau: Tensor, totals: Tensor, capacity: int) -> None:
        self.found = self.workspace.take("found", (queries.batch,), torch.int32).zero_()
        self.scores = self.workspace.take("scores", (queries.count, capacity), torch.float32)
        self.slots = self.workspace.take("slots", (queries.count, capacity), torch.int32)
        totals.zero_()
        self._scan(queries, tau, totals=totals)

    def _scan(
        self, queries: Prepared, tau: Tensor, *, maxima: Tensor | None = None, totals: Tensor | None = None
    ) -> None:
        filters, layout, tuning = self.filters, self.layout, self.tuning
        nothing = self.workspace.take("nothing", (1,), torch.int32)
        seed = maxima is not None
        tile = min(queries.batch, tuning.queries)
        run = SEEDS if seed else RUN
        programs = self.programs(triton.cdiv(self.blocks, run), queries.batch // tile)
        word = torch.int32 if filters.count < 32 else torch.int64
        arrays = layout.arrays
        scan.scan[(programs, queries.batch // tile)](
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
            filters.count,
            queries.vectors,
            queries.weights,
            queries.terms,
            queries.slack,
            queries.steps_of,
            queries.filter_of,
            tau,
            nothing if seed else self.found,
            tau if seed else self.scores,
            nothing if seed else self.slots,
            self.counters if totals is None else totals,
            tau if maxima is None else maxima,
            self.workspace.take(f"bits_{word.itemsize}", (programs * (queries.batch // tile), run, BLOCK), word),
            self.workspace.take("scratch_at", (programs * (queries.batch // tile), run, 2), torch.int64),
            arrays["quantised" if self.quantised else "dense"].offset,
            arrays["sketch"].offset,
            0 if seed else self.slots.shape[1],
            0 if maxima is None else maxima.shape[1],
            *Sampling(self.k, self.sampled, BLOCK).ranks[:2],
            queries.batch,
            BLOCKS=layout.blocks,
            D=layout.width,
            PIECE=tuning.piece(layout.width),
            L=layout.sketch,
            T=queries.terms.shape[0],
            BN=tile,
            TILE=tuning.tile,
            PARTS=tuning.parts,
            RUN=run,
            GATE=min(GATE, run),
            SINGLE=filters.count == 1,
            SEED=seed,
            SAMPLED=self.sampled,
            QUANTISED=self.quantised,
            STAGES=tuning.stages,
            INTERPRET=INTERPRETED,
            num_warps=tuning.warps,
        )

    def programs(self, most: int, tiles: int = 1) -> int:
        """How many programs a launch has for each of its tiles of queries: together as many as run at once.

        Tiles of queries then go through the blocks side by side, and all but the first find them in the L2 cache. A CPU
        runs programs one by one.
        """
        if self.tuning.programs:
            return min(self.tuning.programs, most)
        if INTERPRETED:
            return min(2, most)
        held = torch.cuda.get_device_properties(self.device).multi_processor_count * self.tuning.resident
        return max(1, min(held // tiles, most))

    def finish(self, queries: Prepared, tau: Tensor, capacity: int) -> None:
        """The best k of the survivors, in `result`."""
        status = self.result.status
        kept = self.workspace.take("kept", (queries.count, capacity), torch.int32)
        finish.select[(queries.count,)](
            self.slabs.table,
            self.slabs.offsets,
            self.scores,
            self.slots,
            self.found,
            tau,
            queries.slack,
            kept,
            self.result.reached,
            status,
            self.k,
            queries.batch,
            queries.steps_of[1],
            BLOCKS=self.layout.blocks,
            CAPACITY=capacity,
            QUANTISED=self.quantised,
            num_warps=select_warps(capacity),
        )
        likely = self.likely(queries, status, capacity)
        exact = self.rescored(queries, kept, status, likely)
        best = (self.result.slots, self.result.dense, self.result.lexical)
        finish.rank[(queries.count, triton.cdiv(likely, RANKED))](
            kept, status, *exact, *best, capacity, self.k, ROWS=RANKED, OTHERS=RANKED, num_warps=1
        )

    def rescored(
        self, queries: Prepared, kept: Tensor, status: Tensor, rows: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """dense, lexical float64, ties int64, near float32: [batch, capacity] each, of what was kept; programs are
        launched for so many `rows` of a query, and take more in turns."""
        take, shape, layout = self.workspace.take, tuple(kept.shape), self.layout
        dense, lexical = take("dense", shape, torch.float64), take("lexical", shape, torch.float64)
        ties, near = take("ties", shape, torch.int64), take("near", shape, torch.float32)
        column = min(64, layout.width) or 16
        finish.rescore[(queries.count, triton.cdiv(max(rows, 1), RESCORED))](
            self.slabs.table,
            self.slabs.offsets,
            queries.exact,
            queries.starts,
            queries.exact_terms,
            queries.exact_weights,
            kept,
            status,
            dense,
            lexical,
            ties,
            near,
            layout.arrays["dense"].offset,
            layout.arrays["sketch"].offset,
            self.hashes,
            shape[1],
            BLOCKS=layout.blocks,
            D=layout.width,
            L=layout.sketch,
            ROWS=RESCORED,
            WIDTH=column,
            LEVELS=column.bit_length() - 1,
            LINES=16,
            LINE_LEVELS=4,
            num_warps=8,
        )
        return dense, lexical, ties, near

    def likely(self, queries: Prepared, status: Tensor, capacity: int) -> int:
        """For how many rows of a query programs are launched: k and half as many more is about what is kept.

        A device is not waited for to know; a CPU, which starts programs one by one, is asked."""
        if INTERPRETED:
            return max(1, int(status[: queries.count, finish.KEPT].max()))
        return started_for(self.k, capacity)


@dataclass(frozen=True, slots=True)
class Launched:
    """A batch on its way. tau float32 [batch], the workspace's. `finished`: the result has the best k; else survivors
    may be too many to be narrowed in registers."""

    result: Result
    tau: Tensor
    capacity: int  # survivors that a query has room for
    finished: bool
