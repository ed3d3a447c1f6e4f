"""What the cheap scorer knows of a (query, posting) pair: a fixed list of numbers, pure numpy, no model.

Invariant: a pair's features depend on that pair alone, so scores never change with the batch. An attribute that
either side leaves open gives 0, never a penalty. Weights: fused_scorer.json, made by training/fused_scorer.py.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from penstock.ranker.backends.hints import (
    Hints,
    agreement,
    grade_gap,
    grades_in,
    posting_hints,
    query_hints,
    regions_in,
)
from penstock.schemas.text import term, terms, words

FEATURES: tuple[str, ...] = (
    "dense",  # inner product of the dense planes
    "lexical",  # inner product of the sketches, hybrid weight included
    "query_length",  # log of 1 + the query's distinct terms
    "dense_by_length",  # dense times query_length
    "lexical_by_length",
    "title_coverage",  # share of the query's rarity (idf) that the title holds
    "head_coverage",  # that the title or an attribute holds
    "text_coverage",  # that title, attributes or summary hold
    "rarest_missing",  # the rarest term that none of them holds, as a share of the query's rarity
    "title_purity",  # share of the title's rarity that the query holds
    "title_phrase",  # share of the query's neighbouring pairs that are neighbours in the title
    "title_whole",  # the title holds every term of the query, or the query every term of the title
    "title_initials",  # share of the query's short words that are initials of the title (RN, HR)
    "excluded",  # share of the rarity of what the query excludes ("no", "not", "without") that the head holds
    "location_match",  # share of the posting's place that the query names
    "region_match",  # both name a US state, and share one
    "region_conflict",  # both name a US state, and share none
    "region_open",  # the query names a US state, the posting has no place
    "grade_match",  # the posting's pay grade covers one the query names
    "grade_near",  # misses by one
    "grade_far",  # misses by more, or is of another pay plan
    "grade_open",  # the query names one, the posting has none
    "lead_match",  # both speak of leading (supervisor, manager, chief, head, lead)
    "lead_missing",  # the query does, the posting's title does not
    "lead_extra",  # the other way round
    "junior_match",  # likewise: entry level, trainee, assistant, student, intern
    "junior_missing",
    "junior_extra",
    "remote_match",
    "remote_conflict",
    "hours_match",  # full time, part time, temporary, internship, ... as the posting's employment type says
    "hours_conflict",
)


@dataclass(frozen=True, slots=True)
class Rarity:
    """How telling a term is. `idf` holds the common terms; any other has `unseen`."""

    idf: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    unseen: float = 1.0

    def __call__(self, term: str) -> float:
        return self.idf.get(term, self.unseen)


@dataclass(frozen=True, slots=True)
class QueryFeatures:
    """The query's side, made once a query by `query_features`."""

    weights: Mapping[str, float]  # rarity of each distinct term, in order, without what is excluded
    pairs: frozenset[tuple[str, str]]  # neighbours among them
    excluded: frozenset[str]
    short: frozenset[str]  # words of 2 to 5 letters, lower case, unstemmed
    regions: frozenset[str]
    grades: tuple[tuple[str, int, int], ...]  # pay plan, lowest, highest
    hints: Hints
    total: float  # sum of `weights`
    rarity: Rarity


@dataclass(frozen=True, slots=True)
class ItemFeatures:
    """The posting's side: attributes as text, and what retrieval scored."""

    title: str
    company: str | None = None
    location: str | None = None
    grade: str | None = None
    remote: str | None = None  # schemas.events.Remote, None or UNKNOWN when open
    employment_type: str | None = None  # schemas.events.EmploymentType, likewise
    summary: str | None = None
    dense: float = 0.0
    lexical: float = 0.0


def query_features(text: str, rarity: Rarity) -> QueryFeatures:
    """Reads a query's words once, for any number of postings."""
    wanted, excluded = _split(text)
    weights = {each: rarity(each) for each in wanted}
    return QueryFeatures(
        weights=weights,
        pairs=frozenset(itertools.pairwise(wanted)),
        excluded=excluded,
        short=frozenset(word for word in words(text) if 2 <= len(word) <= 5 and word.isalpha() and term(word)),
        regions=regions_in(text),
        grades=grades_in(text),
        hints=query_hints(text),
        total=sum(weights.values()),
        rarity=rarity,
    )


def compute(query: QueryFeatures, items: Sequence[ItemFeatures]) -> npt.NDArray[np.float64]:
    """Feature values, float64 [len(items), len(FEATURES)]."""
    out = np.zeros((len(items), len(FEATURES)), dtype=np.float64)
    for row, item in enumerate(items):
        out[row] = _pair(query, item)
    return out


