"""A search over a pinned epoch: which rows pass, which of them are best, and what they are called. No locks.

    1. plan    zone maps say which blocks to look at
    2. pass    the clause program over their rows, and what of that the epoch and the tenant can see
    3. score   the best of the rows that pass, in the total order; without a vector the newest
    4. name    ids, versions and scores of the best

Where a device mirrors the pages, it takes steps 1 to 3 of searches by vector; those that it declines, which says why,
and those without a vector are the host's.

Where it stands: life-of-a-query.md, step 6.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from penstock.retrieval.search import plan as planning
from penstock.retrieval.search import scan
from penstock.retrieval.search.program import Overflow, Program, compile_tree, passing
from penstock.retrieval.store.page import Longs, Page
from penstock.retrieval.store.pages import Table
from penstock.retrieval.store.planes import QueryPlanes, query_planes
from penstock.retrieval.store.records import Ask, SearchResult
from penstock.retrieval.store.rows import Rows
from penstock.schemas.errors import InvalidRecord
from penstock.schemas.rpc import Hit

if TYPE_CHECKING:
    from penstock.retrieval.device.search import Answer, Device

MAX_K = 16_384

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Pin:
    """An epoch held for reading: its slots are not used again before the pin is gone."""

    epoch: int
    table: Table


@dataclass(frozen=True, slots=True)
class Scope:
    """Which rows a search may see."""

    pin: Pin
    tenant: int | None  # its code; None: it has no rows
    now_ms: int


@dataclass(frozen=True, slots=True)
class Found:
    """The rows that some searches of a batch have in common."""

    pin: Pin
    plan: planning.Plan
    passing: scan.Passing
    total: int


def answers(
    rows: Rows, asks: Sequence[Ask], pins: Sequence[Pin | Exception], device: Device | None = None
) -> list[SearchResult | Exception]:
    """What each ask finds at its pin, or what is wrong with it. The pins are of one moment, so of one page table."""
    out: dict[int, SearchResult | Exception] = {}
    scored: list[Scored] = []
    shared = _Shared(rows)
    for place, (ask, pin) in enumerate(zip(asks, pins, strict=True)):
        try:
            if isinstance(pin, Exception):
                raise pin
            if not 0 < ask.k <= MAX_K:
                raise InvalidRecord("k", ask.k, f"1 to {MAX_K}")
            query = query_planes(ask.vector, pin.table.space) if ask.vector is not None else None
            sought = shared.sought(ask, pin)
        except InvalidRecord as error:
            out[place] = error
            continue
        if query is not None:
            scored.append(Scored(place, sought, query, ask.k))
        else:
            order = newest if ask.vector is None else unscored
            found = shared.found(sought)
            out[place] = _result(rows, found, order(pin.table, slots_of(pin.table, found.passing), ask.k))
    declined = dict.fromkeys((one.place for one in scored), "")
    if scored and device is not None:
        told = device.best_many(scored[0].sought.scope.pin.table, rows.overflow, scored)
        declined = {}
        for one, answer in zip(scored, told, strict=True):
            if isinstance(answer, str):
                declined[one.place] = f" on the host: {answer}"
            else:
                out[one.place] = _answered(rows, one.sought.scope.pin, answer)
    left = [(one, shared.found(one.sought)) for one in scored if one.place in declined]
    if left:
        pages = left[0][1].pin.table.pages
        bests = scan.best_many(pages, [scan.Ask(one.query, found.passing, one.k) for one, found in left])
        for (one, found), best in zip(left, bests, strict=True):
            out[one.place] = _result(rows, found, best, declined[one.place])
    return [out[place] for place in range(len(asks))]


@dataclass(frozen=True, slots=True, eq=False)
class Sought:
    """Which rows a search may find. Equal only to itself: searches of a batch that may find the same share it."""

    program: Program | None
    scope: Scope


@dataclass(frozen=True, slots=True)
class Scored:
    """A search by vector of a batch."""

    place: int
    sought: Sought
    query: QueryPlanes
    k: int


class _Shared:
    """What searches of a batch have in common, found out once."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._sought: dict[Hashable, Sought] = {}  # by what decides which rows pass
        self._found: dict[Sought, Found] = {}

    def sought(self, ask: Ask, pin: Pin) -> Sought:
        """Raises InvalidRecord of a filter that is wrong."""
        key = (pin.epoch, ask.tenant, ask.now_ms, ask.filter)
        known = self._sought.get(key)
        if known is None:
            program = compile_tree(ask.filter, self._rows.words) if ask.filter is not None else None
            known = Sought(program, Scope(pin, self._rows.tenants.find(ask.tenant), ask.now_ms))
            self._sought[key] = known
        return known

    def found(self, sought: Sought) -> Found:
        known = self._found.get(sought)
        if known is None:
            planned = plan(sought.scope, sought.program)
            passes = passing_of(sought.scope, sought.program, self._rows.overflow, planned)
            known = self._found[sought] = Found(sought.scope.pin, planned, passes, count(passes))
        return known


