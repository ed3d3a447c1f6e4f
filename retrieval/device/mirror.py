"""The device's copy of what a search reads. The host's pages are the truth; this follows them, a step ahead of readers.

    grow, widen    a page more, or planes of another width: before the host's page table says so
    live           rows of the next epoch and the deaths in it, before that epoch is published
    empty          rows that nobody can see any more
    narrow         zone maps made exact again
    fill           everything, after a restore

**Why it may be written while it is read.** A row has its birth and death epochs, and a reader an epoch that is
published: whatever the order in which parts of the next epoch arrive, a row of it is not seen, and a row that dies in
it still is. A zone map takes a row in before the row is born. A row is written over only once no reader is pinned to an
epoch that saw it.

**Who waits.** Writes go to a stream of their own, and each leaves an event in `written`. A search lets its stream wait
for that event, which stands there before the epoch is published: nobody waits on the host.

Owned by the store's one writer, whose thread alone calls these; readers look at `written`, `norms` and `nbytes`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from penstock.kernels.slabs.layout import BLOCK, Layout
from penstock.retrieval.device.arenas import Arena, Arenas, arenas, layout_of, page_bytes
from penstock.retrieval.device.backend import INT8, Backend
from penstock.retrieval.device.scatter import BLOCKS, STEP, Indexed, Scatter, Writes
from penstock.retrieval.device.values import Values, of_blocks, of_rows
from penstock.retrieval.store.page import NEVER, Doubles, Longs, split
from penstock.retrieval.store.pages import Table

_NONE = np.zeros(0, np.int64)


class Mirror:
    """One store's. `arenas`: the newest; a page table holds those of its own moment."""

    def __init__(self, backend: Backend, page_rows: int) -> None:
        self.backend = backend
        self.written: torch.cuda.Event | None = None
        self.norms: Doubles = np.zeros(2)  # the greatest of any row that somebody may see: dense, sketch
        self._norms: list[npt.NDArray[np.float32]] = []  # of each page, by block
        self._stream = torch.cuda.Stream() if backend.is_cuda else None  # type: ignore[no-untyped-call]  # torch's
        with self._writing():
            self.arenas = arenas(backend, layout_of(page_rows, 0, 0, quantised=backend.planes == INT8), ())
            self._writes = self._made(self.arenas.layout)

    @property
    def nbytes(self) -> int:
        return self.arenas.nbytes

    def _layout(self, dense: int, sketch: int) -> Layout:
        return replace(self.arenas.layout, dense=dense, sketch=sketch)

    # --- pages ---------------------------------------------------------------------------------------------------

    def admit(self, dense: int, sketch: int) -> None:
        """Raises OutOfRoom where another page, its planes of these widths, does not fit."""
        layout = self._layout(dense, sketch)
        self.backend.budget.admit(f"a page of {layout.rows:,} rows on the device", page_bytes(layout))

    def admit_wider(self, dense: int, sketch: int) -> None:
        """Raises OutOfRoom where the pages with planes of these widths do not fit beside those there are."""
        layout = self._layout(dense, sketch)
        if layout != self.arenas.layout:
            needed = len(self.arenas.pages) * page_bytes(layout)
            self.backend.budget.admit("planes of another width on the device", needed)

    def grow(self, dense: int, sketch: int) -> Arenas:
        """With an empty page more, its planes of these widths: those of all pages, if there are any. Raises OutOfRoom
        before anything is allocated."""
        layout = self._layout(dense, sketch)
        with self._writing():
            page = Arena(self.backend, layout)
            if layout != self.arenas.layout:
                self._writes = self._made(layout)
            self.arenas = arenas(self.backend, layout, (*self.arenas.pages, page), self.arenas)
        self._norms.append(np.zeros((layout.blocks, 2), np.float32))
        return self.arenas

    def widen(self, dense: int, sketch: int) -> Arenas:
        """With planes of these widths: those of another width are made anew, empty, all else is copied on the device.
        Raises OutOfRoom, and then all is as it was."""
        before, layout = self.arenas, self._layout(dense, sketch)
        if layout == before.layout:
            return before
        self.admit_wider(dense, sketch)
        with self._writing():
            pages = [Arena(self.backend, layout) for _ in before.pages]
            for number, page in enumerate(pages):
                for name, array in layout.arrays.items():
                    kept = before.layout.arrays[name]
                    if (kept.dtype, kept.shape) == (array.dtype, array.shape):
                        layout.view(page.bytes, name).copy_(before.view(number, name))
            self.arenas = arenas(self.backend, layout, pages)
            self._writes = self._made(layout)
        return self.arenas

    # --- rows ----------------------------------------------------------------------------------------------------

    def live(self, table: Table, born: Longs, dying: Longs, epoch: int) -> None:
        """Rows filled and taken into their zone maps are born in this epoch, the next, and others (slots) die in it."""
        with self._writing():
            self._rows(table, born)
            self._zones(table, np.unique(born // BLOCK))
            self._writes.publish(self.arenas, epoch, dying, born, _NONE)

    def empty(self, table: Table, slots: Longs) -> None:
        """Rows (slots) that nobody can see any more are free, and their blocks' zone maps know it."""
        with self._writing():
            self._writes.publish(self.arenas, 0, _NONE, _NONE, slots)
            self._zones(table, np.unique(slots // BLOCK))

    def narrow(self, table: Table, blocks: Longs) -> None:
        """Zone maps of these blocks, counted through all pages, have changed."""
        with self._writing():
            self._zones(table, blocks)

    def fill(self, table: Table) -> None:
        """Everything that the pages hold, none of it dead. Nobody reads meanwhile."""
        with self._writing():
            for page, zones in zip(table.pages, table.zones, strict=True):
                rows = np.flatnonzero(page.birth != NEVER)
                self._rows(table, rows + page.first)
                self._zones(table, np.flatnonzero(zones.rows) + page.first // BLOCK)
                for epoch in np.unique(page.birth[rows]).tolist():
                    born = rows[page.birth[rows] == epoch] + page.first
                    self._writes.publish(self.arenas, epoch, _NONE, born, _NONE)

    def _rows(self, table: Table, slots: Longs) -> None:
        layout = self.arenas.layout
        for start in range(0, len(slots), STEP):
            some = slots[start : start + STEP]
            parts = [(some[at], of_rows(table.pages[page], rows, layout)) for page, at, rows in table.split(some)]
            self._writes.rows(self.arenas, *_together(parts))

    def _zones(self, table: Table, blocks: Longs) -> None:
        for start in range(0, len(blocks), BLOCKS):
            some, parts = blocks[start : start + BLOCKS], []
            for page, at, mine in split(some, self.arenas.layout.blocks):
                values = of_blocks(table.pages[page], table.zones[page], mine)
                self._norms[page][mine] = values["zone.norms"]
                parts.append((some[at], values))
            self._writes.blocks(self.arenas, *_together(parts))
        if self._norms:
            self.norms = np.max([norms.max(0) for norms in self._norms], axis=0).astype(np.float64)

    def _made(self, layout: Layout) -> Writes:
        return Scatter(layout, self.backend.device) if self.backend.scatters else Indexed()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """In the writer's stream; then `written` says when it will have been done."""
        if self._stream is None:
            with self.backend.launching():
                yield
            return
        with torch.cuda.stream(self._stream):
            yield
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's
            event.record()
        self.written = event


def _together(parts: Sequence[tuple[Longs, Values]]) -> tuple[Longs, Values]:
    """Places and values of several pages as one."""
    places, values = zip(*parts, strict=True)
    return np.concatenate(places), {name: np.concatenate([one[name] for one in values]) for name in values[0]}
