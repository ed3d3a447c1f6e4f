"""What the rules on enums share: phrases that denote a symbol, and the filter of all that a query denotes.

Several of one family in a query hold together ("permanent full-time") unless an "or" stands between them. Asking for
one accepts its `accepts`; ruling one out excludes its `denotes` alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from penstock.retrieval.understanding.reading import Found, Reading
from penstock.schemas import filters
from penstock.schemas.events import Missing
from penstock.schemas.records import Symbol

_OR = re.compile(r"\s*(?:,?\s*or\s+|/\s*)")
_ALTERNATIVE = re.compile(r"\bor\b|/|\bto\b")


@dataclass(frozen=True, slots=True)
class Phrase:
    """`pattern` matches lower-case text."""

    label: str
    pattern: re.Pattern[str]
    denotes: tuple[Symbol, ...]
    accepts: tuple[Symbol, ...]


_Hit = tuple[int, int, Phrase]


def phrase(label: str, pattern: str, denotes: Sequence[Symbol], accepts: Sequence[Symbol]) -> Phrase:
    return Phrase(label, re.compile(rf"(?<![\w-])(?:{pattern})(?![\w-])"), tuple(denotes), tuple(accepts))


def read_symbols(reading: Reading, field: str, phrases: Sequence[Phrase]) -> list[Found]:
    """At most one demand, made of every phrase that is asked for, and one exclusion for each that is ruled out."""
    asked: list[_Hit] = []
    wished: list[_Hit] = []
    found: list[Found] = []
    for one in phrases:
        for match in one.pattern.finditer(reading.lowered):
            start, end = match.span()
            if reading.negated(start):
                clause = filters.is_in(field, *_names(one.denotes), missing=Missing.INCLUDE)
                found.append(Found(start, end, f"not {one.label}", filters.negate(clause)))
            elif reading.soft(start, end):
                wished.append((start, end, one))
            else:
                asked.append((start, end, one))
    # "remote or hybrid if possible": the wish is for both.
    tied = [hit for hit in asked if any(_OR.fullmatch(reading.lowered, hit[1], wish[0]) for wish in wished)]
    wished += tied
    asked = sorted((hit for hit in asked if hit not in tied), key=lambda hit: hit[:2])
    if asked:
        labels = ", ".join(dict.fromkeys(hit[2].label for hit in asked))
        accepted = asked[0][2].accepts
        for last, another in pairwise(asked):
            more = another[2].accepts
            both = tuple(symbol for symbol in accepted if symbol in more)
            either = _ALTERNATIVE.search(reading.lowered, last[0], another[1]) or not both
            accepted = tuple(dict.fromkeys((*accepted, *more))) if either else both
        # What is merely welcome is not to be ruled out: "full time, part time ok".
        accepted = tuple(dict.fromkeys((*accepted, *(symbol for hit in wished for symbol in hit[2].accepts))))
        clause = filters.is_in(field, *_names(accepted), missing=Missing.INCLUDE)
        found.append(Found(asked[0][0], asked[-1][1], labels, clause))
    return found


def _names(symbols: Sequence[Symbol]) -> tuple[str, ...]:
    return tuple(str(symbol.value) for symbol in symbols)
