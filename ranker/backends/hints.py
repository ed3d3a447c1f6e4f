"""Plain readings of a query's or a posting's words: states, pay grades, leading or junior roles, remote, hours.

Deliberately small: hard constraints are filters (retrieval's understanding makes them); these only move a score.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

_STATES = {
    "alabama": "AL", "alaska": "AK", "arizona": "AZ", "arkansas": "AR", "california": "CA", "colorado": "CO",
    "connecticut": "CT", "delaware": "DE", "district of columbia": "DC", "florida": "FL", "georgia": "GA",
    "hawaii": "HI", "idaho": "ID", "illinois": "IL", "indiana": "IN", "iowa": "IA", "kansas": "KS",
    "kentucky": "KY", "louisiana": "LA", "maine": "ME", "maryland": "MD", "massachusetts": "MA", "michigan": "MI",
    "minnesota": "MN", "mississippi": "MS", "missouri": "MO", "montana": "MT", "nebraska": "NE", "nevada": "NV",
    "new hampshire": "NH", "new jersey": "NJ", "new mexico": "NM", "new york": "NY", "north carolina": "NC",
    "north dakota": "ND", "ohio": "OH", "oklahoma": "OK", "oregon": "OR", "pennsylvania": "PA",
    "puerto rico": "PR", "rhode island": "RI", "south carolina": "SC", "south dakota": "SD", "tennessee": "TN",
    "texas": "TX", "utah": "UT", "vermont": "VT", "virginia": "VA", "washington": "WA", "west virginia": "WV",
    "wisconsin": "WI", "wyoming": "WY",
}  # fmt: skip
# VA is the veterans' department far more often than Virginia, and DC needs no capitals.
_CODES = frozenset(_STATES.values()) - {"VA"}
_STATE = re.compile(
    r"\b(?:washington,? (?:dc|d\.c\.|district of columbia)|"
    + "|".join(sorted(_STATES, key=len, reverse=True))
    + r"|d\.?c\.?)\b",
    re.IGNORECASE,
)
_CODE = re.compile(r"\b[A-Z]{2}\b")

_GRADES = re.compile(
    r"\b(gs|gg|gl|gm|wg|wl|ws|nf|na|nl|ns|ad|es|fv|sv|vn|vm|nh|cy|dr|db|ia)[- ]?0*(\d{1,2})"
    r"(?:\s*(?:/|-|to|or|through)\s*(?:\1[- ]?)?0*(\d{1,2}))?\b",
    re.IGNORECASE,
)

_LEAD = re.compile(
    r"\b(?:supervis\w*|manag(?:er|ers|ing|ement)|lead(?:er|ers|ing)?|chief|head(?:ed|ing)?|director|superintendent|foreman)\b",
    re.IGNORECASE,
)
_LEAD_TITLE = re.compile(
    r"\b(?:supv|supervis\w*|manager|lead(?:er)?|chief|head|director|superintendent|foreman|executive)\b", re.IGNORECASE
)
_JUNIOR = re.compile(
    r"\b(?:entry[- ]level|no experience|junior|trainee|apprentice\w*|student|intern(?:ship)?|beginner|"
    r"recent graduate)\b",
    re.IGNORECASE,
)
_REMOTE = re.compile(r"\b(?:remote(?:ly)?|telework\w*|work from home|wfh|from home)\b", re.IGNORECASE)
_NOT_REMOTE = re.compile(r"\b(?:no|not|non)[- ](?:remote|telework\w*)|\bon-?site\b|\bin person\b", re.IGNORECASE)
_HOURS = {
    "FULL_TIME": re.compile(r"\bfull[- ]time\b", re.IGNORECASE),
    "PART_TIME": re.compile(r"\bpart[- ]time\b", re.IGNORECASE),
    "CONTRACT": re.compile(r"\bcontract(?:or)? (?:job|role|position|work)\b|\bfreelance\b", re.IGNORECASE),
    "TEMPORARY": re.compile(r"\b(?:temporary|temp|seasonal|summer)\b", re.IGNORECASE),
    "INTERNSHIP": re.compile(r"\bintern(?:ship)?s?\b", re.IGNORECASE),
    "PERMANENT_OTHER": re.compile(r"\bpermanent\b", re.IGNORECASE),
}


_LASTING = frozenset({"PERMANENT_OTHER"})
_PASSING = frozenset({"CONTRACT", "TEMPORARY", "INTERNSHIP"})
_OPPOSITES = {
    "FULL_TIME": frozenset({"PART_TIME"}),
    "PART_TIME": frozenset({"FULL_TIME"}),
    "PERMANENT_OTHER": _PASSING,
    "CONTRACT": _LASTING,
    "TEMPORARY": _LASTING,
    "INTERNSHIP": _LASTING,
    "ONSITE": frozenset({"REMOTE", "HYBRID"}),
    "REMOTE": frozenset({"ONSITE"}),
    "HYBRID": frozenset({"ONSITE"}),
}


@dataclass(frozen=True, slots=True)
class Hints:
    """What a query asks for or a posting offers; an empty set is open."""

    lead: bool
    junior: bool
    remote: frozenset[str]
    hours: frozenset[str]


def query_hints(text: str) -> Hints:
    """Read from a query's words."""
    if _NOT_REMOTE.search(text):
        remote = frozenset({"ONSITE"})
    else:
        remote = frozenset({"REMOTE", "HYBRID"}) if _REMOTE.search(text) else frozenset()
    hours = frozenset(name for name, pattern in _HOURS.items() if pattern.search(text))
    return Hints(bool(_LEAD.search(text)), bool(_JUNIOR.search(text)), remote, hours)


