"""A filter as a clause program: what docs/retrieval.md, "Clause program", says, and its evaluation with numpy.

A program is a flat list of instructions in postfix order. A clause says of a row: it passes or not. NOT is folded into
the clauses, so groups only join: `passing` runs the program over rows, and `possible` runs the same program over zone
maps, where a clause says whether any row of a block can pass. Joining "can" with AND and OR never loses a row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

from penstock.retrieval.search.filters import Clause, Group, Node, pushed
from penstock.retrieval.search.geometry import distance_km, reach
from penstock.retrieval.store.columns import keyword
from penstock.retrieval.store.page import (
    ABSENT,
    HASHED,
    KEYWORD_FIELDS,
    MANY_FIELDS,
    NUMBER_FIELDS,
    PLACE_FIELDS,
    SYMBOL_FIELDS,
    Codes,
    Doubles,
    Longs,
    Page,
)
from penstock.retrieval.store.zones import EVERY_CODE, LACKING, Maps, signature
from penstock.schemas import text
from penstock.schemas.events import Filter, Missing
from penstock.schemas.filters import FIELDS, FieldType

Mask = npt.NDArray[np.bool_]
Hashes = npt.NDArray[np.uint64]

_NARROW = 4  # a clause after one that lets through less than a row in so many looks at those rows alone
_FEW = 4  # codes compared one by one; more are looked up
_SYMBOLS = np.arange(32, dtype=np.uint32)


class Op(IntEnum):
    """Instructions. Of two that may come in either order the cheaper comes first, and these are by cost."""

    ALL = 0
    ANY = 1
    IN_HASHES = 2
    IN_SYMBOLS = 3
    IN_CODES = 4
    RANGE = 5
    WITHIN = 6
    ANY_CODE = 7


# The fields an instruction may name, by op: a packed instruction says which by its place here.
FIELDS_OF: dict[Op, tuple[str, ...]] = {
    Op.IN_HASHES: (HASHED,),
    Op.IN_SYMBOLS: SYMBOL_FIELDS,
    Op.IN_CODES: KEYWORD_FIELDS,
    Op.RANGE: NUMBER_FIELDS,
    Op.WITHIN: PLACE_FIELDS,
    Op.ANY_CODE: MANY_FIELDS,
}
_OPS = {
    FieldType.KEYWORD: Op.IN_CODES,
    FieldType.KEYWORDS: Op.ANY_CODE,
    FieldType.SYMBOL: Op.IN_SYMBOLS,
    FieldType.NUMBER: Op.RANGE,
    FieldType.TIME: Op.RANGE,
    FieldType.PLACE: Op.WITHIN,
}


class Words(Protocol):
    """The store's dictionaries. Words are as `keyword` makes them: without case, without blanks around them."""

    def code(self, field: str, word: str) -> int | None:
        """The code of a word of a keyword or multi-valued field; None when no row has it."""

    def hashes(self, word: str) -> Sequence[int]:
        """The stable hashes of the ids that are `word` but for case and blanks; of unknown ids any hash or none."""


class Overflow(Protocol):
    """Codes past the eighth of the rows that have so many."""

    def rows_with(self, field: str, codes: Codes) -> Longs:
        """int64 slots: the rows one of whose overflow codes is in `codes`."""


@dataclass(frozen=True, slots=True, eq=False)
class Instruction:
    """One step. Operands that an op does not have are empty or 0."""

    op: Op
    field: str = ""
    negated: bool = False
    lacking: bool = False  # what it says of a row that lacks the attribute
    count: int = 0  # ALL, ANY: the results before it that it joins
    # Ascending: of IN_CODES and ANY_CODE, of IN_HASHES.
    codes: Codes = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))
    hashes: Hashes = dataclasses.field(default_factory=lambda: np.zeros(0, np.uint64))
    mask: int = 0  # IN_SYMBOLS: bit s for symbol s
    numbers: tuple[float, ...] = ()  # RANGE: low, high, inclusive; WITHIN: degrees north, degrees east, km


