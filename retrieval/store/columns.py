"""From an update to the attributes of a row: which value each filter field has of a posting (`extract`), as it is
compared (`compared`), and the codes, symbols and numbers of a page that say so (`Stage`).

Written by the store's one writer, and only in rows that no reader can see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from penstock.retrieval.store.overflow import FIRST, Overflow
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
    split,
)
from penstock.retrieval.store.vocabulary import Dictionaries, keyword
from penstock.schemas import text
from penstock.schemas.events import IndexUpdate
from penstock.schemas.filters import FIELDS, annual

__all__ = ["Attributes", "Columns", "Stage", "clear", "compared", "extract", "keyword"]

WORD_BYTES = 250  # of a word in a dictionary, as Python counts it, with room for a letter of four bytes or a growth
OVERFLOW_BYTES = 60  # of a value past INLINE: its place, which may double the table, and its number in a list

_NAN = float("nan")
_NONE = [ABSENT] * INLINE
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


@dataclass(frozen=True, slots=True)
class Attributes:
    """What `extract` found, as columns have it but for the codes: in the order of page.py's lists of fields."""

    keywords: list[str]  # empty: missing
    many: list[list[str]]
    symbols: list[int]
    numbers: list[float]  # NaN: missing
    places: list[float]  # degrees north and east of each


def compared(found: dict[str, Any]) -> Attributes:
    """The values as filters compare them. Raises what is wrong with one."""
    get = found.get
    return Attributes(
        [keyword(found[field]) if field in found else "" for field in KEYWORD_FIELDS],
        [
            [word for word in dict.fromkeys([keyword(value) for value in get(field, ())]) if word]
            for field in MANY_FIELDS
        ],
        [_SYMBOLS[field][found[field]] for field in SYMBOL_FIELDS],
        [float(get(field, _NAN)) for field in NUMBER_FIELDS],
        [float(degrees) for field in PLACE_FIELDS for degrees in get(field, (_NAN, _NAN))],
    )


class Stage:
    """Attributes on their way into empty rows: taken one by one, written many at once, which is much faster."""

    def __init__(self, words: Dictionaries, overflow: Overflow) -> None:
        self._keywords = [words.of[field] for field in KEYWORD_FIELDS]
        self._many = [(field, words.of[field]) for field in MANY_FIELDS]
        self._overflow = overflow
        self._slots: list[int] = []
        self._codes: list[list[int]] = []
        self._several: list[list[int]] = []  # INLINE codes and their count, of each multi-valued field
        self._symbols: list[list[int]] = []
        self._numbers: list[list[float]] = []
        self._places: list[list[float]] = []

    def needs(self, attributes: Attributes) -> int:
        """Bytes that the words nobody has used yet and the values past INLINE will take, about."""
        fields = [(vocabulary, [word]) for vocabulary, word in zip(self._keywords, attributes.keywords, strict=True)]
        fields += [(vocabulary, words) for (_, vocabulary), words in zip(self._many, attributes.many, strict=True)]
        fresh = sum(WORD_BYTES + len(word) for vocabulary, words in fields for word in words if vocabulary.lacks(word))
        past = sum(max(0, len(words) - INLINE) for words in attributes.many)
        return fresh + (OVERFLOW_BYTES * (past + FIRST) if past else 0)

    def take(self, slot: int, attributes: Attributes) -> None:
        """The attributes of an empty row: its words have their codes from here on."""
        self._slots.append(slot)
        self._codes.append(
            [
                vocabulary.acquire(word) if word else ABSENT
                for vocabulary, word in zip(self._keywords, attributes.keywords, strict=True)
            ]
        )
        several: list[int] = []
        for (field, vocabulary), words in zip(self._many, attributes.many, strict=True):
            codes = [vocabulary.acquire(word) for word in words]
            count = len(codes)
            if count > INLINE:
                self._overflow.write(field, slot, codes[INLINE:])
                several += codes[:INLINE]
            else:
                several += codes
                several += _NONE[count:]
            several.append(count)
        self._several.append(several)
        self._symbols.append(attributes.symbols)
        self._numbers.append(attributes.numbers)
        self._places.append(attributes.places)

    def write(self, pages: Sequence[Page]) -> None:
        """Puts what was taken into the pages. Before anybody may see it, and before any of it is cleared."""
        if not self._slots:
            return
        slots = np.asarray(self._slots, np.int64)
        codes, several = np.asarray(self._codes, np.int32), np.asarray(self._several, np.int32)
        symbols = np.asarray(self._symbols, np.int8)
        numbers, places = np.asarray(self._numbers, np.float64), np.asarray(self._places, np.float64)
        for number, at, rows in split(slots, pages[0].rows):
            page = pages[number]
            for place, field in enumerate(KEYWORD_FIELDS):
                page.codes[field][rows] = codes[at, place]
            for place, field in enumerate(MANY_FIELDS):
                begin = place * (INLINE + 1)
                page.many[field][rows] = several[at, begin : begin + INLINE]
                page.counts[field][rows] = several[at, begin + INLINE]
            for place, field in enumerate(SYMBOL_FIELDS):
                page.symbols[field][rows] = symbols[at, place]
            for place, field in enumerate(NUMBER_FIELDS):
                page.numbers[field][rows] = numbers[at, place]
            for place, field in enumerate(PLACE_FIELDS):
                page.places[field][:, rows] = places[at, 2 * place : 2 * place + 2].T
        for taken in (self._slots, self._codes, self._several, self._symbols, self._numbers, self._places):
            taken.clear()


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
        self._page = make_page(0, -(-max(capacity, 1) // BLOCK) * BLOCK)
        self.words = Dictionaries()
        self.overflow = Overflow()
        self._stage = Stage(self.words, self.overflow)

    @property
    def page(self) -> Page:
        """With everything that was written."""
        self._stage.write((self._page,))
        return self._page

    def write(self, row: int, update: IndexUpdate) -> None:
        """The attributes of an UPSERT, into an empty row."""
        self._stage.take(row, compared(extract(update)))
        self.words.acquire_id(update.posting_id)
        self._page.ties[row] = self.words.hash_id(update.posting_id)