def posting_hints(title: str, remote: str | None, employment_type: str | None) -> Hints:
    """Read from a posting's title and attributes; UNKNOWN is open."""
    lead, junior = _title_hints(title)
    return Hints(lead, junior, _known(remote), _known(employment_type))


def agreement(wanted: frozenset[str], held: frozenset[str]) -> tuple[float, float]:
    """Match and conflict, 0 or 1 each: a symbol in common, or one that rules out one wanted. Open sides give 0, 0."""
    if wanted & held:
        return 1.0, 0.0
    return 0.0, float(any(_OPPOSITES.get(symbol, frozenset()) & wanted for symbol in held))


@functools.lru_cache(maxsize=32_768)
def _title_hints(title: str) -> tuple[bool, bool]:
    return bool(_LEAD_TITLE.search(title)), bool(_JUNIOR.search(title))


def _known(symbol: str | None) -> frozenset[str]:
    return frozenset() if symbol is None or symbol == "UNKNOWN" else frozenset({str(symbol)})


@functools.lru_cache(maxsize=32_768)
def regions_in(text: str) -> frozenset[str]:
    """US states named in a text, by name or by capital code: {"OH"}. Washington, DC is not Washington state."""
    found = {_state(match.group()) for match in _STATE.finditer(text)}
    found |= {code for code in _CODE.findall(text) if code in _CODES} if not text.isupper() else set()
    return frozenset(found)


def _state(name: str) -> str:
    lowered = name.lower()
    return _STATES.get(lowered, "DC")


@functools.lru_cache(maxsize=32_768)
def grades_in(text: str) -> tuple[tuple[str, int, int], ...]:
    """Pay grades named in a text: (pay plan, lowest, highest). "GS-9/11" spans 9 to 11; grade 0 says no grade."""
    found = []
    for plan, low, high in _GRADES.findall(text):
        first, last = int(low), int(high or low)
        if first > 0 and last > 0:
            found.append((plan.lower(), min(first, last), max(first, last)))
    return tuple(found)


def grade_gap(wanted: tuple[tuple[str, int, int], ...], held: tuple[tuple[str, int, int], ...]) -> int | None:
    """Grades between the nearest two of one pay plan, 0 when they overlap; None when no plan is shared."""
    gaps = [
        max(0, held_low - high, low - held_high)
        for plan, low, high in wanted
        for held_plan, held_low, held_high in held
        if plan == held_plan
    ]
    return min(gaps, default=None)
