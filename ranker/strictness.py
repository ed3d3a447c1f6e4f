"""Which of the things read out of a query's words may exclude postings. Pure but for the question it is handed.

What a query's words say excludes known violations only (its filters carry missing = INCLUDE). A place becomes strict
only if the index holds values for it: otherwise it is dropped, and the result says so (`applied` false).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from penstock.schemas import filters
from penstock.schemas.events import Filter, Understood

Holds = Callable[[tuple[Filter, ...]], tuple[bool, ...]]


@dataclass(frozen=True, slots=True)
class Decided:
    understood: tuple[Understood, ...]  # as given, `applied` decided
    filters: Filter | None  # the caller's and every applied one


def decide_strictness(understood: Sequence[Understood], own: Filter | None, holds: Holds) -> Decided:
    """`holds` says, a clause each, whether some live posting has the value; it is asked at most once, only if needed.

    One that came in as not applied stays so.
    """
    asked = [one.filter for one in understood if one.applied and one.needs_values]
    answers = iter(holds(tuple(asked)) if asked else ())
    decided = tuple(
        replace(one, applied=next(answers)) if one.applied and one.needs_values else one for one in understood
    )
    return Decided(decided, filters.all_of(own, *(one.filter for one in decided if one.applied)))
