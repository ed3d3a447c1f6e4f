"""What a shard knows of each subscription: the newest standing query, taken apart for percolation, or its tombstone.

Frozen: a change is a new entry in the place of the old, so a reader or a snapshot that caught one has a whole one.
"""

from __future__ import annotations

import itertools
import math
import sys
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from penstock.retrieval.percolate.conditions import names, said
from penstock.retrieval.search.filters import Clause, Group, Node, leaves, pushed
from penstock.retrieval.store.planes import QueryPlanes, Space, query_floats
from penstock.schemas.errors import InvalidRecord
from penstock.schemas.events import Filter, Missing, Op, QueryVector, StandingQuery

CONDITIONS = 4  # of a tree; past it the rest of them are one
MATCH_BYTES = 200  # of a match in a reply: ids, three doubles, the reason


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Condition:
    """A clause or an alternative that some trees demand. Equal only to itself.

    `number`: no other condition has it for as long as somebody holds this one. 0 is nobody's.
    """

    number: int
    node: Node
    named: tuple[tuple[str, str], ...]  # of IN: (field, word) as `conditions.py` looks them up; else empty
    plain: bool  # holds of the postings that have one of `named`, and of no other
    leaves: tuple[Condition, ...]  # of a group, its clauses; else empty


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Tree:
    """A distinct filter tree, compiled once and shared by every standing query that has it. Equal only to itself."""

    filter: Filter
    node: Node
    conditions: tuple[Condition, ...]  # 1 to CONDITIONS, all of which must hold
    said: str | None  # what a posting that passes satisfies, in words; None where that depends on the posting

    @property
    def nbytes(self) -> int:
        """Memory held, about: its own nodes, without the clauses that it shares."""
        own = len(self.filter.children) * 72 + sys.getsizeof(self.conditions) + 440
        return own + (sys.getsizeof(self.said) if self.said is not None else 0)


class Trees:
    """The trees in use, and what they share. The store's one writer writes; what nobody holds goes by itself.

    Equal clauses are one object and equal conditions have one number, so sixty thousand different trees over the same
    few thousand conditions stay small, and a batch of postings is asked each condition once.
    """

    def __init__(self) -> None:
        self._trees: weakref.WeakValueDictionary[Filter, Tree] = weakref.WeakValueDictionary()
        self._clauses: weakref.WeakValueDictionary[tuple[Filter, bool], Clause] = weakref.WeakValueDictionary()
        self._conditions: weakref.WeakValueDictionary[Node, Condition] = weakref.WeakValueDictionary()
        self._free: list[int] = []  # numbers of conditions that are gone; whoever drops the last one appends
        self._numbers = itertools.count(1)

    def __len__(self) -> int:
        return len(self._trees)

    @property
    def nbytes(self) -> int:
        """Memory held, about: trees, and the clauses and conditions that they share."""
        held = [reference() for reference in self._trees.valuerefs()]  # in one step: the writer may be writing
        return sum(tree.nbytes for tree in held if tree is not None) + 1_300 * (
            len(self._clauses) + len(self._conditions)
        )

    def of(self, filter: Filter | None) -> Tree | None:
        """The tree of these filters. Raises InvalidRecord naming what is wrong with them."""
        if filter is None:
            return None
        tree = self._trees.get(filter)
        if tree is None:
            node = self._shared(pushed(filter))
            shared = {clause.filter: clause.filter for clause in leaves(node)}
            parts = list(dict.fromkeys(_conjuncts(node)))
            if len(parts) > CONDITIONS:
                parts[CONDITIONS - 1 :] = [Group(True, tuple(parts[CONDITIONS - 1 :]))]
            conditions = tuple(self._condition(part) for part in parts)
            tree = Tree(_with_leaves(filter, shared), node, conditions, said(node))
            self._trees[tree.filter] = tree
        return tree

    def _condition(self, node: Node) -> Condition:
        condition = self._conditions.get(node)
        if condition is None:
            number = self._free.pop() if self._free else next(self._numbers)
            named: tuple[tuple[str, str], ...] = ()
            parts: tuple[Condition, ...] = ()
            plain = False
            if isinstance(node, Clause):
                named = names(node)
                plain = bool(named) and not node.negated and node.filter.missing is Missing.EXCLUDE
            else:
                parts = tuple(self._condition(leaf) for leaf in dict.fromkeys(leaves(node)))
            condition = self._conditions[node] = Condition(number, node, named, plain, parts)
            weakref.finalize(condition, self._free.append, number).atexit = False
        return condition

    def _shared(self, node: Node) -> Node:
        if isinstance(node, Group):
            return Group(node.every, tuple(self._shared(part) for part in node.parts))
        return self._clauses.setdefault((node.filter, node.negated), node)


