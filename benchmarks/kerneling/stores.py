"""Stores of drawn rows in a device's memory, as the launchers take them, and the same rows as torch's peers do.

Rows are unit vectors of independent normal values: no structure helps or hinders a scan that reads them all. A page is
filled on the device; peers read the very planes of the pages, put in one tensor, so that both hold the same values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from penstock.kernels.int8_topk.reference import plane
from penstock.kernels.slabs import layout as slabs
from penstock.kernels.slabs import program
from penstock.kernels.slabs.batch import Filters, Queries, Slabs
from penstock.kernels.slabs.layout import BLOCK, Kind, Layout

NEVER = torch.iinfo(torch.int64).max
PAGE = 65_536  # rows
BUCKET = "bucket"  # a column of numbers: a row's is drawn in [0, 1), or says where it lies when clustered
HASH = "hash"
TENANT = 0
ODD = 0x9E3779B97F4A7C15 - (1 << 64)


@dataclass(slots=True)
class Store:
    slabs: Slabs
    arenas: list[torch.Tensor]
    rows: int

    @property
    def layout(self) -> Layout:
        return self.slabs.layout

    @property
    def device(self) -> torch.device:
        return self.slabs.table.device

    def plane(self) -> torch.Tensor:
        """bfloat16 [rows, D]: a copy, for peers."""
        parts = [self.layout.view(arena, "dense")[:, : self.layout.dense] for arena in self.arenas]
        return torch.cat(parts)[: self.rows]

    def numbers(self) -> torch.Tensor:
        """float64 [rows]: the column that filters ask for."""
        return torch.cat([self.layout.view(arena, f"column.{BUCKET}") for arena in self.arenas])[: self.rows]


def drawn(
    rows: int,
    width: int,
    device: torch.device,
    *,
    clustered: bool = False,
    quantised: bool = False,
    page_rows: int = PAGE,
    seed: int = 1,
) -> Store:
    """`rows` visible rows, the last page not full. `clustered`: rows that a range of BUCKET takes lie together."""
    columns = ((BUCKET, Kind.NUMBER), (HASH, Kind.HASH))
    layout = Layout(page_rows, width, 0, columns, quantised=quantised)
    arenas = []
    for number in range(-(-rows // page_rows)):
        generator = torch.Generator(device=device).manual_seed(seed * 1_000_003 + number)
        here = min(page_rows, rows - number * page_rows)
        arenas.append(_page(layout, number, here, rows, generator, device, clustered))
    table = slabs.page_table(arenas)
    return Store(Slabs(layout, table, layout.offsets().to(device)), arenas, rows)


def _page(
    layout: Layout,
    number: int,
    here: int,
    rows: int,
    generator: torch.Generator,
    device: torch.device,
    clustered: bool,
) -> torch.Tensor:
    arena = slabs.empty_arena(layout, device)
    values = torch.randn(here, layout.dense, generator=generator, device=device)
    dense = torch.nn.functional.normalize(values, dim=1).bfloat16()
    layout.view(arena, "dense")[:here, : layout.dense] = dense
    first = number * layout.rows
    places = torch.arange(first, first + here, device=device, dtype=torch.float64)
    bucket = places / rows if clustered else torch.rand(here, generator=generator, device=device, dtype=torch.float64)
    layout.view(arena, f"column.{BUCKET}")[:here] = bucket
    # Times an odd number, modulo 2^64: distinct for distinct places, in no order.
    layout.view(arena, f"column.{HASH}")[:here] = places.long() * ODD
    if layout.quantised:
        values, scales = plane(layout.view(arena, "dense")[:here])
        layout.view(arena, "quantised")[:here], layout.view(arena, "scales")[:here] = values, scales
    layout.view(arena, "birth")[:here] = 0
    layout.view(arena, "death").fill_(NEVER)
    layout.view(arena, "expires").fill_(NEVER)
    layout.view(arena, "tenant").fill_(TENANT)
    _zones(layout, arena, here, dense, bucket)
    return arena


def _zones(layout: Layout, arena: torch.Tensor, here: int, dense: torch.Tensor, bucket: torch.Tensor) -> None:
    """Of the blocks that hold rows; of the others `rows` is 0, and nobody looks."""
    blocks = -(-here // BLOCK)

    def by_block(values: torch.Tensor, fill: float) -> torch.Tensor:
        return torch.nn.functional.pad(values, (0, blocks * BLOCK - here), value=fill).view(blocks, BLOCK)

    held = torch.full((blocks,), BLOCK, dtype=torch.int32, device=arena.device)
    held[-1] = here - (blocks - 1) * BLOCK
    layout.view(arena, "zone.rows")[:blocks] = held
    layout.view(arena, "zone.expires_max")[:blocks] = NEVER
    layout.view(arena, "zone.tenants")[:blocks] = 1 << TENANT
    norms = layout.view(arena, "zone.norms")
    greatest = by_block(torch.linalg.vector_norm(dense.float(), dim=1), 0.0).amax(1)
    norms[:blocks, 0] = greatest * (1 + 2.0**-20)  # rounded up
    norms[:blocks, 1] = 0
    layout.view(arena, f"zone.{BUCKET}.low")[:blocks] = by_block(bucket, math.inf).amin(1)
    layout.view(arena, f"zone.{BUCKET}.high")[:blocks] = by_block(bucket, -math.inf).amax(1)
    layout.view(arena, f"zone.{BUCKET}.lacks")[:blocks] = 0


def share(layout: Layout, low: float, high: float, device: torch.device) -> Filters:
    """One filter: BUCKET within [low, high); all rows where that is [0, 1]."""
    everything = (low, high) == (0.0, 1.0)
    step = [program.RANGE, layout.entry(BUCKET), 0, 0, 2, 0, 0, 0, 0, 0]
    steps = [] if everything else [step]
    numbers = [] if everything else [low, math.nextafter(high, -math.inf)]

    def tensor(values: list[int] | list[float], dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor(values or [0], dtype=dtype, device=device)

    flat = [value for one in steps for value in one] or [0] * program.STEP
    return Filters(
        steps=torch.tensor(flat, dtype=torch.int32, device=device).view(-1, program.STEP),
        marks=tensor([0] * len(steps), torch.int64),
        codes=tensor([], torch.int32),
        numbers=tensor(numbers, torch.float64),
        longs=tensor([], torch.int64),
        bounds=tensor([0, len(steps)], torch.int32),
        epochs=tensor([1], torch.int64),
        nows=tensor([1], torch.int64),
        tenants=tensor([TENANT], torch.int32),
        owners=tensor([1 << TENANT], torch.int64),
    )


def asked(batch: int, width: int, seed: int) -> Queries:
    """`batch` dense queries of unit length, on the host, all of filter 0."""
    generator = torch.Generator().manual_seed(seed)
    dense = torch.nn.functional.normalize(torch.randn(batch, width, generator=generator), dim=1)
    return Queries(
        dense=dense,
        starts=torch.zeros(batch + 1, dtype=torch.int32),
        terms=torch.zeros(0, dtype=torch.int32),
        weights=torch.zeros(0),
        filter_of=torch.zeros(batch, dtype=torch.int32),
    )
