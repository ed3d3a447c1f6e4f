"""Where a row's values lie in a staged record, and where each of them goes in a page's arena.

A record is a row's values one segment after the other, the widest units first, its length a multiple of 16 bytes. A
segment goes to one run of bytes of the page, but for the sketch, which is term-major within a block (slabs/layout.py):

    plain   offset + row * stride, LENGTH units in a row
    tiled   offset + (row // 128) * LENGTH * 128 + row % 128, a byte every 128

A unit is what is stored at once, so that nobody reads half of it: 8-byte values are stored as such. Zone maps are
arrays of the same page with a block where a row would be: the same tables, over the blocks' arrays.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch

from penstock.kernels.slabs.layout import Layout

OFFSET, STRIDE, BEGIN, LENGTH, UNIT = range(5)  # of a line of the table
FIELDS = 5
TILED = 0  # the unit of a segment that is
UNITS = (16, 8, 4, 1)  # bytes, of the others
PUBLISHED = ("birth", "death")  # which `publish` writes


@dataclass(frozen=True, slots=True)
class Segment:
    """One line. `field` is the array whose value it is, or a part of."""

    field: str
    offset: int  # bytes within a page
    stride: int  # bytes from a row to the next; of a tiled one no matter
    length: int  # units
    unit: int  # bytes; TILED: bytes that are scattered

    @property
    def nbytes(self) -> int:
        """In a record."""
        return self.length * max(self.unit, 1)


@dataclass(frozen=True)
class Segments:
    """The segments of a record, in its order. `per_page` rows a page (or blocks, of zone maps)."""

    segments: tuple[Segment, ...]
    per_page: int
    dtypes: Mapping[str, torch.dtype]

    @cached_property
    def begins(self) -> tuple[int, ...]:
        """Where in a record each segment begins."""
        out, begin = [], 0
        for segment in self.segments:
            if begin % max(segment.unit, 1):
                raise ValueError(f"{segment.field} begins at {begin} of a record: put wider units before narrower ones")
            out.append(begin)
            begin += segment.nbytes
        return tuple(out)

    @cached_property
    def record(self) -> int:
        """Bytes of a record."""
        return -(-sum(segment.nbytes for segment in self.segments) // 16) * 16

    def table(self) -> torch.Tensor:
        """int64 [segments, FIELDS], on the host."""
        return torch.tensor(
            [
                [segment.offset, segment.stride, begin, segment.length, segment.unit]
                for segment, begin in zip(self.segments, self.begins, strict=True)
            ],
            dtype=torch.int64,
        ).view(-1, FIELDS)

    def place(self, field: str) -> tuple[int, int]:
        """Where in a record a field begins, and its bytes; its parts lie together."""
        mine = [number for number, segment in enumerate(self.segments) if segment.field == field]
        if not mine:
            known = ", ".join(sorted(self.dtypes))
            raise ValueError(f"no field {field!r} in a record: there are {known}")
        return self.begins[mine[0]], sum(self.segments[number].nbytes for number in mine)


def of_rows(layout: Layout) -> Segments:
    """Everything of a row but what `publish` writes."""
    names = [name for name, array in layout.arrays.items() if not array.of_blocks and name not in PUBLISHED]
    return _of(layout, names, layout.rows)


def of_blocks(layout: Layout) -> Segments:
    """The zone maps of a block."""
    return _of(layout, [name for name, array in layout.arrays.items() if array.of_blocks], layout.blocks)


def _of(layout: Layout, names: Iterable[str], per_page: int) -> Segments:
    out: list[Segment] = []
    dtypes: dict[str, torch.dtype] = {}
    for name in names:
        array = layout.arrays[name]
        if name == "sketch":
            if layout.sketch:
                out.append(Segment(name, array.offset, 0, layout.sketch, TILED))
                dtypes[name] = array.dtype
            continue
        if not array.nbytes:
            continue
        size = array.nbytes // (per_page * array.parts)
        # Units of which no value takes a part only.
        fits = [u for u in UNITS if not (size % u or array.offset % u or u % array.dtype.itemsize)]
        unit = fits[0] if fits else 0
        if not unit:
            raise ValueError(f"{name}: {size} bytes a row of {array.dtype} cannot be stored in units of 16, 8, 4 or 1")
        stride = array.stride if array.parts == 1 else size
        for part in range(array.parts):
            out.append(Segment(name, array.offset + part * per_page * size, stride, size // unit, unit))
        dtypes[name] = array.dtype
    out.sort(key=lambda segment: -segment.unit)  # stable: the parts of a field stay together
    return Segments(tuple(out), per_page, dtypes)
