"""Writes to the pages of one layout, in two ways that leave the same bytes.

    Scatter   kernels/scatter_rows: values are staged as records, sent in one copy and scattered in one launch, whatever
              pages they go to; births and deaths follow in another. Two pieces of staging take turns, so the host fills
              one while the device copies the other
    Indexed   torch, an array and a page at a time: what the interpreter takes, many times as fast there

The writer's thread alone calls these, in the stream that is to have the launches.
"""

from __future__ import annotations

from itertools import cycle
from typing import Protocol

import numpy as np
import torch

from penstock.kernels.scatter_rows.segments import Segments, of_blocks, of_rows
from penstock.kernels.scatter_rows.staging import Publication, Staging
from penstock.kernels.slabs.layout import BLOCK, Layout
from penstock.retrieval.device.arenas import Arenas
from penstock.retrieval.device.values import Values
from penstock.retrieval.store.page import NEVER, Longs, split

STEP = 1_024  # rows sent at a time: 2 MB of 384 dense and 1,024 sketch values
BLOCKS = 256  # zone maps, likewise


class Writes(Protocol):
    """Slots and blocks are counted through all pages: int64, distinct. Values have their rows, or blocks, first."""

    def rows(self, arenas: Arenas, slots: Longs, values: Values) -> None:
        """Everything of at most STEP rows but births and deaths."""

    def blocks(self, arenas: Arenas, blocks: Longs, values: Values) -> None:
        """The zone maps of at most BLOCKS blocks."""

    def publish(self, arenas: Arenas, epoch: int, dead: Longs, born: Longs, freed: Longs) -> None:
        """Behind all that was sent: in this epoch these slots die and these are born; those are free."""


class Indexed:
    """By torch."""

    def rows(self, arenas: Arenas, slots: Longs, values: Values) -> None:
        _assign(arenas, arenas.layout.rows, slots, values)

    def blocks(self, arenas: Arenas, blocks: Longs, values: Values) -> None:
        _assign(arenas, arenas.layout.blocks, blocks, values)

    def publish(self, arenas: Arenas, epoch: int, dead: Longs, born: Longs, freed: Longs) -> None:
        rows = arenas.layout.rows
        _assign(arenas, rows, dead, {"death": np.full(len(dead), epoch)})
        _assign(arenas, rows, born, {"death": np.full(len(born), NEVER)})
        _assign(arenas, rows, born, {"birth": np.full(len(born), epoch)})
        _assign(arenas, rows, freed, {"birth": np.full(len(freed), NEVER)})


def _assign(arenas: Arenas, per_page: int, places: Longs, values: Values) -> None:
    for page, at, rows in split(places, per_page):
        there = torch.from_numpy(rows)
        for name, given in values.items():
            view, mine = arenas.view(page, name), torch.from_numpy(given[at])
            if name == "sketch":
                view[there // BLOCK, :, there % BLOCK] = mine
            elif arenas.layout.arrays[name].parts > 1:
                view[:, there] = mine.T
            else:
                view[there] = mine.view(view.dtype) if name == "dense" else mine


class Scatter:
    """By kernels, for pages of this layout on this device."""

    def __init__(self, layout: Layout, device: torch.device) -> None:
        self._rows = _Turns(of_rows(layout), STEP, device)
        self._blocks = _Turns(of_blocks(layout), BLOCKS, device)
        self._layout = layout
        self._device = device
        self._publications = cycle([Publication(0, device), Publication(0, device)])
        self._word = torch.zeros(1, dtype=torch.int64, device=device)

    def rows(self, arenas: Arenas, slots: Longs, values: Values) -> None:
        self._rows.send(arenas, slots, values)

    def blocks(self, arenas: Arenas, blocks: Longs, values: Values) -> None:
        self._blocks.send(arenas, blocks, values)

    def publish(self, arenas: Arenas, epoch: int, dead: Longs, born: Longs, freed: Longs) -> None:
        count = len(dead) + len(born) + len(freed)
        publication = next(self._publications)
        if publication.slots < count:
            publication = Publication(2 * count, self._device)
            self._publications = cycle([publication, Publication(2 * count, self._device)])
            next(self._publications)
        publication.send(
            arenas.slabs.table,
            self._word,
            epoch=epoch,
            dead=dead.tolist(),
            born=born.tolist(),
            freed=freed.tolist(),
            per_page=self._layout.rows,
            birth=self._layout.arrays["birth"].offset,
            death=self._layout.arrays["death"].offset,
        )


class _Turns:
    """Two pieces of staging for records of one kind."""

    def __init__(self, segments: Segments, most: int, device: torch.device) -> None:
        self._fields = segments.dtypes
        self._pieces = cycle([Staging(segments, most, device), Staging(segments, most, device)])

    def send(self, arenas: Arenas, places: Longs, values: Values) -> None:
        piece, count = next(self._pieces), len(places)
        piece.ready()
        piece.slots[:count] = torch.from_numpy(places)
        for name in self._fields:
            field = piece.field(name)[:count]
            given = torch.from_numpy(values[name])
            field.view(given.dtype)[:] = given.view(field.shape)
        piece.send(arenas.slabs.table, count)
