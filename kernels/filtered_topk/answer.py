"""Reading what a batch's launches left (run.py beside this), and asking again what they could not prove.

A query is proven when at least k of its survivors reach, by the lower end of their scores, the threshold that others
were left out by, and none was dropped for want of room. Any other is scanned again alone, with a threshold that its k
best are known to reach and room for all who reach it; such survivors may be more than registers hold, so they are
narrowed by torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import triton
from torch import Tensor

from penstock.kernels.filtered_topk import finish, scan
from penstock.kernels.filtered_topk.prepare import NOBODY, Prepared

if TYPE_CHECKING:
    from penstock.kernels.filtered_topk.run import Launched, Run

ROOM = 1 << 22  # survivors of a query that a rerun makes room for; of more, those above its certain threshold
ALONE = 16  # queries that a query alone is padded to


@dataclass(frozen=True, slots=True)
class Found:
    """The best `k` of each query, best first; on the slabs' device but for what says host.

    slots int64 [B, k], dense and lexical float64 [B, k]; past `counts` int32 [B] they mean nothing. totals int64 [F]:
    rows that pass each filter. settled bool [B] (host): False where a score is the caller's to settle. looked_at: rows
    of the live blocks; rescored int32 [B] (host); reruns: queries that were asked again.
    """

    slots: Tensor
    dense: Tensor
    lexical: Tensor
    counts: Tensor
    totals: Tensor
    settled: Tensor
    rescored: Tensor
    looked_at: int
    reruns: int


@dataclass(frozen=True, slots=True)
class _Alone:
    """One query's. slots int64, dense and lexical float64 [k]."""

    slots: Tensor
    dense: Tensor
    lexical: Tensor
    kept: int
    doubtful: int
    reached: float  # by its k best, at least


def read(run: Run, queries: Prepared, launched: Launched) -> Found:
    """The answer. Survivors of a k above some 4,000 do not fit into registers, and are narrowed here as well."""
    looked_at, totals = int(run.counters[scan.LOOKED_AT]), launched.totals.clone()
    if launched.finished is None:
        out, reruns = _narrowed_each(run, queries, launched)
        slots, dense, lexical = (
            torch.stack(some) for some in zip(*((one.slots, one.dense, one.lexical) for one in out), strict=True)
        )
        kept = torch.tensor([one.kept for one in out], dtype=torch.int32)
        doubtful = torch.tensor([one.doubtful for one in out], dtype=torch.int32)
    else:
        count, finished = queries.count, launched.finished
        slots, dense, lexical = (one[:count].clone() for one in (finished.slots, finished.dense, finished.lexical))
        status = finished.status[:count].cpu()
        kept, doubtful = status[:, finish.KEPT].clone(), status[:, finish.DOUBTFUL].clone()
        unproven = (status[:, finish.PROVEN] == 0).nonzero().flatten().tolist()
        reruns = len(unproven)
        for query in unproven:
            bar, survivors = float(finished.reached[query]), int(status[query, finish.FOUND])
            one = _again(run, run.only(queries, query), bar, survivors, launched.capacity)
            slots[query], dense[query], lexical[query] = one.slots, one.dense, one.lexical
            kept[query], doubtful[query] = one.kept, one.doubtful
    return Found(
        slots=slots,
        dense=dense,
        lexical=lexical,
        counts=kept.clamp(max=run.k),
        totals=totals,
        settled=doubtful == 0,
        rescored=kept,
        looked_at=looked_at,
        reruns=reruns,
    )


def _narrowed_each(run: Run, queries: Prepared, launched: Launched) -> tuple[Sequence[_Alone], int]:
    """Of each query its best, and how many were asked again."""
    bars, counts = launched.tau[: queries.count].tolist(), run.found[: queries.count].tolist()
    capacity = launched.capacity
    survivors = [
        (run.slots[query, : min(count, capacity)].clone(), run.scores[query, : min(count, capacity)].clone())
        for query, count in enumerate(counts)
    ]
    out, reruns = [], 0
    for query, (mine, bar, count) in enumerate(zip(survivors, bars, counts, strict=True)):
        alone = run.only(queries, query)
        one = _narrowed(run, alone, *mine)
        if count > capacity or not one.reached >= bar:
            reruns += 1
            one = _again(run, alone, one.reached, count, capacity)
        out.append(one)
    return out, reruns


