"""A page of a flat store in a device's memory: one arena of bytes, every array at a fixed offset of it.

A page table (int64 [pages]) of the arenas' addresses and one table of offsets, the same for all pages, are all that a
kernel needs to find any row: growth copies nothing and captured graphs stay right. A kernel knows the arrays below by
their place in the table of offsets; filterable columns by an entry of it, which a clause program names.

Row r of a page lies in its block r // BLOCK. Two arrays are made for tensor cores and not for a host:

    dense   bfloat16 [R, padded D]: zeros behind the D-th value, so that a tile is a power of two or some of 128 wide
    sketch  int8 [R / BLOCK, L, BLOCK]: term-major within a block. A query names a few terms of a thousand: what it
            needs of a block is one line of 128 bytes a term, and the rest of the sketch is never read.

Nothing here is a store's: which columns there are is the caller's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import torch

BLOCK = 128  # rows of a block: the unit of placement, pruning and scanning
INLINE = 8  # values of a multi-valued column that a row itself holds
ALIGN = 256  # bytes: where an array may begin

# Places in the table of offsets. A column's entry is FIRST_ENTRY + ENTRY * its number.
BIRTH, DEATH, EXPIRES, TENANT, ROWS, EXPIRES_MAX, TENANTS, NORMS, SKETCH, QUANTISED, SCALES = range(11)
FIRST_ENTRY, ENTRY = 16, 8
VALUES, COUNTS, ZONE, ZONE_HIGH, ZONE_LACKS = range(5)  # within an entry


class Kind(StrEnum):
    """What a filterable column holds of a row."""

    CODE = "code"  # int32, -1 missing
    SYMBOL = "symbol"  # int8, 0 missing
    NUMBER = "number"  # float64, NaN missing
    PLACE = "place"  # float64 [3, R]: the unit vector of a point on the globe, NaN missing
    MANY = "many"  # int32 [R, INLINE] codes, -1 behind the last; int32 [R] how many there are
    HASH = "hash"  # int64: an unsigned hash with its highest bit flipped, so that it is ordered as a signed one


@dataclass(frozen=True, slots=True)
class Array:
    """Where an array lies in a page: byte `offset`, `shape` of the whole, and the bytes from a row (or block) to the
    next; `parts` of them where a row's values are not together (places: three)."""

    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: int
    parts: int = 1
    of_blocks: bool = False

    @property
    def nbytes(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count * self.dtype.itemsize


def padded(width: int) -> int:
    """How wide a dense plane of `width` values is on a device: 16 to 128 a power of two, then multiples of 128."""
    if width == 0:
        return 0
    if width <= 128:
        return max(16, 1 << (width - 1).bit_length())
    return -(-width // 128) * 128


@dataclass(frozen=True)
class Layout:
    """`rows` a page, `dense` and `sketch` values a row, `columns` by name; `quantised`: with an int8 copy of dense."""

    rows: int
    dense: int
    sketch: int
    columns: tuple[tuple[str, Kind], ...]
    quantised: bool = False

    def __post_init__(self) -> None:
        if self.rows % BLOCK or self.rows <= 0:
            raise ValueError(f"{self.rows} rows in a page: expected a multiple of {BLOCK}")

    @property
    def blocks(self) -> int:
        return self.rows // BLOCK

    @property
    def width(self) -> int:
        """Of the dense plane."""
        return padded(self.dense)

    @cached_property
    def arrays(self) -> Mapping[str, Array]:
        """Every array by name; columns as `column.<name>`, zone maps as `zone.<name>`, in the order of the arena."""
        rows, blocks = self.rows, self.blocks
        wanted: list[tuple[str, torch.dtype, tuple[int, ...], int, bool]] = [
            ("dense", torch.bfloat16, (rows, self.width), 1, False),
            ("sketch", torch.int8, (blocks, self.sketch, BLOCK), 1, False),
        ]
        if self.quantised:
            wanted.append(("quantised", torch.int8, (rows, self.width), 1, False))
            wanted.append(("scales", torch.float32, (rows, 2), 1, False))  # of a step, and the norm of what is lost
        wanted += [(name, torch.int64, (rows,), 1, False) for name in ("birth", "death", "expires")]
        wanted.append(("tenant", torch.int32, (rows,), 1, False))
        wanted.append(("zone.rows", torch.int32, (blocks,), 1, True))
        wanted.append(("zone.expires_max", torch.int64, (blocks,), 1, True))
        wanted.append(("zone.tenants", torch.int64, (blocks,), 1, True))
        wanted.append(("zone.norms", torch.float32, (blocks, 2), 1, True))  # greatest of dense and sketch, rounded up
        for name, kind in self.columns:
            value, zone = f"column.{name}", f"zone.{name}"
            if kind is Kind.CODE:
                wanted.append((value, torch.int32, (rows,), 1, False))
                wanted.append((f"{zone}.signature", torch.int64, (blocks,), 1, True))
            elif kind is Kind.SYMBOL:
                wanted.append((value, torch.int8, (rows,), 1, False))
                wanted.append((f"{zone}.bits", torch.int32, (blocks,), 1, True))
            elif kind is Kind.MANY:
                wanted.append((value, torch.int32, (rows, INLINE), 1, False))
                wanted.append((f"{value}.counts", torch.int32, (rows,), 1, False))
                wanted.append((f"{zone}.signature", torch.int64, (blocks,), 1, True))
            elif kind is Kind.HASH:
                wanted.append((value, torch.int64, (rows,), 1, False))
            else:
                parts, axes = (3, 2) if kind is Kind.PLACE else (1, 1)
                wanted.append((value, torch.float64, (parts, rows) if parts > 1 else (rows,), parts, False))
                for bound in ("low", "high"):
                    of_axes: tuple[int, ...] = (axes, blocks) if axes > 1 else (blocks,)
                    wanted.append((f"{zone}.{bound}", torch.float64, of_axes, axes, True))
                wanted.append((f"{zone}.lacks", torch.int32, (blocks,), 1, True))
        out, offset = {}, 0
        for name, dtype, shape, parts, of_blocks in wanted:
            stride = dtype.itemsize
            if parts == 1:
                for size in shape[1:]:
                    stride *= size
            out[name] = array = Array(offset, dtype, shape, stride, parts, of_blocks)
            offset += -(-array.nbytes // ALIGN) * ALIGN
        return out

    @cached_property
    def nbytes(self) -> int:
        """Of a page."""
        last = list(self.arrays.values())[-1]
        return -(-(last.offset + last.nbytes) // ALIGN) * ALIGN

    def entry(self, column: str) -> int:
        """The place of a column's entry in the table of offsets."""
        return FIRST_ENTRY + ENTRY * [name for name, _ in self.columns].index(column)

    def offsets(self) -> torch.Tensor:
        """The table of offsets, int64 on the host: byte offsets within a page, -1 of what a page has not."""
        arrays = self.arrays
        out = torch.full((FIRST_ENTRY + ENTRY * len(self.columns),), -1, dtype=torch.int64)
        fixed = {
            BIRTH: "birth",
            DEATH: "death",
            EXPIRES: "expires",
            TENANT: "tenant",
            ROWS: "zone.rows",
            EXPIRES_MAX: "zone.expires_max",
            TENANTS: "zone.tenants",
            NORMS: "zone.norms",
            SKETCH: "sketch",
            QUANTISED: "quantised",
            SCALES: "scales",
        }
        for place, name in fixed.items():
            if name in arrays:
                out[place] = arrays[name].offset
        for number, (name, kind) in enumerate(self.columns):
            entry = FIRST_ENTRY + ENTRY * number
            parts = {VALUES: f"column.{name}", COUNTS: f"column.{name}.counts", ZONE_LACKS: f"zone.{name}.lacks"}
            zones = {Kind.SYMBOL: "bits", Kind.CODE: "signature", Kind.MANY: "signature"}
            parts[ZONE] = f"zone.{name}.{zones.get(kind, 'low')}"
            parts[ZONE_HIGH] = f"zone.{name}.high"
            for place, array in parts.items():
                if array in arrays:
                    out[entry + place] = arrays[array].offset
        return out

    def view(self, arena: torch.Tensor, name: str) -> torch.Tensor:
        """An array of a page. arena uint8 [nbytes]."""
        array = self.arrays[name]
        return arena[array.offset : array.offset + array.nbytes].view(array.dtype).view(array.shape)


def page_table(arenas: Sequence[torch.Tensor]) -> torch.Tensor:
    """int64 [pages]: the addresses of the arenas, on their device."""
    device = arenas[0].device if arenas else torch.device("cpu")
    for arena in arenas:
        if arena.data_ptr() % ALIGN:
            raise ValueError(f"an arena at address {arena.data_ptr()}: expected a multiple of {ALIGN}")
    return torch.tensor([arena.data_ptr() for arena in arenas], dtype=torch.int64, device=device)


def empty_arena(layout: Layout, device: torch.device | str) -> torch.Tensor:
    """An arena that holds no row: uint8 [nbytes], aligned, `birth` never and no row in any block."""
    raw = torch.zeros(layout.nbytes + ALIGN, dtype=torch.uint8, device=device)
    begin = -raw.data_ptr() % ALIGN
    arena = raw[begin : begin + layout.nbytes]
    layout.view(arena, "birth").fill_(torch.iinfo(torch.int64).max)
    return arena
