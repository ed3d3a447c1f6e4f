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

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch

from penstock.kernels.slabs.layout import BLOCK
from penstock.retrieval.device.arenas import Arena, Arenas, arenas, layout_of, page_bytes
from penstock.retrieval.device.backend import Backend
from penstock.retrieval.device.scatter import write
from penstock.retrieval.device.staging import Staging
from penstock.retrieval.device.values import of_blocks, of_rows
from penstock.retrieval.store.page import NEVER, Doubles, Longs
from penstock.retrieval.store.pages import Table

STEP = 4_096  # rows sent at a time: 8 MB of 384 dense and 1,024 sketch values


class Mirror:
    """One store's. `arenas`: the newest; a page table holds those of its own moment."""

    def __init__(self, backend: Backend, page_rows: int) -> None:
        self.backend = backend
        self.arenas = arenas(backend, layout_of(page_rows, 0, 0), ())
        self.written: torch.cuda.Event | None = None
        self.norms: Doubles = np.zeros(2)  # the greatest of any row that somebody may see: dense, sketch
        self._norms: list[npt.NDArray[np.float32]] = []  # of each page, by block
        self._staging = Staging(backend.device)
        self._stream = torch.cuda.Stream() if backend.is_cuda else None

    @property
    def nbytes(self) -> int:
        return self.arenas.nbytes

    # --- pages ---------------------------------------------------------------------------------------------------

    def admit(self, dense: int, sketch: int) -> None:
        """Raises OutOfRoom where another page, its planes of these widths, does not fit."""
        layout = layout_of(self.arenas.layout.rows, dense, sketch)
        self.backend.budget.admit(f"a page of {layout.rows:,} rows on the device", page_bytes(layout))

    def admit_wider(self, dense: int, sketch: int) -> None:
        """Raises OutOfRoom where the pages with planes of these widths do not fit beside those there are."""
        layout = layout_of(self.arenas.layout.rows, dense, sketch)
        if layout != self.arenas.layout:
            needed = len(self.arenas.pages) * page_bytes(layout)
            self.backend.budget.admit("planes of another width on the device", needed)

    def grow(self, dense: int, sketch: int) -> Arenas:
        """With an empty page more, its planes of these widths: those of all pages, if there are any. Raises OutOfRoom
        before anything is allocated."""
        layout = layout_of(self.arenas.layout.rows, dense, sketch)
        with self._writing():
            page = Arena(self.backend, layout)
            self.arenas = arenas(self.backend, layout, (*self.arenas.pages, page), self.arenas)
        self._norms.append(np.zeros((layout.blocks, 2), np.float32))
        return self.arenas

    def widen(self, dense: int, sketch: int) -> Arenas:
        """With planes of these widths: those of another width are made anew, empty, all else is copied on the device.
        Raises OutOfRoom, and then all is as it was."""
        before, layout = self.arenas, layout_of(self.arenas.layout.rows, dense, sketch)
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
        return self.arenas

    # --- rows ----------------------------------------------------------------------------------------------------

    def live(self, table: Table, born: Longs, dying: Longs, epoch: int) -> None:
        """Rows filled and taken into their zone maps are born in this epoch, the next, and others (slots) die in it."""
        with self._writing():
            for number, _, rows in table.split(born):
                self._rows(table, number, rows)
                self._zones(table, number, np.unique(rows // BLOCK))
                self._lives(number, rows, birth=epoch, death=NEVER)
            for number, _, rows in table.split(dying):
                self._lives(number, rows, death=epoch)

    def empty(self, table: Table, slots: Longs) -> None:
        """Rows (slots) that nobody can see any more are free, and their blocks' zone maps know it."""
        with self._writing():
            for number, _, rows in table.split(slots):
                self._lives(number, rows, birth=NEVER, death=0)
                self._zones(table, number, np.unique(rows // BLOCK))

    def narrow(self, table: Table, number: int, blocks: Longs) -> None:
        """Zone maps of a page's blocks have changed."""
        with self._writing():
            self._zones(table, number, blocks)

    def fill(self, table: Table) -> None:
        """Everything that the pages hold. Nobody reads meanwhile."""
        with self._writing():
            for number, (page, zones) in enumerate(zip(table.pages, table.zones, strict=True)):
                rows = np.flatnonzero(page.birth != NEVER)
                for start in range(0, len(rows), STEP):
                    some = rows[start : start + STEP]
                    self._rows(table, number, some)
                    write(self.arenas, self._staging, number, some, {"birth": page.birth[some]})
                    write(self.arenas, self._staging, number, some, {"death": page.death[some]})
                self._zones(table, number, np.flatnonzero(zones.rows))

    def _rows(self, table: Table, number: int, rows: Longs) -> None:
        page = table.pages[number]
        for start in range(0, len(rows), STEP):
            some = rows[start : start + STEP]
            write(self.arenas, self._staging, number, some, of_rows(page, some, self.arenas.layout.width))

    def _zones(self, table: Table, number: int, blocks: Longs) -> None:
        values = of_blocks(table.pages[number], table.zones[number], blocks)
        write(self.arenas, self._staging, number, blocks, values)
        self._norms[number][blocks] = values["zone.norms"]
        self.norms = np.max([norms.max(0) for norms in self._norms], axis=0).astype(np.float64)

    def _lives(self, number: int, rows: Longs, **epochs: int) -> None:
        values = {name: np.full(len(rows), epoch) for name, epoch in epochs.items()}
        write(self.arenas, self._staging, number, rows, values)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """In the writer's stream; then `written` says when it will have been done."""
        if self._stream is None:
            with self.backend.launching():
                yield
            return
        with torch.cuda.stream(self._stream):
            yield
            event = torch.cuda.Event()
            event.record()
        self.written = event