def _pair(query: QueryFeatures, item: ItemFeatures) -> list[float]:
    title = _title(item.title)
    head = title.terms | _terms(item.company) | _terms(item.location) | _terms(item.grade)
    text = head | _summary_terms(item.summary) if item.summary else head
    rarity, total = query.rarity, query.total or 1.0
    in_title = in_head = in_text = rarest = 0.0
    for wanted_term, weight in query.weights.items():
        if wanted_term in title.terms:
            in_title += weight
        if wanted_term in head:
            in_head += weight
        if wanted_term in text:
            in_text += weight
        else:
            rarest = max(rarest, weight)
    wanted = query.weights.keys()
    shared = wanted & title.terms
    shared_weight = sum(query.weights[each] for each in sorted(shared))
    title_total = shared_weight + sum(rarity(each) for each in sorted(title.terms - shared))
    excluded_total = sum(rarity(each) for each in sorted(query.excluded))
    excluded = sum(rarity(each) for each in sorted(query.excluded & head))
    length = float(np.log1p(len(wanted)))
    whole = bool(shared) and (len(shared) == len(wanted) or len(shared) == len(title.terms))
    return [
        item.dense,
        item.lexical,
        length,
        item.dense * length,
        item.lexical * length,
        in_title / total,
        in_head / total,
        in_text / total,
        rarest / total,
        shared_weight / title_total if title_total else 0.0,
        len(query.pairs & title.pairs) / len(query.pairs) if query.pairs else 0.0,
        float(whole),
        len(query.short & title.initials) / len(query.short) if query.short else 0.0,
        excluded / excluded_total if excluded_total else 0.0,
        *_place(query, item.location),
        *_grade(query, item.grade),
        *_hints(query.hints, posting_hints(item.title, item.remote, item.employment_type)),
    ]


def _place(query: QueryFeatures, location: str | None) -> list[float]:
    """location_match, region_match, region_conflict, region_open."""
    if not location:
        return [0.0, 0.0, 0.0, float(bool(query.regions))]
    place = _terms(location)
    named = len(place & query.weights.keys()) / len(place) if place else 0.0
    regions = regions_in(location)
    if not query.regions or not regions:
        return [named, 0.0, 0.0, 0.0]
    same = bool(query.regions & regions)
    return [named, float(same), float(not same), 0.0]


def _grade(query: QueryFeatures, grade: str | None) -> list[float]:
    """grade_match, grade_near, grade_far, grade_open."""
    if not query.grades:
        return [0.0, 0.0, 0.0, 0.0]
    held = grades_in(grade or "")
    if not held:
        return [0.0, 0.0, 0.0, 1.0]
    gap = grade_gap(query.grades, held)
    return [float(gap == 0), float(gap == 1), float(gap is None or gap > 1), 0.0]


def _hints(wanted: Hints, held: Hints) -> list[float]:
    """lead_*, junior_*, remote_* and hours_*, in FEATURES' order."""
    return [
        float(wanted.lead and held.lead),
        float(wanted.lead and not held.lead),
        float(held.lead and not wanted.lead),
        float(wanted.junior and held.junior),
        float(wanted.junior and not held.junior),
        float(held.junior and not wanted.junior),
        *agreement(wanted.remote, held.remote),
        *agreement(wanted.hours, held.hours),
    ]


_CLAUSE_END = re.compile(r"[.,;:!?()\n]|\bbut\b|\bjust\b|\bonly\b", re.IGNORECASE)
_EXCLUDES = re.compile(
    r"\b(?:no|not|without|except|excluding|non)\b(?! (?:only|just|necessarily|sure)\b)", re.IGNORECASE
)


def _split(text: str) -> tuple[tuple[str, ...], frozenset[str]]:
    """Distinct wanted terms in order, and the terms between an excluding word and its clause's end."""
    wanted: list[str] = []
    excluded: list[str] = []
    end = 0
    for found in _EXCLUDES.finditer(text):
        if found.start() < end:
            continue
        wanted += terms(text[end : found.start()])
        stop = _CLAUSE_END.search(text, found.end())
        clause_end = stop.start() if stop else len(text)
        excluded += terms(text[found.end() : clause_end])
        end = clause_end
    wanted += terms(text[end:])
    distinct = tuple(dict.fromkeys(wanted))
    return distinct, frozenset(excluded) - set(distinct)


@dataclass(frozen=True, slots=True)
class _Title:
    terms: frozenset[str]
    pairs: frozenset[tuple[str, str]]
    initials: frozenset[str]


@functools.lru_cache(maxsize=32_768)
def _title(title: str) -> _Title:
    found = tuple(terms(title))
    letters = "".join(word[0] for word in words(title) if word[0].isalpha() and term(word))
    runs = {letters[a : a + n] for n in range(2, 6) for a in range(len(letters) - n + 1)}
    return _Title(frozenset(found), frozenset(itertools.pairwise(found)), frozenset(runs))


@functools.lru_cache(maxsize=32_768)
def _terms(text: str | None) -> frozenset[str]:
    return frozenset(terms(text)) if text else frozenset()


@functools.lru_cache(maxsize=4_096)  # longer texts, fewer of them: about 20 MB when full
def _summary_terms(text: str) -> frozenset[str]:
    return frozenset(terms(text))
