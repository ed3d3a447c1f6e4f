"""What a scatter and a publication leave in the pages, byte for byte: the oracle of the kernels. torch only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from penstock.kernels.scatter_rows.segments import TILED, Segments
from penstock.kernels.slabs.layout import BLOCK

NEVER = torch.iinfo(torch.int64).max


def scatter_rows(arenas: Sequence[Tensor], segments: Segments, slots: Tensor, records: Tensor) -> None:
    """Writes records uint8 [rows, record] to slots int64 [rows] of arenas uint8 [nbytes]; a slot below 0: nowhere."""
    for slot, record in zip(slots.tolist(), records, strict=True):
        if slot < 0:
            continue
        page, row = divmod(slot, segments.per_page)
        for segment, begin in zip(segments.segments, segments.begins, strict=True):
            value = record[begin : begin + segment.nbytes]
            if segment.unit == TILED:
                first = segment.offset + row // BLOCK * segment.length * BLOCK + row % BLOCK
                arenas[page].as_strided((segment.length,), (BLOCK,), first).copy_(value)
            else:
                first = segment.offset + row * segment.stride
                arenas[page][first : first + segment.nbytes] = value


def publish(
    births: Sequence[Tensor], deaths: Sequence[Tensor], dead: Tensor, born: Tensor, freed: Tensor, epoch: int
) -> None:
    """births, deaths int64 [R] of each page; dead, born, freed: slots int64."""
    rows = len(births[0])
    for slots, at_birth, at_death in ((dead, None, epoch), (born, epoch, NEVER), (freed, NEVER, None)):
        for slot in slots.tolist():
            page, row = divmod(slot, rows)
            if at_birth is not None:
                births[page][row] = at_birth
            if at_death is not None:
                deaths[page][row] = at_death
