"""A few pages of random rows with what the specification needs of them: for checks that ship with the operators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from penstock.kernels.filtered_topk.prepare import quantise
from penstock.kernels.filtered_topk.reference import filtered_topk as oracle
from penstock.kernels.slabs import program
from penstock.kernels.slabs.batch import Filters, Queries, Slabs
from penstock.kernels.slabs.layout import BLOCK, Kind, Layout, empty_arena, page_table

COLUMNS = (("id", Kind.HASH), ("salary", Kind.NUMBER))
FAR = 1 << 62


@dataclass(frozen=True, slots=True)
class Sample:
    """Rows, the pages that hold them, and two filters: everything, and salaries from `floor` on."""

    slabs: Slabs
    arenas: tuple[Tensor, ...]  # what the page table points to
    dense: Tensor  # bfloat16 [n, D]
    sketch: Tensor  # int8 [n, L]
    hashes: Tensor  # int64 [n]
    salary: Tensor  # float64 [n]
    filters: Filters
    floor: float


def sample(pages: int, rows: int, dense: int, sketch: int, *, seed: int, alike: bool) -> Sample:
    """`alike`: few distinct values, so that many rows tie."""
    g = torch.Generator().manual_seed(seed)
    count = pages * rows
    layout = Layout(rows, dense, sketch, COLUMNS, quantised=True)
    values = (
        torch.randint(-2, 3, (count, dense), generator=g).float() if alike else torch.randn(count, dense, generator=g)
    )
    planes = values.bfloat16()
    sketches = torch.randint(-3, 4, (count, sketch), generator=g).to(torch.int8)
    hashes = torch.randperm(count, generator=g) * 31 - count
    salary = torch.randint(0, 100, (count,), generator=g).double()
    arenas = []
    for number in range(pages):
        arena, some = empty_arena(layout, "cpu"), slice(number * rows, (number + 1) * rows)
        rounded, step, lost = quantise(planes[some])
        whole = {
            "sketch": sketches[some].reshape(rows // BLOCK, BLOCK, sketch).transpose(1, 2),
            "scales": torch.stack([step, lost * (1 + 1e-6)], 1).float(),
            "birth": torch.ones(rows),
            "death": torch.full((rows,), FAR),
            "expires": torch.full((rows,), FAR),
            "tenant": torch.zeros(rows),
            "column.id": hashes[some],
            "column.salary": salary[some],
            "zone.rows": torch.full((rows // BLOCK,), BLOCK),
            "zone.expires_max": torch.full((rows // BLOCK,), FAR),
            "zone.tenants": torch.ones(rows // BLOCK),
            "zone.salary.low": salary[some].view(-1, BLOCK).amin(1),
            "zone.salary.high": salary[some].view(-1, BLOCK).amax(1),
            "zone.norms": torch.stack([_norms(planes[some]), _norms(sketches[some])], 1),
        }
        for name, held in whole.items():
            layout.view(arena, name).copy_(held)
        layout.view(arena, "dense")[:, :dense] = planes[some]
        layout.view(arena, "quantised")[:, :dense] = rounded
        arenas.append(arena)
    slabs = Slabs(layout, page_table(arenas), layout.offsets())
    return Sample(slabs, tuple(arenas), planes, sketches, hashes, salary, _filters(layout, 70.0), 70.0)


def _norms(values: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(values.double(), dim=1).view(-1, BLOCK).amax(1) * (1 + 1e-6)
    return norms.float()


def _filters(layout: Layout, floor: float) -> Filters:
    step = [program.RANGE, layout.entry("salary"), 0, 0, 2, 2, 0, 0, 0, 0]
    return Filters(
        steps=torch.tensor([step], dtype=torch.int32),
        marks=torch.zeros(1, dtype=torch.int64),
        codes=torch.zeros(1, dtype=torch.int32),
        numbers=torch.tensor([floor, float("inf")], dtype=torch.float64),
        longs=torch.zeros(1, dtype=torch.int64),
        bounds=torch.tensor([0, 0, 1], dtype=torch.int32),
        epochs=torch.ones(2, dtype=torch.int64),
        nows=torch.zeros(2, dtype=torch.int64),
        tenants=torch.zeros(2, dtype=torch.int32),
        owners=torch.ones(2, dtype=torch.int64),
    )


def mismatches(operator: Callable[..., Any]) -> int:
    """How many of a top-k operator's ids and scores are not the specification's, over some seeded cases."""
    wrong = 0
    cases = ((2, 256, 20, 12, 9, False), (2, 128, 16, 8, 30, True), (1, 256, 130, 0, 5, False))
    for seed, (pages, rows, dense, sketch, k, alike) in enumerate(cases):
        made = sample(pages, rows, dense, sketch, seed=seed, alike=alike)
        g = torch.Generator().manual_seed(100 + seed)
        asked = 4
        terms = torch.cat([torch.randperm(sketch, generator=g)[:2].sort().values for _ in range(asked)]).int()
        per_query = len(terms) // asked
        queries = Queries(
            torch.randint(-2, 3, (asked, dense), generator=g).float()
            if alike
            else torch.randn(asked, dense, generator=g),
            torch.arange(asked + 1, dtype=torch.int32) * per_query,
            terms,
            torch.ones(len(terms)),
            torch.tensor([0, 1, 0, 1], dtype=torch.int32),
        )
        lexical = torch.zeros(asked, sketch)
        if per_query:
            lexical.scatter_(1, terms.view(asked, per_query).long(), 1.0)
        passes = torch.stack([torch.ones_like(made.salary, dtype=torch.bool), made.salary >= made.floor])
        scores, best = oracle(
            made.dense, made.sketch, queries.dense, lexical, passes[queries.filter_of.long()], made.hashes, k
        )
        found = operator(made.slabs, made.filters, queries, k, hashes="id", sampled=2)
        for query, count in enumerate(found.counts.tolist()):
            there = int((best[query] >= 0).sum())
            mine = (found.dense + found.lexical)[query, :there]
            same = (found.slots[query, :there] == best[query, :there]) & (mine == scores[query, :there])
            wrong += int((~same).sum()) + abs(there - count)
    return wrong
