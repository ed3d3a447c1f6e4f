"""From an update to the attributes of a row: which value each filter field has of a posting (`extract`), and the
codes, symbols and numbers of a page that say so.

Written by the store's one writer, and only in rows that no reader can see.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from penstock.retrieval.store.overflow import Overflow
from penstock.retrieval.store.page import (
    ABSENT,
    BLOCK,
    INLINE,
    KEYWORD_FIELDS,
    MANY_FIELDS,
    NUMBER_FIELDS,
    PLACE_FIELDS,
    SYMBOL_FIELDS,
    Longs,
    Page,
    make_page,
)
from penstock.retrieval.store.vocabulary import Dictionaries, keyword
from penstock.schemas import text
from penstock.schemas.events import IndexUpdate
from penstock.schemas.filters import FIELDS, annual

__all__ = ["Columns", "clear", "extract", "fill", "keyword"]

_SYMBOLS = {field: {symbol: code for code, symbol in enumerate(FIELDS[field].symbols or ())} for field in SYMBOL_FIELDS}


def extract(update: IndexUpdate) -> dict[str, Any]:
    """The value of each filter field: str, tuple of str, symbol, float or (lat, lon); absent when missing."""
    attributes = update.attributes
    assert attributes is not None
    place, pay = attributes.location, attributes.salary
    found: dict[str, Any] = {
        "title.terms": tuple(text.terms(attributes.title)),
        "company": attributes.company,
        "category": attributes.category,
        "grade": attributes.grade,
        "skills": attributes.skills,
        "source": attributes.source,
        "remote": attributes.remote,
        "employment_type": attributes.employment_type,
        "seniority": attributes.seniority,
        "posted_at": attributes.posted_at,
        "expires_at": update.expires_at,
    }
    if place is not None:
        found |= {"location.country": place.country, "location.region": place.region, "location.city": place.city}
        if place.lat is not None and place.lon is not None:
            found["location"] = (place.lat, place.lon)
    if pay is not None:
        found["salary.currency"] = pay.currency
        found["salary.annual_min"] = annual(pay.min, pay.period)
        found["salary.annual_max"] = annual(pay.max, pay.period)
    return {field: value for field, value in found.items() if value is not None}


def fill(page: Page, row: int, found: dict[str, Any], words: Dictionaries, overflow: Overflow) -> None:
    """Writes what `extract` found into an empty row. What is wrong with a value raises before anything is taken."""
    keywords = {field: keyword(found.get(field, "")) for field in KEYWORD_FIELDS}
    many = {
        field: [word for word in dict.fromkeys(keyword(value) for value in found.get(field, ())) if word]
        for field in MANY_FIELDS
    }
    symbols = {field: _SYMBOLS[field][found[field]] for field in SYMBOL_FIELDS}
    numbers = {field: float(found.get(field, np.nan)) for field in NUMBER_FIELDS}
    for field, word in keywords.items():
        page.codes[field][row] = words.of[field].acquire(word) if word else ABSENT
    for field, several in many.items():
        codes = [words.of[field].acquire(word) for word in several]
        page.counts[field][row] = len(codes)
        page.many[field][row] = codes[:INLINE] + [ABSENT] * (INLINE - len(codes))
        overflow.write(field, page.first + row, codes[INLINE:])
    for field, symbol in symbols.items():
        page.symbols[field][row] = symbol
    for field, number in numbers.items():
        page.numbers[field][row] = number
    for field in PLACE_FIELDS:
        page.places[field][:, row] = found.get(field, (np.nan, np.nan))


def clear(page: Page, rows: Longs, words: Dictionaries, overflow: Overflow) -> None:
    """Gives back the codes of filled rows that nobody can see any more. Their arrays mean nothing from here on."""
    for field in KEYWORD_FIELDS:
        release = words.of[field].release
        for code in page.codes[field][rows].tolist():
            if code != ABSENT:
                release(code)
    for field in MANY_FIELDS:
        release = words.of[field].release
        codes = page.many[field][rows]
        for code in codes[codes != ABSENT].tolist():
            release(code)
        for row in rows[page.counts[field][rows] > INLINE].tolist():
            for code in overflow.clear(field, page.first + row):
                release(code)


class Columns:
    """A batch of postings as a page of its own, with its dictionaries and its overflow: what a filter reads."""

    def __init__(self, capacity: int) -> None:
        self.page = make_page(0, -(-max(capacity, 1) // BLOCK) * BLOCK)
        self.words = Dictionaries()
        self.overflow = Overflow()

    def write(self, row: int, update: IndexUpdate) -> None:
        """The attributes of an UPSERT, into an empty row."""
        fill(self.page, row, extract(update), self.words, self.overflow)
        self.words.acquire_id(update.posting_id)
        self.page.ties[row] = self.words.hash_id(update.posting_id)
