"""Understanding by rule: each rule reads one idea, and what a query states becomes filters. No state.

Precision before recall: a filter that is wrong hides good postings, one that is lacking merely leaves the work to the
ranking. What the rules cost and gain on graded queries: training/understanding_report.py.

Where it stands: life-of-a-query.md, step 3.
"""

from __future__ import annotations

import re
from itertools import pairwise

from penstock.retrieval.understanding import gazetteer
from penstock.retrieval.understanding.employment import read_employment
from penstock.retrieval.understanding.exclusions import read_exclusions
from penstock.retrieval.understanding.grade import read_grade
from penstock.retrieval.understanding.pay import read_pay
from penstock.retrieval.understanding.query_places import read_places
from penstock.retrieval.understanding.reading import Found, Reading, Rule
from penstock.retrieval.understanding.recency import read_recency
from penstock.retrieval.understanding.remote import read_remote
from penstock.retrieval.understanding.seniority import read_seniority
from penstock.schemas.events import Understood

_OR = re.compile(r"(?:\s+(?:jobs?|work|roles?|positions?))?\s*,?\s*(?:or|/)\s*(?:in|near|at|a|an|around)?\s*")
MOST_CHARACTERS = 1_000  # of a query that are read; past it is a pasted text and no query

RULES: dict[str, Rule] = {
    "remote": read_remote,
    "employment": read_employment,
    "seniority": read_seniority,
    "grade": read_grade,
    "pay": read_pay,
    "recency": read_recency,
    "places": read_places,
}


class RuleUnderstander:
    """See `interface.Understander`. Loads the gazetteer when made, so that no query waits for it."""

    def __init__(self) -> None:
        gazetteer.load()

    def understand(self, text: str, *, now_ms: int) -> tuple[Understood, ...]:
        return tuple(
            Understood(
                label=one.label,
                span=text[one.start : one.end],
                filter=one.filter,
                needs_values=one.needs_values,
            )
            for _, one in self.read(text, now_ms=now_ms)
        )

    def read(self, text: str, *, now_ms: int) -> list[tuple[str, Found]]:
        """The name of the rule with each thing found, in the order of the query's words."""
        reading = Reading.of(text[:MOST_CHARACTERS], now_ms)
        found = [(name, one) for name, rule in RULES.items() for one in rule(reading)]
        taken = [(one.start, one.end) for _, one in found]
        found += [("exclusions", one) for one in read_exclusions(reading, taken)]
        found.sort(key=lambda pair: (pair[1].start, pair[1].end, pair[0]))
        return _without_alternatives(reading, found)


def _without_alternatives(reading: Reading, found: list[tuple[str, Found]]) -> list[tuple[str, Found]]:
    """Leaves out both sides of an "or" between two rules ("remote or in Denver"): neither alone is demanded."""
    dropped: set[int] = set()
    for at, ((name, one), (other_name, other)) in enumerate(pairwise(found)):
        if name != other_name and _OR.fullmatch(reading.lowered[one.end : other.start]):
            dropped |= {at, at + 1}
    return [pair for at, pair in enumerate(found) if at not in dropped]
