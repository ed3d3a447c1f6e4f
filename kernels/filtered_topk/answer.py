"""Reading what a batch's launches left (run.py beside this), and asking again what they could not prove.

A query is proven when at least k of its survivors reach, by the lower end of their scores, the threshold that others
were left out by, and none was dropped for want of room. Then its answer is in the result, which is read once.

All others of a batch are scanned again together, each with a threshold that its k best are known to reach. Where that
may leave more survivors than ROOM holds (rows that tie by the million), the rows are looked at in parts: behind each,
its survivors are scored exactly and only the best k stay, by score and then by hash, while thresholds rise. So no more
than ROOM is held, whatever ties. This is by torch, of any number of survivors, and waits for the device as it goes.
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
from penstock.kernels.filtered_topk.prepare import Prepared

if TYPE_CHECKING:
    from penstock.kernels.filtered_topk.run import Launched, Run

ROOM = 1 << 22  # survivors, of all queries that are asked again together
APART = 16  # parts begin at multiples of so many blocks or rows, arrays are so wide: kernels are compiled for such
HIGHEST = torch.iinfo(torch.int64).max


@dataclass(frozen=True, slots=True)
class Found:
    """The best `k` of each query, best first, on the host.

    slots int64 [B, k], dense and lexical float64 [B, k]; past `counts` int32 [B] they mean nothing. totals int64 [F]:
    rows that pass each filter. settled bool [B]: False where a score is the caller's to settle. rescored int32 [B]:
    rows that were scored exactly. looked_at: rows of the live blocks; reruns: queries that were asked again.
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
class _Best:
    """The best so far of n queries, in order. slots and ties int64, dense and lexical float64, there bool [n, k]: false
    of what is no row's. lowers float64 [n, k]: the greatest lower ends of scores, -inf of fewer. kept int64 [n]: rows
    scored exactly; doubtful bool [n]: some of them is the caller's to settle."""

    slots: Tensor
    dense: Tensor
    lexical: Tensor
    ties: Tensor
    there: Tensor
    lowers: Tensor
    kept: Tensor
    doubtful: Tensor

    @classmethod
    def none(cls, count: int, k: int, device: torch.device) -> _Best:
        shape = (count, k)
        slots, ties = torch.zeros(2, *shape, dtype=torch.int64, device=device)
        dense, lexical = torch.zeros(2, *shape, dtype=torch.float64, device=device)
        there = torch.zeros(shape, dtype=torch.bool, device=device)
        lowers = torch.full(shape, -math.inf, dtype=torch.float64, device=device)
        kept = torch.zeros(count, dtype=torch.int64, device=device)
        return cls(slots, dense, lexical, ties, there, lowers, kept, kept > 0)

    @property
    def reached(self) -> Tensor:
        """float32 [n]: what k rows reach at least."""
        return _rounded_down(self.lowers[:, -1])


