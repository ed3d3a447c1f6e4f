"""The page table: the pages of a store in order, and the space their planes are of.

`Pages.table` is replaced as a whole when a page is added or the planes are made; a reader takes it once and keeps
what it took. Only the store's writer changes it. A slot is page * rows + row. Where a device mirrors the pages, its
arenas are made before the table says so, and the table holds them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from penstock.retrieval.store.page import Longs, Page, bfloat16_plane, make_page, split
from penstock.retrieval.store.zones import Zones

if TYPE_CHECKING:  # a store on the host alone loads nothing of a device
    from penstock.retrieval.device.arenas import Arenas
    from penstock.retrieval.device.mirror import Mirror


@dataclass(frozen=True, slots=True)
class Space:
    """What may be compared: the space's name and the widths of its planes (a width of 0: not known yet)."""

    space_id: str
    dense: int
    sketch: int


@dataclass(frozen=True, slots=True)
class Table:
    """One consistent set of pages."""

    page_rows: int
    pages: tuple[Page, ...] = ()
    zones: tuple[Zones, ...] = ()  # of each page
    space: Space | None = None
    arenas: Arenas | None = None  # of each page, on the device

    def split(self, slots: Longs) -> Iterator[tuple[int, Longs, Longs]]:
        """(number of a page, which of `slots` lie in it, their rows there), int64 each, for every page they touch."""
        return split(slots, self.page_rows)

    def at(self, slot: int) -> tuple[Page, int]:
        """The page of a slot, and its row there."""
        number, row = divmod(slot, self.page_rows)
        return self.pages[number], row

    def take(self, name: str, slots: Longs) -> npt.NDArray[Any]:
        """The values that an array of the pages has at `slots`."""
        if not len(slots):
            return np.zeros(0, getattr(self.pages[0], name).dtype) if self.pages else np.zeros(0, np.int64)
        parts = [(at, getattr(self.pages[number], name)[rows]) for number, at, rows in self.split(slots)]
        out = np.empty((len(slots), *parts[0][1].shape[1:]), parts[0][1].dtype)
        for at, values in parts:
            out[at] = values
        return out

    @property
    def capacity(self) -> int:
        return len(self.pages) * self.page_rows


class Pages:
    """Grows the table. `rows` is what a page has; `mirror` follows on a device, where there is one."""

    def __init__(self, rows: int, mirror: Mirror | None = None) -> None:
        self.table = Table(rows, arenas=None if mirror is None else mirror.arenas)
        self._mirror = mirror
        self.nbytes = 0
        self.bytes_planes = 0

    def another(self) -> int:
        """Bytes that one more page would take."""
        page = _page(0, self.table)
        return page.nbytes + Zones(page).nbytes

    def admit(self) -> None:
        """Raises OutOfRoom where the device cannot hold one more page."""
        if self._mirror is not None:
            self._mirror.admit(*_widths(self.table))

    def admit_wider(self, space: Space) -> None:
        """Raises OutOfRoom where the device cannot hold planes of this space."""
        if self._mirror is not None:
            self._mirror.admit_wider(space.dense, space.sketch)

    def add(self) -> Page:
        """A new page at the end of the table. Raises OutOfRoom of the device."""
        table = self.table
        arenas = None if self._mirror is None else self._mirror.grow(*_widths(table))
        page = _page(table.capacity, table)
        pages, zones = (*table.pages, page), (*table.zones, Zones(page))
        self._replace(replace(table, pages=pages, zones=zones, arenas=arenas))
        return page

    def wider(self, space: Space) -> int:
        """Bytes that planes of this space would take beyond those there are, at most."""
        return sum(_plane_bytes(page, space) for page in self.table.pages)

    def adopt(self, space: Space | None) -> None:
        """From here on the planes are of this space: those of another width are made anew, empty. Raises OutOfRoom of
        the device, and then all is as it was."""
        table = self.table
        if space is None:
            self._replace(replace(table, space=None))
            return
        arenas = None if self._mirror is None else self._mirror.widen(space.dense, space.sketch)
        pages = tuple(
            replace(
                page,
                dense=page.dense if page.dense.shape[1] == space.dense else bfloat16_plane(page.rows, space.dense),
                sketch=page.sketch if page.sketch.shape[1] == space.sketch else _int8_plane(page.rows, space.sketch),
            )
            for page in table.pages
        )
        self._replace(replace(table, pages=pages, space=space, arenas=arenas))

    def _replace(self, table: Table) -> None:
        self.table = table
        self.nbytes = sum(page.nbytes for page in table.pages) + sum(zones.nbytes for zones in table.zones)
        self.bytes_planes = sum(page.dense.nbytes + page.sketch.nbytes + page.norms.nbytes for page in table.pages)


def _page(first: int, table: Table) -> Page:
    # Planes as wide as the other pages', even where no row has a vector any more: the widths of all pages are one.
    return make_page(first, table.page_rows, *_widths(table))


def _widths(table: Table) -> tuple[int, int]:
    """Of the planes of every page: dense, sketch."""
    if table.pages:
        return table.pages[0].dense.shape[1], table.pages[0].sketch.shape[1]
    return (table.space.dense, table.space.sketch) if table.space is not None else (0, 0)


def _plane_bytes(page: Page, space: Space) -> int:
    dense = 0 if page.dense.shape[1] == space.dense else 2 * page.rows * space.dense
    return dense + (0 if page.sketch.shape[1] == space.sketch else page.rows * space.sketch)


def _int8_plane(rows: int, width: int) -> torch.Tensor:
    return torch.from_numpy(np.zeros((rows, width), np.int8))