def _again(run: Run, alone: Prepared, bar: float, survivors: int, capacity: int) -> _Alone:
    """One query with a threshold that its k best are known to reach, and room for all who reach it."""
    totals = torch.zeros_like(run.filters.epochs)
    tau = torch.full((alone.batch,), bar, device=run.device)
    room = min(1 << (max(survivors, capacity) - 1).bit_length(), ROOM)
    while True:
        run.scan(alone, tau, totals, room)
        survivors = int(run.found[0])
        if survivors <= room:
            return _narrowed(run, alone, run.slots[0, :survivors], run.scores[0, :survivors])
        room = 1 << (survivors - 1).bit_length()


def _narrowed(run: Run, alone: Prepared, found: Tensor, scores: Tensor) -> _Alone:
    """What `finish` does, by torch, of any number of survivors of one query."""
    slots, score = found.long(), scores.double()
    norms = _norms_of(run, slots)
    slack = alone.slack[:, 0].double()
    lost = alone.steps_of[1, 0].double() * norms[:, 2]
    off = (slack[0] * norms[:, 0] + slack[1] * norms[:, 1] + slack[2] + lost) * (1 + 2.0**-20)
    reached = -math.inf
    if len(slots) >= run.k:
        least = torch.topk(score - off, run.k).values[-1]
        slots, reached = slots[score + off >= least], float(least)
    kept = torch.zeros(1, max(len(slots), 1), dtype=torch.int32, device=run.device)
    kept[0, : len(slots)] = slots
    status = torch.zeros(1, finish.STATUS, dtype=torch.int32, device=run.device)
    status[0, finish.KEPT] = len(slots)
    dense, lexical, ties, _ = run.rescored(alone, kept, status, len(slots))
    dense, lexical, ties = dense[0, : len(slots)], lexical[0, : len(slots)], ties[0, : len(slots)]
    order = torch.argsort(ties)
    order = order[torch.argsort((dense + lexical)[order], descending=True, stable=True)][: run.k]
    best_slots = torch.zeros(run.k, dtype=torch.int64, device=run.device)
    best_dense, best_lexical = torch.zeros(2, run.k, dtype=torch.float64, device=run.device)
    for mine, theirs in ((best_slots, slots), (best_dense, dense), (best_lexical, lexical)):
        mine[: len(order)] = theirs[order]
    return _Alone(best_slots, best_dense, best_lexical, len(slots), int(status[0, finish.DOUBTFUL]), reached)


def _norms_of(run: Run, slots: Tensor) -> Tensor:
    """The greatest norms of the slots' blocks, and what quantising took from the row: float64 [n, 3]."""
    out = torch.empty(max(len(slots), 1), 3, dtype=torch.float32, device=run.device)
    finish.norms[(triton.cdiv(max(len(slots), 1), 128),)](
        run.slabs.table,
        run.slabs.offsets,
        slots.to(torch.int32),
        out,
        len(slots),
        BLOCKS=run.layout.blocks,
        QUANTISED=run.quantised,
    )
    return out[: len(slots)].double()


def only(queries: Prepared, query: int) -> Prepared:
    """The batch with this query in the first place, and nobody else."""
    first = torch.tensor([query], device=queries.vectors.device)

    def rows(values: Tensor, fill: float = 0) -> Tensor:
        out = torch.full((ALONE, *values.shape[1:]), fill, dtype=values.dtype, device=values.device)
        out[:1] = values[first]
        return out

    begin, end = (int(n) for n in queries.starts[query : query + 2])
    starts = torch.full((ALONE + 1,), end - begin, dtype=torch.int32, device=queries.starts.device)
    starts[0] = 0
    return Prepared(
        count=1,
        vectors=rows(queries.vectors),
        weights=rows(queries.weights),
        terms=queries.terms,
        slack=rows(queries.slack.T).T.contiguous(),
        steps_of=rows(queries.steps_of.T).T.contiguous(),
        filter_of=rows(queries.filter_of, NOBODY),
        exact=rows(queries.exact),
        starts=starts,
        exact_terms=queries.exact_terms[begin:end],
        exact_weights=queries.exact_weights[begin:end],
    )