def read(run: Run, queries: Prepared, launched: Launched) -> Found:
    """The answer. `queries` may be fewer than were launched."""
    result, count, k = launched.result.on_host(), queries.count, run.k
    status = result.status[:count]
    slots, dense, lexical = result.slots[:count], result.dense[:count], result.lexical[:count]
    kept, doubtful = status[:, finish.KEPT].clone(), status[:, finish.DOUBTFUL] != 0
    if not launched.finished:
        slots = torch.zeros(count, k, dtype=torch.int64)
        dense, lexical = torch.zeros(2, count, k, dtype=torch.float64)

    def put(which: Sequence[int], places: Sequence[int], best: _Best) -> None:
        for mine, theirs in (
            (slots, best.slots),
            (dense, best.dense),
            (lexical, best.lexical),
            (kept, best.kept),
            (doubtful, best.doubtful),
        ):
            mine[list(which)] = theirs[torch.tensor(places, device=theirs.device)].to("cpu", mine.dtype)

    if launched.finished:
        unproven = (status[:, finish.PROVEN] == 0).nonzero().flatten().tolist()
        bars, survivors = result.reached[:count], status[:, finish.FOUND]
    else:
        survivors, bars = run.found[:count].cpu(), torch.empty(count)
        tau, capacity = launched.tau[:count].cpu(), launched.capacity
        step = max(ROOM // capacity // APART, 1) * APART
        narrowed = [
            _narrowed_in_turn(run, queries, range(at, min(at + step, count)), capacity) for at in range(0, count, step)
        ]
        for which, places, best in narrowed:
            put(which, places, best)
            bars[which.start : which.stop] = best.reached.cpu()[list(places)]
        unproven = ((survivors > capacity) | ~(bars >= tau)).nonzero().flatten().tolist()
    if run.doubted:
        unproven = list(range(count))
    if unproven:
        put(unproven, *_again(run, queries, unproven, bars[unproven], int(survivors[unproven].max())))
    return Found(
        slots=slots,
        dense=dense,
        lexical=lexical,
        counts=kept.clamp(max=k),
        totals=result.totals,
        settled=~doubtful,
        rescored=kept,
        looked_at=int(result.counters[scan.LOOKED_AT]),
        reruns=len(unproven),
    )


def _narrowed_in_turn(run: Run, queries: Prepared, which: range, capacity: int) -> tuple[range, list[int], _Best]:
    """Of some queries of a batch whose survivors do not fit into registers: which, their places in what follows, and
    their best."""
    alone, rows = run.picked(queries, which)
    mine = torch.tensor(rows, device=run.device)
    counts = run.found[mine].clamp(max=capacity)
    widest = max(int(counts.max()), 1)
    begun = _Best.none(len(rows), run.k, run.device)
    best = _narrowed(run, alone, run.slots[mine, :widest], run.scores[mine, :widest], counts, begun)
    return which, [rows.index(query) for query in which], best


def _again(run: Run, queries: Prepared, which: Sequence[int], bars: Tensor, expected: int) -> tuple[list[int], _Best]:
    """These queries, of thresholds `bars` (float32 on the host) that their k best are known to reach: their places in
    what was asked, and the best. `expected`: survivors of any of them, about."""
    asked, rows = run.picked(queries, which)
    places = [rows.index(query) for query in which]
    tau = torch.full((asked.batch,), math.inf, device=run.device)  # which nobody reaches
    tau[torch.tensor(places, device=run.device)] = bars.to(run.device)
    totals = torch.empty_like(run.filters.epochs)
    best = _Best.none(len(rows), run.k, run.device)
    most = max(1 << ((ROOM // len(rows)).bit_length() - 1), run.unit * APART)
    sure = most // run.unit // APART * APART  # blocks, or rows of lists, that have room whatever passes
    units, first = run.units(), 0
    room = min(_power(max(expected, 64)), most)
    step = units if expected <= room else sure
    while first < units:
        last = min(first + step, units)
        part = run.part(asked, first, last)
        part.scan(asked, tau, totals, min(room, _power((last - first) * run.unit)))
        counts = part.found[: len(rows)]
        widest = max(int(counts.max()), 1)
        if widest > part.slots.shape[1]:
            room, step = most, min(step, sure)
            continue
        best = _narrowed(run, asked, part.slots[:, :widest], part.scores[:, :widest], counts, best)
        tau[: len(rows)] = torch.maximum(tau[: len(rows)], best.reached)
        first = last
    return places, best


def _narrowed(run: Run, queries: Prepared, slots: Tensor, scores: Tensor, counts: Tensor, best: _Best) -> _Best:
    """What `finish` does, of survivors [n, width], of each query the first `counts`, and of the best so far."""
    count, width = slots.shape
    there = torch.arange(width, device=run.device) < counts[:, None]
    slots = torch.where(there, slots, 0)
    off = _off(run, queries, slots)
    score = scores.double()
    lowers = torch.cat([best.lowers, torch.where(there, score - off, -math.inf)], 1).topk(run.k).values
    keep = there & (score + off >= lowers[:, -1:])
    kept = keep.sum(1)
    widest = -(-max(int(kept.max()), 1) // APART) * APART
    some = torch.zeros(count, widest, dtype=torch.int32, device=run.device)
    query, at = keep.nonzero(as_tuple=True)
    some[query, (keep.cumsum(1) - 1)[query, at]] = slots[query, at]
    status = torch.zeros(count, finish.STATUS, dtype=torch.int32, device=run.device)
    status[:, finish.KEPT] = kept
    dense, lexical, ties, _ = run.rescored(queries, some, status, widest)
    mine = torch.arange(widest, device=run.device) < kept[:, None]
    slots = torch.cat([best.slots, some.long()], 1)
    dense, lexical = torch.cat([best.dense, dense], 1), torch.cat([best.lexical, lexical], 1)
    ties, there = torch.cat([best.ties, ties], 1), torch.cat([best.there, mine], 1)
    places = _places(dense + lexical, ties, there, run.k)
    return _Best(
        slots=slots.gather(1, places),
        dense=dense.gather(1, places),
        lexical=lexical.gather(1, places),
        ties=ties.gather(1, places),
        there=there.gather(1, places),
        lowers=lowers,
        kept=best.kept + kept,
        doubtful=best.doubtful | (status[:, finish.DOUBTFUL] != 0),
    )


def _places(score: Tensor, ties: Tensor, there: Tensor, k: int) -> Tensor:
    """Where the best k are, in the total order: int64 [n, k]. Of those that tie for the last place, those of the least
    hashes; nothing but the chosen is sorted."""
    score = torch.where(there, score, -math.inf)
    last = score.topk(k).values[:, -1:]
    above, tied = there & (score > last), there & (score == last)
    needed = k - above.sum(1, keepdim=True)
    least = torch.where(tied, ties, HIGHEST).topk(k, largest=False).values
    highest = least.gather(1, (needed - 1).clamp_(min=0))
    chosen = above | (tied & (ties <= highest) & (needed > 0))
    places = chosen.to(torch.int8).topk(min(int(chosen.sum(1).max().clamp(min=k)), score.shape[1])).indices
    order = torch.where(chosen, ties, HIGHEST).gather(1, places).argsort(stable=True)
    places = places.gather(1, order)
    order = torch.where(chosen, score, -math.inf).gather(1, places).argsort(descending=True, stable=True)
    return places.gather(1, order)[:, :k]


def _off(run: Run, queries: Prepared, slots: Tensor) -> Tensor:
    """How far the scores of rows (int [n, width]) can be from the exact ones: float64."""
    shape = (*slots.shape, 3)
    norms = torch.empty(shape, dtype=torch.float32, device=run.device)
    finish.norms[(triton.cdiv(slots.numel(), 128),)](
        run.slabs.table,
        run.slabs.offsets,
        slots.to(torch.int32).contiguous(),
        norms,
        slots.numel(),
        BLOCKS=run.layout.blocks,
        QUANTISED=run.quantised,
    )
    of_dense, of_sketch, lost = norms.double().unbind(2)
    slack = queries.slack[:, : len(slots), None].double()
    lost *= queries.steps_of[1, : len(slots), None].double()
    return (slack[0] * of_dense + slack[1] * of_sketch + slack[2] + lost) * (1 + 2.0**-20)


def _power(count: int) -> int:
    """Of two, the least that is no less."""
    return 1 << (count - 1).bit_length()


def _rounded_down(values: Tensor) -> Tensor:
    """float32, none above its float64."""
    out = values.to(torch.float32)
    return torch.where(out.double() > values, torch.nextafter(out, torch.full_like(out, -math.inf)), out)
