"""The filter tree, made ready to run: exact, three-valued.

NOT is pushed down to the clauses first. A clause then says True, False, or, of a row that lacks the attribute, what
its `missing` says: whatever NOTs stand above, INCLUDE lets the row through the clause and EXCLUDE does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from penstock.schemas.events import Filter, FilterKind, Missing
from penstock.schemas.filters import check, describe

SHOWN = 6  # values of a clause that are named to people

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
    plan: tuple[str, ...] = ()  # what would be read, and why


def pushed(tree: Filter) -> Node:
    """The tree with NOT at the clauses only. Raises InvalidRecord (from `check`) naming what is wrong with it."""
    check(tree)
    return _pushed(tree, negated=False)


def _pushed(tree: Filter, negated: bool) -> Node:
    if tree.kind is FilterKind.NOT:
        return _pushed(tree.children[0], not negated)
    if tree.kind in (FilterKind.ALL, FilterKind.ANY):
        every = (tree.kind is FilterKind.ALL) != negated  # De Morgan
        return Group(every, tuple(_pushed(child, negated) for child in tree.children))
    return Clause(tree, negated)


def fold(node: Node, leaf: Callable[[Clause], B]) -> B:
    """What the tree says, given what each of its clauses says: masks, or integers with a bit a row."""
    if isinstance(node, Clause):
        return leaf(node)
    out = fold(node.parts[0], leaf)
    for part in node.parts[1:]:
        more = leaf(part) if isinstance(part, Clause) else fold(part, leaf)
        out = out & more if node.every else out | more
    return out


def positive(tree: Filter) -> Filter:
    """The tree without its NOTs, a missing attribute never matching: which rows have the values it names."""
    if tree.kind is FilterKind.NOT:
        return positive(tree.children[0])
    if tree.children:
        return replace(tree, children=tuple(positive(child) for child in tree.children))
    return replace(tree, missing=Missing.EXCLUDE)


def said(clause: Clause) -> str:
    """The clause in the text form, a long list of values cut short."""
    text = describe(clause.filter, SHOWN)
    return f"!({text})" if clause.negated else text


def leaves(node: Node) -> Iterator[Clause]:
    """Its clauses, in order."""
    if isinstance(node, Clause):
        yield node
    else:
        for part in node.parts:
            yield from leaves(part)