def _conjuncts(node: Node) -> Iterator[Node]:
    """What must all hold, groups of ALL within ALL taken apart."""
    if isinstance(node, Group) and (node.every or len(node.parts) == 1):
        for part in node.parts:
            yield from _conjuncts(part)
    else:
        yield node


def _with_leaves(tree: Filter, shared: Mapping[Filter, Filter]) -> Filter:
    if not tree.children:
        return shared[tree]
    return replace(tree, children=tuple(_with_leaves(child, shared) for child in tree.children))


@dataclass(frozen=True, slots=True)
class Entry:
    """One subscription. A tombstone has op DELETE, no space and no tree; it keeps its version until its window ends."""

    query: StandingQuery  # without its vector, whose values are in a block; its filters are the tree's
    space: Space | None  # of the vector; None without one
    encoder_id: str
    tree: Tree | None
    known_at: int  # epoch ms: since when it is percolated, or gone
    cost: int  # bytes that a match of it takes in a reply

    @property
    def in_force(self) -> bool:
        return self.query.op is Op.UPSERT

    @property
    def nbytes(self) -> int:
        """Memory held, as Python counts it: objects, strings, and the places in the dictionaries. Trees are shared."""
        query = self.query
        return 620 + sum(sys.getsizeof(text) for text in (query.subscription_id, query.person_id, query.text))


@dataclass(frozen=True, slots=True)
class Draft:
    """An entry with the values of its vector, on the way into a block."""

    entry: Entry
    planes: QueryPlanes | None


def draft_of(query: StandingQuery, trees: Trees, now_ms: int) -> Draft:
    """A standing query taken apart. Raises InvalidRecord naming the field at fault."""
    if not query.subscription_id:
        raise InvalidRecord("subscription_id", query.subscription_id, "an id of at least one byte")
    if query.op is Op.UNKNOWN:
        raise InvalidRecord("op", query.op, "UPSERT or DELETE")
    tenant = sys.intern(query.tenant)
    if query.op is Op.DELETE:
        bare = replace(query, tenant=tenant, text="", vector=None, filters=None, trace=None)
        return Draft(Entry(bare, None, "", None, now_ms, 0), None)
    if not math.isfinite(query.threshold):
        raise InvalidRecord("threshold", query.threshold, "a finite number")
    tree = trees.of(query.filters)
    space, planes, encoder_id = None, None, ""
    if query.vector is not None:
        space, planes = _taken_apart(query.vector)
        encoder_id = sys.intern(query.vector.encoder_id)
    cost = MATCH_BYTES + len(query.subscription_id) + len(query.person_id)
    if query.min_score is not None:  # such a query goes along with its match
        cost += 200 + len(query.text) + (len(str(query.filters)) if tree is not None else 0)
        cost += 4 * (space.dense + space.sketch) if space is not None else 0
    filters = None if tree is None else tree.filter
    kept = replace(query, tenant=tenant, vector=None, filters=filters)
    return Draft(Entry(kept, space, encoder_id, tree, now_ms, cost), planes)


def _taken_apart(vector: QueryVector) -> tuple[Space, QueryPlanes]:
    dense, lexical = query_floats("dense", vector.dense), query_floats("lexical", vector.lexical)
    if not len(dense) and not len(lexical):
        raise InvalidRecord("vector", "neither part has a value", "dense, lexical or both; null for filters alone")
    terms = np.flatnonzero(lexical)
    return Space(sys.intern(vector.space_id), len(dense), len(lexical)), QueryPlanes(dense, terms, lexical[terms])