def _result(rows: Rows, found: Found, best: scan.Best, remark: str = "") -> SearchResult:
    return SearchResult(
        hits=hits(found.pin.table, rows.ids, best),
        total=found.total,
        epoch=found.pin.epoch,
        rescored=best.rescored,
        plan=found.plan.choice + remark,
        looked_at=found.plan.rows,
    )


def _answered(rows: Rows, pin: Pin, answer: Answer) -> SearchResult:
    return SearchResult(
        hits=hits(pin.table, rows.ids, answer.best),
        total=answer.total,
        epoch=pin.epoch,
        rescored=answer.best.rescored,
        plan=answer.plan,
        looked_at=answer.looked_at,
    )


def plan(scope: Scope, program: Program | None) -> planning.Plan:
    """What a search has to look at."""
    table = scope.pin.table
    return planning.plan(program, table.pages, table.zones, scope.now_ms, scope.tenant)


def rows_of(scope: Scope, program: Program | None, overflow: Overflow, planned: planning.Plan) -> Iterator[Longs]:
    """The slots (int64, ascending) that pass and are visible, a page of the plan at a time."""
    for part in planned.parts:
        page, rows = scope.pin.table.pages[part.page], part.rows
        if program is not None:
            left = np.flatnonzero(passing(program, page, overflow, rows))
            rows = left + rows.start if isinstance(rows, slice) else rows[left]
        at = np.flatnonzero(_visible(scope, page, rows))
        yield page.first + (at + rows.start if isinstance(rows, slice) else rows[at])


def masks_of(scope: Scope, program: Program | None, overflow: Overflow, planned: planning.Plan) -> tuple[Mask, ...]:
    """The same, where many pass: bool [rows] of each page."""
    pages = scope.pin.table.pages
    out = [np.zeros(0, np.bool_)] * len(pages)
    for part in planned.parts:
        page, rows = pages[part.page], part.rows
        mask = _visible(scope, page, rows)
        if program is not None:
            mask &= passing(program, page, overflow, rows)
        out[part.page] = np.zeros(page.rows, np.bool_)
        out[part.page][rows] = mask
    none = np.zeros(scope.pin.table.page_rows, np.bool_)
    return tuple(mask if len(mask) else none for mask in out)


def passing_of(scope: Scope, program: Program | None, overflow: Overflow, planned: planning.Plan) -> scan.Passing:
    """Which rows pass, as a scan takes them: slots where they are few, masks where they are many."""
    if planned.choice in (planning.Choice.GATHER, planning.Choice.NOTHING):
        return joined(list(rows_of(scope, program, overflow, planned)))
    return masks_of(scope, program, overflow, planned)


def _visible(scope: Scope, page: Page, rows: slice | Longs) -> Mask:
    epoch = scope.pin.epoch
    seen: Mask = (page.birth[rows] <= epoch) & (page.death[rows] > epoch)
    seen &= page.expires[rows] > scope.now_ms
    seen &= page.tenant[rows] == scope.tenant
    return seen


def count(found: scan.Passing) -> int:
    """How many rows pass."""
    return sum(int(np.count_nonzero(mask)) for mask in found) if isinstance(found, tuple) else len(found)


def slots_of(table: Table, found: scan.Passing) -> Longs:
    """Their slots, ascending."""
    if not isinstance(found, tuple):
        return found
    return joined([np.flatnonzero(mask) + page.first for page, mask in zip(table.pages, found, strict=True)])


def joined(parts: Sequence[Longs]) -> Longs:
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def newest(table: Table, slots: Longs, k: int) -> scan.Best:
    """The `k` newest, ties by hash. Every score is 0."""
    when = table.take("recency", slots)
    if len(slots) > k:
        kept = when >= np.partition(when, len(when) - k)[len(when) - k]
        slots, when = slots[kept], when[kept]
    top = slots[np.lexsort((table.take("ties", slots), ~when))[:k]]
    return scan.Best(top, np.zeros(len(top)), np.zeros(len(top)), 0)


def unscored(table: Table, slots: Longs, k: int) -> scan.Best:
    """The first `k` by hash: nothing stored can be compared with the query."""
    top = slots[np.argsort(table.take("ties", slots))[:k]]
    return scan.Best(top, np.zeros(len(top)), np.zeros(len(top)), 0)


def hits(table: Table, ids: Sequence[Sequence[str]], found: scan.Best) -> tuple[Hit, ...]:
    """The best rows as callers get them. `ids`: of each page, by row."""
    slots = found.rows
    return tuple(
        Hit(
            posting_id=ids[slot // table.page_rows][slot % table.page_rows],
            version=version,
            revision=revision,
            score=by_dense + by_term,
            dense=by_dense,
            lexical=by_term,
            recency=recency,
        )
        for slot, version, revision, by_dense, by_term, recency in zip(
            slots.tolist(),
            table.take("version", slots).tolist(),
            table.take("revision", slots).tolist(),
            found.dense.tolist(),
            found.lexical.tolist(),
            table.take("recency", slots).tolist(),
            strict=True,
        )
    )
