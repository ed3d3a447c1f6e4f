"""The filter tree over the attribute columns: exact, vectorised, three-valued.

NOT is pushed down to the clauses first. A clause then says True, False, or, of a row that lacks the attribute, what
its `missing` says: whatever NOTs stand above, INCLUDE lets the row through the clause and EXCLUDE does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from penstock.retrieval.store.columns import ABSENT, Columns, keyword
from penstock.schemas import text
from penstock.schemas.events import Filter, FilterKind, Missing
from penstock.schemas.filters import FIELDS, FieldType, check, describe

EARTH_RADIUS_KM = 6371.0088  # mean radius, IUGG

Mask = npt.NDArray[np.bool_]
B = TypeVar("B", Mask, int)


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Clause:
    """A leaf of the tree, with the NOTs above it folded in. Equal only to itself."""

    filter: Filter
    negated: bool


@dataclass(frozen=True, slots=True)
class Group:
    """All or any of its parts."""

    every: bool
    parts: tuple[Clause | Group, ...]


Node = Clause | Group
Program = Node


@dataclass(frozen=True, slots=True)
class ClauseCount:
    """What one clause says of the rows it was shown."""

    clause: str
    passed: int
    missing: int


@dataclass(frozen=True, slots=True)
class Explanation:
    """A filter in words, and how many rows each of its clauses lets through on its own."""

    filter: str
    rows: int
    passed: int
    clauses: tuple[ClauseCount, ...]


def pushed(tree: Filter) -> Node:
    """The tree with NOT at the clauses only. Raises InvalidRecord (from `check`) naming what is wrong with it."""
    check(tree)
    return _pushed(tree, negated=False)


compile_tree = pushed


def _pushed(tree: Filter, negated: bool) -> Program:
    if tree.kind is FilterKind.NOT:
        return _pushed(tree.children[0], not negated)
    if tree.kind in (FilterKind.ALL, FilterKind.ANY):
        every = (tree.kind is FilterKind.ALL) != negated  # De Morgan
        return Group(every, tuple(_pushed(child, negated) for child in tree.children))
    return Clause(tree, negated)


def fold(program: Program, leaf: Callable[[Clause], B]) -> B:
    """What the program says, given what each of its clauses says: masks, or integers with a bit a row."""
    if isinstance(program, Clause):
        return leaf(program)
    out = fold(program.parts[0], leaf)
    for part in program.parts[1:]:
        more = leaf(part) if isinstance(part, Clause) else fold(part, leaf)
        out = out & more if program.every else out | more
    return out


def evaluate(program: Program, columns: Columns, rows: int) -> Mask:
    """bool [rows]: which of the slots 0 … rows-1 pass. What it says of slots the caller cannot see means nothing."""

    def passes(clause: Clause) -> Mask:
        matched, present = _clause(clause.filter, columns, rows)
        return np.where(present, matched ^ clause.negated, clause.filter.missing is Missing.INCLUDE)

    return fold(program, passes)


def positive(tree: Filter) -> Filter:
    """The tree without its NOTs, a missing attribute never matching: which rows have the values it names."""
    if tree.kind is FilterKind.NOT:
        return positive(tree.children[0])
    if tree.children:
        return replace(tree, children=tuple(positive(child) for child in tree.children))
    return replace(tree, missing=Missing.EXCLUDE)


def explain(tree: Filter, columns: Columns, visible: Mask) -> Explanation:
    """What the filter and each clause of it do to the visible slots (bool [n])."""
    program = compile_tree(tree)
    rows = len(visible)
    counts = []
    for clause in leaves(program):
        passed = evaluate(clause, columns, rows) & visible
        absent = ~_clause(clause.filter, columns, rows)[1] & visible
        counts.append(ClauseCount(said(clause), int(passed.sum()), int(absent.sum())))
    whole = evaluate(program, columns, rows) & visible
    return Explanation(describe(tree), int(visible.sum()), int(whole.sum()), tuple(counts))


def said(clause: Clause) -> str:
    """The clause in the text form."""
    return f"!({describe(clause.filter)})" if clause.negated else describe(clause.filter)


def leaves(program: Program) -> Iterator[Clause]:
    """Its clauses, in order."""
    if isinstance(program, Clause):
        yield program
    else:
        for part in program.parts:
            yield from leaves(part)


def _clause(clause: Filter, columns: Columns, rows: int) -> tuple[Mask, Mask]:
    """(the row's attribute matches, the row has the attribute): bool [rows] each."""
    field = clause.field
    assert field is not None
    kind = FIELDS[field].type
    if kind is FieldType.KEYWORD:
        codes = columns.keyword[field].codes[:rows]
        wanted = [columns.keyword[field].vocabulary.find(keyword(value)) for value in clause.values]
        return _any_code(codes, [code for code in wanted if code is not None]), codes != ABSENT
    if kind is FieldType.KEYWORDS:
        return _any_of_many(clause, columns, rows)
    if kind is FieldType.SYMBOL:
        symbols = columns.symbol[field][:rows]
        return _any_code(symbols, columns.symbol_codes(field, clause.values)), symbols != 0
    if kind is FieldType.PLACE:
        return _within(clause, columns, rows)
    numbers = columns.number[field][:rows]
    matched = np.ones(rows, np.bool_)
    if clause.minimum is not None:
        matched &= numbers >= clause.minimum
    if clause.maximum is not None:
        matched &= numbers <= clause.maximum
    return matched, ~np.isnan(numbers)


def _any_code(codes: npt.NDArray[np.int32] | npt.NDArray[np.int8], wanted: list[int]) -> Mask:
    if not wanted:
        return np.zeros(len(codes), np.bool_)
    if len(wanted) == 1:
        one: Mask = codes == wanted[0]
        return one
    return np.isin(codes, wanted)


def _any_of_many(clause: Filter, columns: Columns, rows: int) -> tuple[Mask, Mask]:
    assert clause.field is not None
    column = columns.keywords[clause.field]
    words = [keyword(value) for value in clause.values]
    if clause.field == "title.terms":
        words += [term for value in clause.values if (term := as_term(value)) is not None]
    wanted = [code for word in words if (code := column.vocabulary.find(word)) is not None]
    matched = np.zeros(rows, np.bool_)
    if wanted:
        codes, owner = column.table
        owners = owner[_any_code(codes.ravel(), wanted).reshape(codes.shape).any(1)]
        matched[owners[(owners >= 0) & (owners < rows)]] = True
    return matched, column.counts[:rows] > 0


def as_term(value: str) -> str | None:
    """A word that somebody typed, as `title.terms` holds it; None for a stop word or several words."""
    found = text.terms(value)
    return found[0] if len(found) == 1 else None


def _within(clause: Filter, columns: Columns, rows: int) -> tuple[Mask, Mask]:
    assert clause.field is not None and clause.lat is not None and clause.lon is not None
    assert clause.radius_km is not None
    lat, lon = columns.place[clause.field][:, :rows]
    present = ~np.isnan(lat)
    # Rows in the band of latitudes first: degrees are cheap, sines are not. The margin outweighs rounding.
    band = np.degrees(clause.radius_km / EARTH_RADIUS_KM) * (1 + 1e-9) + 1e-9
    close = np.flatnonzero(np.abs(lat - clause.lat) <= band)
    matched = np.zeros(rows, np.bool_)
    matched[close] = distance_km(clause.lat, clause.lon, lat[close], lon[close]) <= clause.radius_km
    return matched, present


def distance_km(
    lat: float, lon: float, lats: npt.NDArray[np.float64], lons: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Great-circle distances by the haversine formula, float64 [n]. Degrees in, kilometres out."""
    north, norths = np.radians(lat), np.radians(lats)
    half_north = np.sin((norths - north) / 2) ** 2
    half_east = np.sin(np.radians(lons - lon) / 2) ** 2
    root = np.sqrt(half_north + np.cos(north) * np.cos(norths) * half_east)
    out: npt.NDArray[np.float64] = 2 * EARTH_RADIUS_KM * np.arcsin(np.minimum(root, 1.0))
    return out