@dataclass(frozen=True)
class Program:
    """Instructions in postfix order: the last one's result is the program's."""

    instructions: tuple[Instruction, ...]

    @cached_property
    def conjuncts(self) -> tuple[Program, ...]:
        """Programs all of which a row must pass: one, unless the last instruction is ALL."""
        last = self.instructions[-1]
        if last.op is not Op.ALL:
            return (self,)
        begins: list[int] = []  # of each result on the stack, the instruction at which it begins
        for place, one in enumerate(self.instructions[:-1]):
            begin = place
            for _ in range(one.count):
                begin = begins.pop()
            begins.append(begin)
        ends = [*begins[1:], len(self.instructions) - 1]
        return tuple(Program(self.instructions[a:b]) for a, b in zip(begins, ends, strict=True))

    def packed(self) -> Packed:
        """The program as arrays, for a device."""
        rows: list[tuple[int, ...]] = []
        numbers: list[float] = []
        codes, hashes = [np.zeros(0, np.int32)], [np.zeros(0, np.uint64)]
        at = [0, 0, 0]
        for one in self.instructions:
            field = FIELDS_OF[one.op].index(one.field) if one.op in FIELDS_OF else 0
            flags = one.negated | one.lacking << 1
            begin, length = 0, one.count
            if one.op in (Op.IN_CODES, Op.ANY_CODE):
                begin, length = at[0], len(one.codes)
            elif one.op is Op.IN_HASHES:
                begin, length = at[2], len(one.hashes)
            elif one.numbers:
                begin, length = at[1], len(one.numbers)
            rows.append((one.op, field, flags, begin, length, one.mask))
            codes.append(one.codes)
            numbers.extend(one.numbers)
            hashes.append(one.hashes)
            at = [at[0] + len(one.codes), len(numbers), at[2] + len(one.hashes)]
        return Packed(
            np.asarray(rows, np.int64).astype(np.uint32).view(np.int32),
            np.concatenate(codes),
            np.asarray(numbers, np.float64),
            np.concatenate(hashes),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """A program as a device takes it.

    A row of `steps`: op, field (its place in FIELDS_OF[op]), flags (bit 0 negated, bit 1 passes when lacking), where
    its operands begin (in `codes`, `numbers` or `hashes`, by op), how many they are (of ALL and ANY: the results they
    join), mask.
    """

    steps: npt.NDArray[np.int32]  # [n, 6]
    codes: Codes
    numbers: Doubles
    hashes: Hashes


# --- compiling ---------------------------------------------------------------------------------------------------


def compile_tree(tree: Filter, words: Words) -> Program:
    """The program of a tree. Raises InvalidRecord (from `check`) naming what is wrong with it.

    Words are looked up now, so pin the epoch before: a code may since stand for another word, but no row of an epoch
    pinned before the compilation has it then.
    """
    return compiled(pushed(tree), words)


def compiled(node: Node, words: Words) -> Program:
    """The program of a tree whose NOTs are at its clauses."""
    return Program(tuple(_steps(node, words)))


def _steps(node: Node, words: Words) -> list[Instruction]:
    if isinstance(node, Clause):
        return [_clause(node, words)]
    parts = [_steps(part, words) for part in _flat(node)]
    parts.sort(key=lambda steps: (len(steps), max(step.op for step in steps)))  # a row may be refused cheaply
    join = Instruction(Op.ALL if node.every else Op.ANY, count=len(parts))
    return [step for steps in parts for step in steps] + ([join] if len(parts) > 1 else [])


def _flat(group: Group) -> list[Node]:
    """Its parts, those of groups of its own kind in their place."""
    out: list[Node] = []
    for part in group.parts:
        same = isinstance(part, Group) and (part.every == group.every or len(part.parts) == 1)
        out.extend(_flat(part) if same and isinstance(part, Group) else (part,))
    return out


def _clause(clause: Clause, words: Words) -> Instruction:
    tree = clause.filter
    field = tree.field
    assert field is not None
    negated, lacking = clause.negated, tree.missing is Missing.INCLUDE
    if field == HASHED:
        found = {digest for value in tree.values for digest in words.hashes(keyword(value))}
        hashes = np.asarray(sorted(found), np.uint64)
        return Instruction(Op.IN_HASHES, field, negated, lacking, hashes=hashes)
    op = _OPS[FIELDS[field].type]
    if op is Op.IN_SYMBOLS:
        mask = sum(1 << code for code, symbol in enumerate(FIELDS[field].symbols or ()) if symbol.value in tree.values)
        return Instruction(op, field, negated, lacking, mask=mask)
    if op is Op.RANGE:
        low = -np.inf if tree.minimum is None else tree.minimum
        high = np.inf if tree.maximum is None else tree.maximum
        return Instruction(op, field, negated, lacking, numbers=(float(low), float(high)))
    if op is Op.WITHIN:
        assert tree.lat is not None and tree.lon is not None and tree.radius_km is not None
        return Instruction(op, field, negated, lacking, numbers=(tree.lat, tree.lon, tree.radius_km))
    wanted = {keyword(value) for value in tree.values}
    if field == "title.terms":
        wanted |= {term for value in tree.values if (term := as_term(value)) is not None}
    codes = sorted({code for word in wanted if (code := words.code(field, word)) is not None})
    return Instruction(op, field, negated, lacking, codes=np.asarray(codes, np.int32))


def as_term(value: str) -> str | None:
    """A word that somebody typed, as `title.terms` holds it; None for a stop word or several words."""
    found = text.terms(value)
    return found[0] if len(found) == 1 else None


# --- rows --------------------------------------------------------------------------------------------------------


def passing(program: Program, page: Page, overflow: Overflow, rows: slice | Longs) -> Mask:
    """bool [n]: which rows of the page pass, of a slice of it (step 1) or of int64 places in it, in any order.

    What it says of rows that the caller cannot see means nothing.
    """
    if isinstance(rows, slice):
        start, stop, _ = rows.indices(page.rows)
        rows = slice(start, max(start, stop))
    first, *others = program.conjuncts
    mask = _run(first, page, overflow, rows)
    for one in others:
        left = np.flatnonzero(mask)
        if not len(left):
            break
        if len(left) * _NARROW > len(mask):
            mask &= _run(one, page, overflow, rows)
        else:
            at = left + rows.start if isinstance(rows, slice) else rows[left]
            mask[left] = _run(one, page, overflow, at)
    return mask


def _run(program: Program, page: Page, overflow: Overflow, rows: slice | Longs) -> Mask:
    """The whole program over all of `rows`."""
    stack: list[Mask] = []
    for one in program.instructions:
        stack.append(_joined(one, stack) if one.count else _row_clause(one, page, overflow, rows))
    return stack.pop()


def _joined(one: Instruction, stack: list[Mask]) -> Mask:
    """The last `count` results of the stack as one, which may reuse the first one's memory."""
    join = np.logical_and if one.op is Op.ALL else np.logical_or
    parts, stack[-one.count :] = stack[-one.count :], []
    out = parts[0]
    for part in parts[1:]:
        join(out, part, out=out)
    return out


def _row_clause(one: Instruction, page: Page, overflow: Overflow, rows: slice | Longs) -> Mask:
    """The clause over rows. `_matches` is False of rows that lack the attribute: two cases in four need no more."""
    out = _matches(one, page, overflow, rows)
    if one.negated:
        np.logical_not(out, out=out)
    if one.negated != one.lacking and one.op is not Op.IN_HASHES:
        lacks = _lacks(one, page, rows)
        out = out | lacks if one.lacking else out & ~lacks
    return out


def _matches(one: Instruction, page: Page, overflow: Overflow, rows: slice | Longs) -> Mask:
    if one.op is Op.IN_CODES:
        return _any_of(page.codes[one.field][rows], one.codes)
    if one.op is Op.IN_SYMBOLS:
        table = np.uint32(one.mask) >> _SYMBOLS & 1 == 1
        return np.asarray(table[page.symbols[one.field][rows]])
    if one.op is Op.RANGE:
        values = page.numbers[one.field][rows]
        low, high = one.numbers
        if low == -np.inf:
            return np.asarray(values <= high)
        out = values >= low
        return out if high == np.inf else np.logical_and(out, values <= high, out=out)
    if one.op is Op.WITHIN:
        return _within(one, page.places[one.field][:, rows])
    if one.op is Op.IN_HASHES:
        return _any_of(page.ties[rows], one.hashes)
    return _any_of_many(one, page, overflow, rows)


def _lacks(one: Instruction, page: Page, rows: slice | Longs) -> Mask:
    """bool [n]: the rows that lack the clause's attribute."""
    if one.op is Op.IN_CODES:
        return np.asarray(page.codes[one.field][rows] == ABSENT)
    if one.op is Op.IN_SYMBOLS:
        return np.asarray(page.symbols[one.field][rows] == 0)
    if one.op is Op.RANGE:
        return np.asarray(np.isnan(page.numbers[one.field][rows]))
    if one.op is Op.WITHIN:
        return np.asarray(np.isnan(page.places[one.field][0, rows]))
    return np.asarray(page.counts[one.field][rows] == 0)


def _any_of(values: Codes | Hashes, wanted: Codes | Hashes) -> Mask:
    """bool, the shape of `values`; `wanted` is ascending."""
    if not len(wanted):
        return np.zeros(values.shape, np.bool_)
    if len(wanted) > _FEW:
        if wanted.dtype == np.int32:
            return np.isin(values.copy(), wanted)  # the writer may fill rows that nobody sees meanwhile
        return np.asarray(wanted[np.minimum(np.searchsorted(wanted, values), len(wanted) - 1)] == values)
    out: Mask = values == wanted[0]
    for one in wanted[1:]:
        out |= values == one
    return out


def _any_of_many(one: Instruction, page: Page, overflow: Overflow, rows: slice | Longs) -> Mask:
    if not len(one.codes):
        return np.zeros(len(page.counts[one.field][rows]), np.bool_)
    # Eight answers of one byte each are one number: any of them is a number that is not 0.
    out = np.asarray(_any_of(page.many[one.field][rows], one.codes).view(np.uint64)[:, 0] != 0)
    found = overflow.rows_with(one.field, one.codes) - page.first
    found = found[(found >= 0) & (found < page.rows)]
    if isinstance(rows, slice):
        out[found[(found >= rows.start) & (found < rows.stop)] - rows.start] = True
    elif len(found):
        out |= np.isin(rows, found)
    return out


def _within(one: Instruction, places: Doubles) -> Mask:
    """places: float64 [2, n]. Rows in the box of degrees first: degrees are cheap, sines are not."""
    lat, lon, km = one.numbers
    north, east = reach(lat, km)
    out: Mask = np.abs(places[0] - lat) <= north
    close = np.flatnonzero(out)
    if east < 180:
        away = np.abs(places[1, close] - lon)
        close = close[np.minimum(away, 360 - away) <= east]
    out[:] = False
    out[close] = distance_km(lat, lon, places[0, close], places[1, close]) <= km
    return out


# --- blocks ------------------------------------------------------------------------------------------------------


def possible(program: Program, zones: Maps) -> Mask:
    """bool [B]: the blocks that may hold a row which passes. Any other holds none."""
    out = zones.rows > 0
    stack: list[Mask] = []
    for one in program.instructions:
        stack.append(_joined(one, stack) if one.count else _block_clause(one, zones))
    return np.logical_and(out, stack.pop(), out=out)


def _block_clause(one: Instruction, zones: Maps) -> Mask:
    """bool [B]: whether a row can pass: one that has the attribute, or one that lacks it."""
    field, negated = one.field, one.negated
    if one.op is Op.IN_HASHES:
        return np.full(len(zones.rows), negated or len(one.hashes) > 0)
    if one.op is Op.IN_SYMBOLS:
        mask = one.mask ^ 0xFFFFFFFE if negated else one.mask
        return np.asarray(zones.bits[field] & np.uint32(mask | one.lacking) != 0)
    if one.op in (Op.IN_CODES, Op.ANY_CODE):
        mask64 = EVERY_CODE if negated else signature(one.codes)  # many codes share a bit: none is ever ruled in
        return np.asarray(zones.signature[field] & (mask64 | LACKING if one.lacking else mask64) != 0)
    out = _near(one, zones) if one.op is Op.WITHIN else _in_range(one, zones)
    return out | zones.lacks[field] if one.lacking else out


def _in_range(one: Instruction, zones: Maps) -> Mask:
    low, high = one.numbers
    least, most = zones.low[one.field], zones.high[one.field]
    if one.negated:
        return np.asarray((least < low) | (most > high))
    return np.asarray((least <= high) & (most >= low) & (least <= most))


def _near(one: Instruction, zones: Maps) -> Mask:
    """Whether a block's box of degrees touches the circle's; of a negated clause, whether the block has places."""
    lat, lon, km = one.numbers
    (south, west), (north, east) = zones.low[one.field], zones.high[one.field]
    held = south <= north
    if one.negated:
        return np.asarray(held)
    up, out = reach(lat, km)
    touches = held & (south <= lat + up) & (north >= lat - up)
    if out < 180:
        around = [(west <= lon + out + turn) & (east >= lon - out + turn) for turn in (-360, 0, 360)]
        touches &= around[0] | around[1] | around[2]
    return np.asarray(touches)
