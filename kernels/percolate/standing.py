"""The standing queries of one space in a device's memory: places of a thousand queries, in slabs that are added.

A place is what a writer replaces as a whole, as retrieval/percolate/blocks.py rebuilds a block; a slab is a number of
places allocated together. Growth adds a slab and a line to the table of their addresses: nothing is copied.

State has one owner. Whoever puts and frees also launches the kernels, all on one stream: a launch sees every change
made before it, and none made after it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from penstock.kernels.percolate.rows import Queries, RowLayout, encoded
from penstock.kernels.percolate.tuning import DEMANDS, PLACE, SLAB

NOBODY = -1  # the tenant of a row that holds no query

Codes = npt.NDArray[np.int32]


class Standing:
    """`slab` places are allocated at once. Not thread-safe: the owner has a lock, and a stream."""

    def __init__(self, layout: RowLayout, device: torch.device | str, *, slab: int = SLAB) -> None:
        self.layout = layout
        self.device = torch.device(device)
        self.slab = slab
        self.table = torch.empty((0, 3), dtype=torch.int64, device=self.device)  # addresses, as `triton.select` has it
        self._slabs: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self._free: list[int] = []

    @property
    def rows(self) -> int:
        """For how many queries there is room."""
        return len(self._slabs) * self.slab * PLACE

    @property
    def nbytes(self) -> int:
        """Of device memory."""
        return self.table.nbytes + sum(part.nbytes for slab in self._slabs for part in slab)

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
        slab, inside = divmod(place, self.slab)
        there = self._slabs[slab]
        self._copy(records, there[0][inside * PLACE : inside * PLACE + count])
        self._copy(whose, there[1][inside])
        self._copy(what, there[2][inside])
        return place

    def free(self, place: int) -> None:
        """Nobody percolates it from the next launch on, unless it is named there."""
        slab, inside = divmod(place, self.slab)
        self._slabs[slab][1][inside].fill_(NOBODY)
        self._free.append(place)

    def _taken(self) -> int:
        if not self._free:
            places, first = self.slab, len(self._slabs) * self.slab
            records = torch.zeros((places * PLACE, self.layout.stride), dtype=torch.uint8, device=self.device)
            whose = torch.full((places, PLACE), NOBODY, dtype=torch.int32, device=self.device)
            what = torch.zeros((places, DEMANDS, PLACE), dtype=torch.int32, device=self.device)
            if records.data_ptr() % 32:
                raise ValueError(f"a slab at address {records.data_ptr()}: expected a multiple of 32")
            self._slabs.append((records, whose, what))
            addresses = [[part.data_ptr() for part in one] for one in self._slabs]
            self.table = torch.tensor(addresses, dtype=torch.int64, device=self.device)
            self._free.extend(reversed(range(first, first + places)))
        return self._free.pop()

    def _copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        if self.device.type == "cuda":
            source = source.pin_memory()  # torch keeps it until the copy is done
        target.copy_(source, non_blocking=True)
