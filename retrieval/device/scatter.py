"""Writes to the pages of one layout: values of rows and of zone maps are staged as records, sent in one copy and
scattered in one launch, whatever pages they go to; births and deaths follow in another (kernels/scatter_rows).

Two pieces of staging take turns, so the host fills one while the device copies the other. The writer's thread alone
calls these, in the stream that is to have the launches.
"""

from __future__ import annotations

from itertools import cycle

import torch

from penstock.kernels.scatter_rows.segments import Segments, of_blocks, of_rows
from penstock.kernels.scatter_rows.staging import Publication, Staging
from penstock.kernels.slabs.batch import Slabs
from penstock.kernels.slabs.layout import Layout
from penstock.retrieval.device.values import Values
from penstock.retrieval.store.page import Longs

STEP = 1_024  # rows sent at a time: 2 MB of 384 dense and 1,024 sketch values
BLOCKS = 256  # zone maps, likewise


class Scatter:
    """For pages of this layout, on this device."""

    def __init__(self, layout: Layout, device: torch.device) -> None:
        self._rows = _Turns(of_rows(layout), STEP, device)
        self._blocks = _Turns(of_blocks(layout), BLOCKS, device)
        self._layout = layout
        self._device = device
        self._publications = cycle([Publication(0, device), Publication(0, device)])
        self._word = torch.zeros(1, dtype=torch.int64, device=device)

    def rows(self, slabs: Slabs, slots: Longs, values: Values) -> None:
        """`values` of at most STEP rows, each first, to their slots (int64, distinct)."""
        self._rows.send(slabs, slots, values)

    def blocks(self, slabs: Slabs, blocks: Longs, values: Values) -> None:
        """Zone maps of at most BLOCKS blocks, counted through all pages (int64, distinct)."""
        self._blocks.send(slabs, blocks, values)

    def publish(self, slabs: Slabs, epoch: int, dead: Longs, born: Longs, freed: Longs) -> None:
        """Behind all that was sent: in this epoch these slots die and these are born; those are free."""
        count = len(dead) + len(born) + len(freed)
        publication = next(self._publications)
        if publication.slots < count:
            publication = Publication(2 * count, self._device)
            self._publications = cycle([publication, Publication(2 * count, self._device)])
            next(self._publications)
        publication.send(
            slabs.table,
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

    def send(self, slabs: Slabs, places: Longs, values: Values) -> None:
        piece, count = next(self._pieces), len(places)
        piece.ready()
        piece.slots[:count] = torch.from_numpy(places)
        for name in self._fields:
            field = piece.field(name)[:count]
            given = torch.from_numpy(values[name])
            field.view(given.dtype)[:] = given.view(field.shape)
        piece.send(slabs.table, count)
