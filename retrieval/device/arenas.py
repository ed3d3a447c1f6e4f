"""The pages of a store as a device holds them: one arena a page, and what kernels need to find them.

`Arenas` never changes: a page more, or planes of another width, makes another one, which shares the arenas that stay.
A reader takes it with its page table and keeps what it took; what nobody keeps goes back to the budget.

Why rows of an arena may be written while it is read: retrieval/device/mirror.py.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from penstock.kernels.slabs.batch import Slabs
from penstock.kernels.slabs.layout import ALIGN, Kind, Layout, empty_arena
from penstock.retrieval.device.backend import Backend
from penstock.retrieval.store.page import (
    HASHED,
    KEYWORD_FIELDS,
    MANY_FIELDS,
    NUMBER_FIELDS,
    PLACE_FIELDS,
    SYMBOL_FIELDS,
)

FIRST_PAGES = 4  # places of a page table to begin with; it is grown by doubling, which captured graphs do not survive
COLUMNS = tuple(
    (field, kind)
    for fields, kind in (
        ((HASHED,), Kind.HASH),
        (SYMBOL_FIELDS, Kind.SYMBOL),
        (KEYWORD_FIELDS, Kind.CODE),
        (NUMBER_FIELDS, Kind.NUMBER),
        (PLACE_FIELDS, Kind.PLACE),
        (MANY_FIELDS, Kind.MANY),
    )
    for field in fields
)


def layout_of(rows: int, dense: int, sketch: int, *, quantised: bool = False) -> Layout:
    """The layout of pages with so many rows, and so many values a row of either plane; with an int8 plane beside the
    dense one where `quantised`."""
    return Layout(rows, dense, sketch, COLUMNS, quantised)


class Arena:
    """One page's memory on the device. Its bytes are the budget's again when nobody holds it any more."""

    __slots__ = ("__weakref__", "bytes")

    def __init__(self, backend: Backend, layout: Layout) -> None:
        """Holds no row. Raises OutOfRoom before anything is allocated."""
        needed = page_bytes(layout)
        backend.budget.take(f"a page of {layout.rows:,} rows on the device", needed)
        weakref.finalize(self, backend.budget.give_back, needed)
        self.bytes = empty_arena(layout, backend.device)


@dataclass(frozen=True, slots=True)
class Arenas:
    """`slabs.table` has places to spare: 0 stands for a page that is not there.

    `named`: every page that the table has ever named. The table may be written after a reader took it, so whoever holds
    any of the `Arenas` that share it holds all of these.
    """

    slabs: Slabs
    pages: tuple[Arena, ...]
    named: list[Arena]

    @property
    def layout(self) -> Layout:
        return self.slabs.layout

    @property
    def nbytes(self) -> int:
        return len(self.pages) * page_bytes(self.layout) + self.slabs.table.nbytes + self.slabs.offsets.nbytes

    def view(self, page: int, name: str) -> torch.Tensor:
        """An array of a page."""
        return self.layout.view(self.pages[page].bytes, name)


def page_bytes(layout: Layout) -> int:
    """What a page takes, with what aligning it may cost."""
    return layout.nbytes + ALIGN


def arenas(backend: Backend, layout: Layout, pages: Sequence[Arena], before: Arenas | None = None) -> Arenas:
    """These pages, those of `before` first. A table that has room is used again: graphs that were captured over it see
    the new page."""
    addresses = [page.bytes.data_ptr() for page in pages]
    if before is not None and before.layout == layout and len(pages) <= before.slabs.pages:
        # One int64 a place: a reader finds a page there, whose rows nobody sees yet, or none.
        before.named.extend(pages[len(before.pages) :])
        before.slabs.table[: len(pages)] = torch.tensor(addresses, dtype=torch.int64).to(backend.device)
        return Arenas(before.slabs, tuple(pages), before.named)
    places = FIRST_PAGES
    while places < len(pages):
        places *= 2
    table = torch.tensor(addresses + [0] * (places - len(pages)), dtype=torch.int64).to(backend.device)
    offsets = before.slabs.offsets if before is not None and before.layout == layout else None
    offsets = layout.offsets().to(backend.device) if offsets is None else offsets
    return Arenas(Slabs(layout, table, offsets), tuple(pages), list(pages))
