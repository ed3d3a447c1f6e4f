"""What a query rules out in words: "not nursing", "no java", "except warehouse work", "not inpatient or nights".

Excluded is a posting whose title has every stem of what is ruled out; of descriptions nothing is assumed. Conditions
of work and requirements ("no degree", "no nights", "no experience needed") are no titles and are left to the ranking.
What another rule has read (places, hours, grades) is left alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from penstock.retrieval.understanding.reading import Found, Reading
from penstock.schemas import filters
from penstock.schemas.events import Filter, Missing
from penstock.schemas.text import STOPWORDS, terms, words

MOST_WORDS = 3

_CUE = re.compile(
    r"(?<![\w-])(?:(?:but |and |am |'m )?not(?! (?:only|just|necessarily|sure|required|needed|afraid|yet|my|too|so|"
    r"less|more|later|if|because|having|been|being|able|to\b))|no|without|except(?: for)?|excluding|anything but)\s+"
    r"(?:(?:a|an|any|the|in|interested in|looking for|doing|for)\s+)*"
)
_GRADE = re.compile(r"\b[a-z]{2}[\s-]?\d")  # another rule's business
_DENIAL = re.compile(r"\b(?:am|'m|have|has|is|does|do|are|was)\s+$")  # "I am not a nurse" tells of the person
_PHRASE = re.compile(r"[\w+#.'-]+(?:[ /&-][\w+#.'-]+){0,5}")
_PART = re.compile(r"\s+or\s+|\s*/\s*|\s+and\s+|\s+nor\s+")
_ANOTHER = re.compile(r"\s+(?:no|not|without)\s.*")  # read at its own cue
_DANGLING = re.compile(r"(?:\s+(?:or|and|nor))+$")
_STOP_AT = re.compile(
    r"\s+-\s.*|\s+(?:please|pls|plz|thanks|only|required|requirements?|needed|necessary|if|but|because|that|which|who|with|in|at|"
    r"on|for|is|are|ok|okay|allowed|involved|jobs?|work|roles?|positions?|duty|duties|guy|ever|at all|just)\b.*"
)
# Conditions, requirements and the like: not what a title says.
_CONDITION = re.compile(
    r"\b(?:experiences?|experiance|degrees?|diplomas?|licen[sc]es?|certificat\w*|certs?|credentials?|travel\w*|nights?|"
    r"nite|i|i'd|i'm|i've|you|we|they|it|days?|weekends?|"
    r"wkends?|wknds|weekdays?|evenings?|shifts?|overtime|holidays?|hours?|call|commut\w*|relocat\w*|"
    r"lifting|standing|military|membership|clearance|drug|background|visa|sponsorship|phones?|"
    r"cold|required|requirements?|problem|limits?|matter|one|idea|doubt|longer|more|less|than|least|age|college|school|"
    r"contracts?|agency|agencies|retail|chains?|dual|status|forklift|much|other|preference|stress|weapons?|"
    r"benefits|commission|bedside|ged|math|english|pets?|kids|children|ready|criminal|record|hands)\b"
)
# Stems of one word that titles write in several ways.
_FAMILIES = (
    frozenset(["supervis", "supervisor", "supervisori", "supv"]),
    frozenset(["manag", "mgr", "mgmt"]),
    frozenset(["nurs", "rn"]),
    frozenset(["admin", "administr"]),
)


def read_exclusions(reading: Reading, taken: Sequence[tuple[int, int]]) -> list[Found]:
    """`taken` are the spans that other rules have read."""
    found: list[Found] = []
    for cue in _CUE.finditer(reading.lowered):
        if cue.group().startswith(("not", "but not")) and _DENIAL.search(reading.lowered[: cue.start()]):
            continue
        if cue.group().startswith(("am ", "'m ")) and "interested" not in cue.group() and "looking" not in cue.group():
            continue
        phrase = _PHRASE.match(reading.lowered, cue.end())
        if phrase is None:
            continue
        said = _STOP_AT.sub("", phrase.group().rstrip(".-'"))
        if any(start < phrase.start() + len(said) and phrase.start() < end for start, end in taken):
            continue
        said = _ANOTHER.sub("", said)
        said = _DANGLING.sub("", said)
        for part in _PART.split(said):
            clause = _clause(reading, part, phrase.start(), phrase.start() + len(said))
            if clause is not None:
                label = f"not {part.strip()}"
                found.append(Found(cue.start(), phrase.start() + len(said), label, clause))
    return found


def _clause(reading: Reading, part: str, start: int, end: int) -> Filter | None:
    stems = list(dict.fromkeys(terms(part)))
    counted = [word for word in words(part) if word not in STOPWORDS]
    if (
        not 0 < len(counted) <= MOST_WORDS
        or _CONDITION.search(part)
        or _GRADE.search(part)
        or not all(stem.strip("0123456789-") for stem in stems)
    ):
        return None
    asked = {*terms(reading.text[:start]), *terms(reading.text[end:])}
    if set(stems) <= asked:
        return None  # "nurse, not a nurse …": the words are wanted too
    parts = [filters.is_in("title.terms", *_family(stem), missing=Missing.INCLUDE) for stem in stems]
    whole = filters.all_of(*parts)
    assert whole is not None
    return filters.negate(whole)


def _family(stem: str) -> tuple[str, ...]:
    for family in _FAMILIES:
        if stem in family and stem not in ("rn",):
            return tuple(sorted(family))
    return (stem,)
