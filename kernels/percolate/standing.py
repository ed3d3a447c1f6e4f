"""The standing queries of one space in a device's memory: places of a thousand queries, in slabs that are added.

A place is what a writer replaces as a whole, as retrieval/percolate/blocks.py rebuilds a block; a slab is a number of
places allocated together. Growth adds a slab and a line to the table of their addresses: nothing is copied. The lowest
free place is taken, so that slabs empty out as queries go, and `trim` lets go of them.

State has one owner. Whoever puts and frees also launches the kernels, all on one stream: a launch sees every change
made before it, and none made after it.
"""

from __future__ import annotations

import heapq
from collections import Counter

import numpy as np
import numpy.typing as npt
import torch

from penstock.kernels.percolate.rows import Queries, RowLayout, encoded
from penstock.kernels.percolate.tuning import DEMANDS, PLACE, SLAB

NOBODY = -1  # the tenant of a row that holds no query
_LINE = 24  # bytes of a slab's line in the table

Codes = npt.NDArray[np.int32]


class Standing:
    """`slab` places are allocated at once. Not thread-safe: the owner has a lock, and a stream."""

    def __init__(self, layout: RowLayout, device: torch.device | str, *, slab: int = SLAB) -> None:
        self.layout = layout
        self.device = torch.device(device)
        self.slab = slab
        self.table = torch.empty((0, 3), dtype=torch.int64, device=self.device)  # addresses, as `triton.select` has it
        self._slabs: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None] = []  # None: let go of
        self._free: list[int] = []  # a heap

    @property
    def rows(self) -> int:
        """For how many queries there is room."""
        return sum(slab is not None for slab in self._slabs) * self.slab * PLACE

    @property
    def full(self) -> bool:
        """Whether the next `put` without a place allocates a slab."""
        return not self._free

    @property
    def slab_bytes(self) -> int:
        """Of device memory that one slab takes, its addresses included."""
        return self.slab * PLACE * (self.layout.stride + 4 + 4 * DEMANDS) + _LINE

    @property
    def nbytes(self) -> int:
        """Of device memory."""
        return self.table.nbytes + sum(part.nbytes for slab in self._slabs if slab is not None for part in slab)

    def put(self, queries: Queries, tenants: Codes, demands: Codes, place: int | None = None) -> int:
        """Writes queries into a free place, or into this one instead of what is there; returns its number.

        tenants int32 [n], demands int32 [k, n] with k at most DEMANDS: numbers of conditions, 0 for none.
        """
        count = len(queries)
        if count > PLACE:
            raise ValueError(f"{count} queries for a place of {PLACE}: give each thousand a place of its own")
        if tenants.shape != (count,) or demands.shape[1:] != (count,) or len(demands) > DEMANDS:
            raise ValueError(
                f"tenants {tenants.shape} and demands {demands.shape} of {count} queries: "
                f"expected ({count},) and (at most {DEMANDS}, {count})"
            )
        records = encoded(self.layout, queries)
        if place is None:
            place = self._taken()
        whose, what = torch.full((PLACE,), NOBODY, dtype=torch.int32), torch.zeros((DEMANDS, PLACE), dtype=torch.int32)
        whose[:count] = torch.from_numpy(tenants)
        what[: len(demands), :count] = torch.from_numpy(demands)
        there, inside = self._at(place)
        self._copy(records, there[0][inside * PLACE : inside * PLACE + count])
        self._copy(whose, there[1][inside])
        self._copy(what, there[2][inside])
        return place

    def free(self, place: int) -> None:
        """Nobody percolates it from the next launch on, unless it is named there."""
        there, inside = self._at(place)
        there[1][inside].fill_(NOBODY)
        heapq.heappush(self._free, place)

    def trim(self) -> None:
        """Lets go of the slabs that hold nobody but one: who comes and goes at a slab's edge moves no memory."""
        counts = Counter(place // self.slab for place in self._free)
        empty = sorted(slab for slab, count in counts.items() if count == self.slab)
        for slab in empty[1:]:
            self._slabs[slab] = None
        if empty[1:]:
            while self._slabs[-1] is None:
                self._slabs.pop()
            self._free = [place for place in self._free if place // self.slab not in empty[1:]]
            heapq.heapify(self._free)
            self._tabulate()

    def _at(self, place: int) -> tuple[tuple[torch.Tensor, torch.Tensor, torch.Tensor], int]:
        """The slab of a place that is there, and which of its places it is."""
        slab, inside = divmod(place, self.slab)
        there = self._slabs[slab]
        if there is None:
            raise ValueError(f"place {place}: its slab has been let go of, since nobody was in it")
        return there, inside

    def _taken(self) -> int:
        if not self._free:
            if None not in self._slabs:
                self._slabs.append(None)
            number = self._slabs.index(None)
            self._slabs[number] = self._allocated()
            self._tabulate()
            self._free.extend(range(number * self.slab, (number + 1) * self.slab))
        return heapq.heappop(self._free)

    def _allocated(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        places = self.slab
        records = torch.zeros((places * PLACE, self.layout.stride), dtype=torch.uint8, device=self.device)
        whose = torch.full((places, PLACE), NOBODY, dtype=torch.int32, device=self.device)
        what = torch.zeros((places, DEMANDS, PLACE), dtype=torch.int32, device=self.device)
        if records.data_ptr() % 32:
            raise ValueError(f"a slab at address {records.data_ptr()}: expected a multiple of 32")
        return records, whose, what

    def _tabulate(self) -> None:
        nowhere = [0] * (_LINE // 8)
        addresses = [nowhere if slab is None else [part.data_ptr() for part in slab] for slab in self._slabs]
        self.table = torch.tensor(addresses, dtype=torch.int64, device=self.device)

    def _copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        if self.device.type == "cuda":
            source = source.pin_memory()  # torch keeps it until the copy is done
        target.copy_(source, non_blocking=True)
