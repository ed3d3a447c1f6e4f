"""Pay grades of the public sector: "GS-12", "gs 11/12", "GS-9 to GS-11", "WG-10", "GS-12 or higher".

Grades are compared within a plan (GG counts as GS); of another plan nothing is known. One grade off is a near miss and
no violation, and an advertised range ("GS-9/11") violates only if all of it is out of reach. So the filter names the
grades that are out: everything else passes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from penstock.retrieval.understanding.reading import Found, Reading
from penstock.schemas import filters
from penstock.schemas.events import Missing

_ABOUT = 1  # grades more, when the query says "about"
_TWO_STEPS = ("gs", 11)  # up to this grade careers of the plan climb two grades at a time: 5, 7, 9, 11

_HIGHEST = {"gs": 15, "gg": 15, "wg": 15, "wl": 15, "ws": 19, "nf": 6, "nt": 6, "nh": 4}
_PLAN_ALIASES = {"gs": ("GS", "GG"), "gg": ("GS", "GG")}
_PLAN = "gs|gg|wg|wl|ws|nf|nt|nh"
_GRADE = re.compile(
    rf"\b(?P<plan>{_PLAN})[\s-]?(?P<first>\d{{1,2}})"
    rf"(?P<more>(?:\s*(?:-|/|to|through|or|and)\s*(?:(?P=plan)[\s-]?)?\d{{1,2}}\b)*)(?![\d,]\d|\s*(?:hours|years|hrs))\b"
)
_NUMBER = re.compile(r"\d+")
_UP = re.compile(r"\s*(?:level\s*)?(?:\+|(?:or|and|&)\s*(?:up|above|higher|over|better)|(?:at )?minimum|at least)")
_DOWN = re.compile(r"\s*(?:level\s*)?(?:or|and)\s*(?:below|lower|under|less)")
_AT_LEAST = re.compile(r"(?:at least|minimum|above|over|from|starting at)\s*(?:a\s+)?$")
_LOOSE = re.compile(r"(?:about|around|roughly|approximately|approx|near)\s*$")
_TO_START = re.compile(r"\s*(?:level\s*)?(?:to start|start|entry)\b")


@dataclass(frozen=True, slots=True)
class _Wanted:
    plan: str
    low: int
    high: int


def read_grade(reading: Reading) -> list[Found]:
    """One demand a plan, spanning every grade of it that the query names."""
    spans: dict[str, tuple[int, int]] = {}
    wanted: dict[str, _Wanted] = {}
    for match in _GRADE.finditer(reading.lowered):
        one = _wanted(reading, match)
        if one is None:
            continue
        other = wanted.get(one.plan, one)
        wanted[one.plan] = _Wanted(one.plan, min(one.low, other.low), max(one.high, other.high))
        start, end = spans.get(one.plan, match.span())
        spans[one.plan] = (min(start, match.start()), max(end, match.end()))
    if len(wanted) != 1:
        return []  # two plans in one query are alternatives that cannot be compared
    (one,) = wanted.values()
    start, end = spans[one.plan]
    found = _found(start, end, one)
    return [] if found is None else [found]


def _wanted(reading: Reading, match: re.Match[str]) -> _Wanted | None:
    plan = {"gg": "gs"}.get(match["plan"], match["plan"])
    top = _HIGHEST[plan]
    named = [int(match["first"]), *(int(digits) for digits in _NUMBER.findall(match["more"]))]
    low, high = min(named), max(named)
    if low < 1 or high > top or reading.negated(match.start()):
        return None
    before = reading.lowered[max(0, match.start() - 20) : match.start()]
    if _UP.match(reading.lowered, match.end()) or _AT_LEAST.search(before):
        high = top
    elif _DOWN.match(reading.lowered, match.end()):
        low = 1
    elif _LOOSE.search(before) or _TO_START.match(reading.lowered, match.end()):
        low, high = low - _ABOUT, high + _ABOUT
    return _Wanted(plan, max(low, 1), min(high, top))


def _found(start: int, end: int, one: _Wanted) -> Found | None:
    top = _HIGHEST[one.plan]
    plan, last_pair = _TWO_STEPS
    low = one.low - (2 if one.plan == plan and one.low <= last_pair else 1)
    high = one.high + (2 if one.plan == plan and one.high < last_pair else 1)
    out = [(first, last) for first in range(1, top + 1) for last in range(first, top + 1) if last < low or first > high]
    values = tuple(
        value
        for plan in _PLAN_ALIASES.get(one.plan, (one.plan.upper(),))
        for pair in out
        for value in _written(plan, *pair)
    )
    name = one.plan.upper()
    if one.low == one.high:
        label = f"{name}-{one.low}"
    elif one.high == top:
        label = f"{name}-{one.low} or higher"
    elif one.low == 1:
        label = f"{name}-{one.high} or lower"
    else:
        label = f"{name}-{one.low} to {name}-{one.high}"
    if not values:
        return None  # a step to either side covers the plan
    return Found(start, end, label, filters.negate(filters.is_in("grade", *values, missing=Missing.INCLUDE)))


def _written(plan: str, low: int, high: int) -> tuple[str, ...]:
    """The ways a range is written."""
    if low == high:
        return (f"{plan}-{low}", f"{plan}-{low:02}") if low < 10 else (f"{plan}-{low}",)
    return (f"{plan}-{low}/{high}",)
