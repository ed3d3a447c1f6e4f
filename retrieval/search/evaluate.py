"""A filter over a batch of postings, and what it does to the rows of a store, clause by clause."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from penstock.retrieval.search.filters import Clause, ClauseCount, Explanation, Node, leaves, pushed, said
from penstock.retrieval.search.program import Overflow, Program, Words, compiled, passing
from penstock.retrieval.store.columns import Columns
from penstock.retrieval.store.page import Longs, Page
from penstock.schemas.events import Filter, Missing
from penstock.schemas.filters import describe

Mask = npt.NDArray[np.bool_]


def evaluate(node: Node, columns: Columns, rows: int) -> Mask:
    """bool [rows]: which rows 0 … rows-1 of the batch pass."""
    return passing(compiled(node, columns.words), columns.page, columns.overflow, slice(0, rows))


def explain(tree: Filter, words: Words, overflow: Overflow, parts: Iterable[tuple[Page, Longs]]) -> Explanation:
    """What the filter and each clause of it do to some rows (int64, of each page)."""
    node = pushed(tree)
    clauses = list(leaves(node))
    programs = [compiled(clause, words) for clause in clauses]
    both = [_lacking(clause, words) for clause in clauses]
    whole, rows, passed = compiled(node, words), 0, 0
    found = [[0, 0] for _ in clauses]
    for page, some in parts:
        rows += len(some)
        passed += int(passing(whole, page, overflow, some).sum())
        for counts, program, (one, other) in zip(found, programs, both, strict=True):
            counts[0] += int(passing(program, page, overflow, some).sum())
            counts[1] += int((passing(one, page, overflow, some) & passing(other, page, overflow, some)).sum())
    told = tuple(ClauseCount(said(clause), *counts) for clause, counts in zip(clauses, found, strict=True))
    return Explanation(describe(tree), rows, passed, told)


def _lacking(clause: Clause, words: Words) -> tuple[Program, Program]:
    """Two programs that both let a row through only when it lacks the clause's attribute."""
    given = replace(clause.filter, missing=Missing.INCLUDE)
    return compiled(Clause(given, False), words), compiled(Clause(given, True), words)
