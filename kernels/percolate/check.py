"""A handful of seeded cases through the kernels and the oracle, for benchmarks/kernels.py."""

from __future__ import annotations

import numpy as np
import torch

from penstock.kernels.percolate.postings import staged
from penstock.kernels.percolate.reference import Case, pairs
from penstock.kernels.percolate.room import Room
from penstock.kernels.percolate.rows import Queries, RowLayout, padded
from penstock.kernels.percolate.standing import Standing
from penstock.kernels.percolate.triton import percolate
from penstock.kernels.percolate.tuning import PLACE

POISON = -7


def drawn(seed: int, queries: int, postings: int, width: int, sketch: int, *, most_terms: int = 6) -> Case:
    """A case in which some pairs pass, some of those score enough, and some thresholds are met exactly."""
    g = torch.Generator().manual_seed(seed)
    dense = torch.randn((queries, width), generator=g) / max(width, 1) ** 0.5
    posting_dense = (torch.randn((postings, width), generator=g) / max(width, 1) ** 0.5).bfloat16()
    lexical = torch.zeros((queries, sketch))
    for row in range(queries if sketch else 0):
        count = int(torch.randint(0, most_terms + 1, (), generator=g))
        terms = torch.randint(0, sketch, (count,), generator=g)
        lexical[row, terms] = torch.randn(count, generator=g) / 100
    case = Case(
        dense=dense,
        lexical=lexical,
        thresholds=torch.randn(queries, generator=g, dtype=torch.float64) / 20,
        tenants=torch.randint(0, 2, (queries,), generator=g),
        demands=torch.randint(0, 6, (3, queries), generator=g),
        posting_dense=posting_dense,
        posting_sketch=torch.randint(-20, 21, (postings, sketch), generator=g).to(torch.int8),
        posting_tenants=torch.randint(0, 2, (postings,), generator=g),
        holds=torch.rand((6, postings), generator=g) < 0.7,
    )
    case.holds[0] = True
    return case


def found(case: Case, terms: int, *, capacity: int | None = None, device: str = "cpu") -> torch.Tensor:
    """The pairs that the kernels find, bool [n, m]; ValueError where one is there twice or is none at all.

    Everything that a launch writes is poisoned before it.
    """
    layout = RowLayout(padded(case.dense.shape[1]), terms)
    standing = Standing(layout, device, slab=2)
    places = [
        standing.put(_queries(case, some), case.tenants[some].int().numpy(), case.demands[:, some].int().numpy())
        for some in (slice(begin, begin + PLACE) for begin in range(0, len(case.dense), PLACE))
    ]
    batch = staged(
        layout,
        case.posting_dense,
        case.posting_sketch,
        (_norm(case.posting_dense), _norm(case.posting_sketch)),
        words(case.holds),
        words(torch.stack([case.posting_tenants == tenant for tenant in range(2)])),
        device,
    )
    room = Room(device, capacity or max(1, len(case.dense) * len(case.posting_dense)))
    for part in (room.slots, room.postings, room.scores, *room.listed(len(places) * PLACE)):
        part.fill_(POISON)
    survivors = percolate(standing, torch.tensor(places, dtype=torch.int32, device=device), batch, room)
    slots, postings, _ = survivors.read()
    at = np.searchsorted(np.sort(places), slots // PLACE)
    order = np.argsort(places)
    rows = order[np.minimum(at, len(places) - 1)] * PLACE + slots % PLACE if len(places) else slots
    out = torch.zeros((len(case.dense), len(case.posting_dense)), dtype=torch.bool)
    for row, posting in zip(rows.tolist(), postings.tolist(), strict=True):
        if not (0 <= row < len(out) and 0 <= posting < out.shape[1]) or out[row, posting]:
            raise ValueError(f"the pair ({row}, {posting}) of {tuple(out.shape)} is there twice or is none")
        out[row, posting] = True
    return out


def words(mask: torch.Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """int64 [n] of bool [n, m], m at most 64: bit p is mask[:, p]."""
    out = np.zeros((len(mask), -(-mask.shape[1] // 64) * 8), np.uint8)
    packed = np.packbits(mask.numpy(), axis=1, bitorder="little")
    out[:, : packed.shape[1]] = packed
    return out.view("<i8").astype(np.int64)[:, 0] if out.shape[1] else np.zeros(len(mask), np.int64)


def mismatches() -> int:
    """How many pairs were left out that must be found, or found and may not be."""
    wrong = 0
    for seed, (queries, postings, width, sketch, terms) in enumerate(
        [(1, 1, 16, 8, 4), (1_500, 64, 40, 64, 8), (300, 17, 256, 128, 4), (90, 33, 384, 0, 0), (200, 9, 640, 32, 8)]
    ):
        case = drawn(seed, queries, postings, width, sketch)
        wanted, got = pairs(case, terms), found(case, terms)
        wrong += int((wanted.must & ~got).sum()) + int((got & ~wanted.may).sum())
    return wrong


def _queries(case: Case, some: slice) -> Queries:
    lexical = case.lexical[some].numpy()
    owner, terms = np.nonzero(lexical)
    norms = [torch.linalg.vector_norm(part[some].double(), dim=1).numpy() for part in (case.dense, case.lexical)]
    return Queries(
        dense=case.dense[some],
        starts=np.searchsorted(owner, np.arange(len(lexical) + 1)),
        terms=terms,
        weights=lexical[owner, terms],
        norms=np.stack(norms, axis=1) * (1 + 1e-12),
        thresholds=case.thresholds[some].numpy(),
    )


def _norm(part: torch.Tensor) -> float:
    sizes = torch.linalg.vector_norm(part.double(), dim=1)
    return float(sizes.max()) * (1 + 1e-12) if len(sizes) else 0.0
