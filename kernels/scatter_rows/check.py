"""A handful of seeded writes through the kernels and the oracle, for benchmarks/kernels.py."""

from __future__ import annotations

import torch

from penstock.kernels.scatter_rows import reference
from penstock.kernels.scatter_rows.segments import Segments, of_blocks, of_rows
from penstock.kernels.scatter_rows.staging import Publication, Staging
from penstock.kernels.slabs.layout import Kind, Layout, empty_arena, page_table

COLUMNS = tuple((f"{kind}-{number}", kind) for number in range(2) for kind in Kind)


class Pages:
    """Pages of one layout on a device, and beside them what the oracle says they hold."""

    def __init__(self, layout: Layout, pages: int, seed: int, device: torch.device | str = "cpu") -> None:
        self.layout = layout
        self.chance = torch.Generator().manual_seed(seed)
        self.arenas = [empty_arena(layout, device) for _ in range(pages)]
        for arena in self.arenas:  # poisoned: what nobody may write is told from what was forgotten
            arena.copy_(torch.randint(0, 256, arena.shape, generator=self.chance, dtype=torch.uint8))
        self.table = page_table(self.arenas)
        self.word = torch.zeros(1, dtype=torch.int64, device=device)
        self.wanted = [arena.cpu().clone() for arena in self.arenas]
        self.device = device

    def scatter(self, segments: Segments, count: int, staging: Staging | None = None) -> None:
        """Random records to random slots, a few of them nowhere; by this staging once it is free, or by a new one."""
        staging = Staging(segments, count + 3, self.device) if staging is None else staging
        staging.ready()
        slots = torch.randperm(segments.per_page * len(self.arenas), generator=self.chance)[:count]
        slots[::7] = -1
        staging.slots[:count] = slots
        records = torch.randint(0, 256, (count, segments.record), generator=self.chance, dtype=torch.uint8)
        for name in segments.dtypes:
            begin, size = segments.place(name)
            staging.field(name)[:count] = records[:, begin : begin + size].contiguous().view(segments.dtypes[name])
        staging.send(self.table, count)
        reference.scatter_rows(self.wanted, segments, slots, records)

    def publish(self, epoch: int, dead: int, born: int, freed: int) -> None:
        slots = torch.randperm(self.layout.rows * len(self.arenas), generator=self.chance)[: dead + born + freed]
        parts = slots[:dead], slots[dead : dead + born], slots[dead + born :]
        arrays = self.layout.arrays
        Publication(len(slots), self.device).send(
            self.table,
            self.word,
            epoch=epoch,
            dead=parts[0].tolist(),
            born=parts[1].tolist(),
            freed=parts[2].tolist(),
            per_page=self.layout.rows,
            birth=arrays["birth"].offset,
            death=arrays["death"].offset,
        )
        views = [[self.layout.view(arena, name) for arena in self.wanted] for name in ("birth", "death")]
        reference.publish(views[0], views[1], parts[0], parts[1], parts[2], epoch)

    def wrong(self) -> int:
        """Bytes that differ."""
        return sum(int((a.cpu() != b).sum()) for a, b in zip(self.arenas, self.wanted, strict=True))


def mismatches() -> int:
    """Bytes of pages, and epochs, that are not what the oracle says."""
    wrong = 0
    for seed, layout in enumerate(
        [
            Layout(256, 384, 1_024, COLUMNS, quantised=True),
            Layout(128, 16, 0, ()),
            Layout(384, 0, 40, COLUMNS[:3]),
        ]
    ):
        pages = Pages(layout, 2, seed)
        pages.scatter(of_rows(layout), 30)
        pages.scatter(of_blocks(layout), 2)
        pages.publish(seed + 5, 20, 30, 10)
        wrong += pages.wrong() + int(pages.word.item() != seed + 5)
    return wrong
