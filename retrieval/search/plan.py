"""Which blocks a query looks at, and how: decided from zone maps alone, before a row is read.

1. skip     blocks without rows, of other tenants only, or whose rows have all expired
2. prune    blocks of which the clause program says that no row can pass
3. estimate how many of the rows that are left pass: every n-th block, its values taken as even over its zone
4. choose   a dense scan, a zone-pruned scan, or a gather of the rows that pass

Pure; zones may widen meanwhile, which can only add blocks. Where it stands: life-of-a-query.md, step 6.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from penstock.retrieval.search.geometry import reach
from penstock.retrieval.search.program import Instruction, Op, Program, possible
from penstock.retrieval.store.page import BLOCK, Doubles, Longs, Page
from penstock.retrieval.store.zones import EVERY_CODE, LACKING, Joined, Maps, Some, Zones, signature, signature_bits

GATHER_BELOW = 0.3  # share of the rows looked at that pass, below which a gather is cheaper than scoring all of them
PRUNE_FROM = 1 / 16  # share of the blocks, from which leaving them out is worth broken runs
SAMPLE = 256  # blocks, about, that an estimate is made of

Mask = npt.NDArray[np.bool_]


class Choice(StrEnum):
    """How rows are scored."""

    NOTHING = "nothing to look at"
    DENSE = "dense scan"  # every row of every page; those that do not pass are left out of the order
    PRUNED = "zone-pruned scan"  # every row of the blocks that are left
    GATHER = "gather"  # the rows that pass
    DEVICE_SCAN = "device scan"  # every row of the blocks that are left, by kernels (retrieval/device/)
    DEVICE_GATHER = "device gather"  # the rows that pass, likewise


@dataclass(frozen=True, slots=True)
class Part:
    """What to look at in one page."""

    page: int  # its place in the page table
    blocks: Longs  # int64, ascending
    rows: slice | Longs  # a superset of the blocks' rows, as `passing` takes them


@dataclass(frozen=True, slots=True)
class Plan:
    """`parts` holds every row that the tenant can see now and that can pass."""

    choice: Choice
    parts: tuple[Part, ...]
    blocks: int  # that hold rows
    skipped: int  # of them: other tenants' or expired
    pruned: int  # of them: ruled out by the program
    rows: int  # held by the blocks that are left
    held: int  # by all
    share: float  # of `rows` estimated to pass, or, once revised, that did
    reasons: tuple[str, ...]  # in words

    @property
    def pass_rate(self) -> float:
        """Of all rows held."""
        return self.share * self.rows / self.held if self.held else 0.0

    def revised(self, passed: int) -> Plan:
        """The plan once it is known how many rows pass: the choice is made again."""
        share = passed / self.rows if self.rows else 0.0
        choice, why = _choose(self.blocks, self.blocks - self.skipped - self.pruned, share, known=True)
        return replace(self, choice=choice, share=share, reasons=(*self.reasons, why))


def plan(
    program: Program | None, pages: Sequence[Page], zones: Sequence[Zones], now_ms: int, tenant_code: int | None
) -> Plan:
    """What to look at for one query at `now_ms` (epoch ms). `zones` are those of `pages`; None: a tenant unknown."""
    if not pages:
        return Plan(Choice.NOTHING, (), 0, 0, 0, 0, 0, 0.0, ("nothing is held",))
    maps = Joined(zones)
    filled = maps.rows > 0
    blocks, held = int(np.count_nonzero(filled)), int(maps.rows.sum())
    mask = np.zeros(len(filled), np.bool_)
    if tenant_code is not None:
        own = signature_bits(np.asarray([tenant_code], np.int32))[0]
        mask = filled & (maps.expires_max > now_ms) & (maps.tenants & own != 0)
    left = int(np.count_nonzero(mask))
    if program is not None and left:
        mask &= possible(program, maps)
    chosen = np.flatnonzero(mask)
    kept, rows = len(chosen), int(maps.rows[chosen].sum())
    share = 1.0 if program is None else _expected(program, Some(maps, chosen[:: len(chosen) // SAMPLE + 1]), held)
    choice, why = _choose(blocks, kept, share, known=False)
    reasons = [f"{kept} of {blocks} blocks are looked at"]
    if blocks - left:
        reasons.append(f"{blocks - left} hold nothing that the tenant can see now")
    if left - kept:
        reasons.append(f"{left - kept} are ruled out by their zone maps")
    parts = tuple(_parts(chosen, pages))
    return Plan(choice, parts, blocks, blocks - left, left - kept, rows, held, share, ("; ".join(reasons), why))


def _parts(chosen: Longs, pages: Sequence[Page]) -> Iterator[Part]:
    """The chosen blocks, counted through all pages, by page."""
    ends = np.cumsum([page.rows // BLOCK for page in pages])
    bounds = np.searchsorted(chosen, ends)
    for number in np.unique(np.searchsorted(ends, chosen, side="right")).tolist():
        begin = int(bounds[number - 1]) if number else 0
        blocks = chosen[begin : bounds[number]] - (ends[number - 1] if number else 0)
        yield Part(number, blocks, _rows_of(blocks, pages[number].rows))


def _choose(blocks: int, kept: int, share: float, *, known: bool) -> tuple[Choice, str]:
    if not kept:
        return Choice.NOTHING, "no block can hold a row that passes"
    told = f"{share:.2%} of their rows pass" if known else f"an estimated {share:.2%} of their rows pass"
    if share < GATHER_BELOW:
        return Choice.GATHER, f"{told}, less than {GATHER_BELOW:.0%}: {Choice.GATHER}"
    if blocks - kept >= PRUNE_FROM * blocks:
        return Choice.PRUNED, f"{told}, and {1 - kept / blocks:.0%} of the blocks are left out: {Choice.PRUNED}"
    return Choice.DENSE, f"{told}: {Choice.DENSE}"


def _rows_of(blocks: Longs, rows: int) -> slice | Longs:
    """One slice where the blocks fill most of it: reading on is cheaper than picking rows."""
    first, end = int(blocks[0]), int(blocks[-1]) + 1
    if 2 * len(blocks) >= end - first:
        return slice(first * BLOCK, min(end * BLOCK, rows))
    return (blocks[:, None] * BLOCK + np.arange(BLOCK)).ravel()


# --- estimates ---------------------------------------------------------------------------------------------------


def _expected(program: Program, some: Maps, held: int) -> float:
    """The share of the rows of all these blocks that may be expected to pass."""
    total = int(some.rows.sum())
    return float(some.rows @ estimate(program, some, held)) / total if total else 0.0


def estimate(program: Program, zones: Maps, held: int) -> Doubles:
    """float64 [B] in [0, 1]: the share of each block's rows expected to pass, clauses taken as unrelated.

    `held`: rows of all pages, among which an id may be anywhere.
    """
    stack: list[Doubles] = []
    for one in program.instructions:
        if not one.count:
            stack.append(_share(one, zones, held))
            continue
        parts, stack[-one.count :] = stack[-one.count :], []
        every = one.op is Op.ALL
        out = np.ones(len(zones.rows))
        for part in parts:
            out *= part if every else 1 - part
        stack.append(out if every else 1 - out)
    return stack.pop()


def _share(one: Instruction, zones: Maps, held: int) -> Doubles:
    """Of one clause. A block whose rows have and lack the attribute is taken to have it in half of them."""
    field = one.field
    if one.op is Op.IN_HASHES:
        found: Doubles = np.full(len(zones.rows), min(1.0, len(one.hashes) / max(held, 1)))
        return np.asarray(1 - found) if one.negated else found
    if one.op is Op.IN_SYMBOLS:
        bits = zones.bits[field]
        matched = _ratio(bits & np.uint32(one.mask), bits & np.uint32(0xFFFFFFFE))
        has = np.asarray(bits > 1)
        lacks = np.asarray(bits & np.uint32(1) != 0)
    elif one.op in (Op.IN_CODES, Op.ANY_CODE):
        signatures = zones.signature[field]
        matched = _ratio(signatures & signature(one.codes), signatures & EVERY_CODE)
        has = np.asarray(signatures & EVERY_CODE != 0)
        lacks = np.asarray(signatures & LACKING != 0)
    else:
        if one.op is Op.RANGE:
            low, high = one.numbers
            matched = _overlap(zones.low[field], zones.high[field], low, high)
            has = zones.low[field] <= zones.high[field]
        else:
            matched = _circle(one, zones)
            has = zones.low[field][0] <= zones.high[field][0]
        lacks = zones.lacks[field]
    passes = 1 - matched if one.negated else matched
    absent: Doubles = np.where(has, 0.5 * lacks, 1.0)
    out: Doubles = (1 - absent) * passes + absent * one.lacking
    return out


def _ratio(some: npt.NDArray[np.unsignedinteger[Any]], all_: npt.NDArray[np.unsignedinteger[Any]]) -> Doubles:
    """How many of the bits are set; 0 of none."""
    out: Doubles = np.bitwise_count(some) / np.maximum(np.bitwise_count(all_), 1)
    return out


def _overlap(least: Doubles, most: Doubles, low: float, high: float) -> Doubles:
    """The share of [least, most] that lies in [low, high]; of a single value 0 or 1."""
    with np.errstate(invalid="ignore", over="ignore"):  # a block without values: inf - inf
        width = most - least
        inside = np.minimum(most, high) - np.maximum(least, low)
        share = np.where(width > 0, inside / np.where(width > 0, width, 1), inside >= 0)
    return np.clip(np.nan_to_num(share, nan=1.0), 0.0, 1.0)


def _circle(one: Instruction, zones: Maps) -> Doubles:
    """The share of a block's box of degrees that the circle's box covers, less its corners."""
    lat, lon, km = one.numbers
    (south, west), (north, east) = zones.low[one.field], zones.high[one.field]
    up, out = reach(lat, km)
    across = sum(_overlap(west, east, lon - out + turn, lon + out + turn) for turn in (-360, 0, 360))
    share: Doubles = _overlap(south, north, lat - up, lat + up) * np.minimum(across, 1.0) * np.pi / 4
    return share
