"""The attribute columns that filters read: one array an attribute, one place a row (structure of arrays).

Written by the store's one writer, and only at slots that no reader can see; a column grows by copying and then
swapping the array. So readers need no lock: at the slots they see, whichever array they caught says the same.
Which value each field has of a posting is said in `extract`, and nowhere else.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from penstock.retrieval.store.vocabulary import Vocabulary
from penstock.schemas import text
from penstock.schemas.events import IndexUpdate
from penstock.schemas.filters import FIELDS, FieldType, annual

ABSENT = -1  # the code of a keyword that a row lacks
LINE = 8  # codes of a multi-valued attribute that one line holds

Codes = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]


def keyword(value: str) -> str:
    """A keyword as it is compared: without case, without blanks around it. Empty means missing."""
    return value.strip().casefold()


def extract(update: IndexUpdate) -> dict[str, Any]:
    """The value of each filter field: str, tuple of str, symbol, float or (lat, lon); absent when missing."""
    attributes = update.attributes
    assert attributes is not None
    place, pay = attributes.location, attributes.salary
    found: dict[str, Any] = {
        "posting_id": update.posting_id,
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


class KeywordColumn:
    """One code a row, -1 where the attribute is missing."""

    def __init__(self, capacity: int) -> None:
        self.vocabulary = Vocabulary()
        self.codes: Codes = np.full(capacity, ABSENT, np.int32)

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.vocabulary.nbytes

    def grow(self, capacity: int) -> None:
        self.codes = grown(self.codes, capacity, ABSENT)

    def write(self, slot: int, value: str | None) -> None:
        word = "" if value is None else keyword(value)
        self.codes[slot] = self.vocabulary.acquire(word) if word else ABSENT

    def clear(self, slot: int) -> None:
        if self.codes[slot] != ABSENT:
            self.vocabulary.release(int(self.codes[slot]))
            self.codes[slot] = ABSENT


class KeywordsColumn:
    """Any number of codes a row, in lines of eight: a row owns as many lines as it needs.

    `table` is swapped as a whole when it grows. A line that changes hands moves between rows which no reader of an
    older epoch can see, so a reader that catches it half-way marks only rows that its epoch masks out.
    """

    def __init__(self, capacity: int) -> None:
        self.vocabulary = Vocabulary()
        self.counts: Codes = np.zeros(capacity, np.int32)  # values of each row; 0: missing
        self.table: tuple[Codes, Codes] = (
            np.full((capacity, LINE), ABSENT, np.int32),  # codes
            np.full(capacity, ABSENT, np.int32),  # the slot that owns the line, -1: free
        )
        self._lines: dict[int, list[int]] = {}  # of each slot
        self._free: list[int] = list(range(capacity - 1, -1, -1))

    @property
    def nbytes(self) -> int:
        codes, owner = self.table
        # A dict entry with a list of one line costs about 200 bytes in CPython 3.11.
        held = 200 * len(self._lines) + 8 * len(self._free)
        return self.counts.nbytes + codes.nbytes + owner.nbytes + self.vocabulary.nbytes + held

    def grow(self, capacity: int) -> None:
        self.counts = grown(self.counts, capacity, 0)

    def write(self, slot: int, values: tuple[str, ...]) -> None:
        words = [word for word in dict.fromkeys(keyword(value) for value in values) if word]
        self.counts[slot] = len(words)
        if not words:
            return
        needed = math.ceil(len(words) / LINE)
        while len(self._free) < needed:
            self._grow_table()
        codes, owner = self.table
        lines = [self._free.pop() for _ in range(needed)]
        flat = [self.vocabulary.acquire(word) for word in words]
        flat += [ABSENT] * (needed * LINE - len(flat))
        codes[lines] = np.asarray(flat, np.int32).reshape(needed, LINE)
        owner[lines] = slot
        self._lines[slot] = lines

    def clear(self, slot: int) -> None:
        codes, owner = self.table
        lines = self._lines.pop(slot, [])
        for code in codes[lines].ravel():
            if code != ABSENT:
                self.vocabulary.release(int(code))
        codes[lines] = ABSENT
        owner[lines] = ABSENT
        self._free.extend(lines)
        self.counts[slot] = 0

    def _grow_table(self) -> None:
        codes, owner = self.table
        size = len(owner)
        self.table = (grown(codes, 2 * size, ABSENT), grown(owner, 2 * size, ABSENT))
        self._free.extend(range(2 * size - 1, size - 1, -1))


class Columns:
    """Every filter field of every slot. `write` fills an unseen slot, `clear` empties a retired one."""

    def __init__(self, capacity: int) -> None:
        def of(*kinds: FieldType) -> list[str]:
            return [field for field, spec in FIELDS.items() if spec.type in kinds]

        self.keyword = {field: KeywordColumn(capacity) for field in of(FieldType.KEYWORD)}
        self.keywords = {field: KeywordsColumn(capacity) for field in of(FieldType.KEYWORDS)}
        self.symbol = {field: np.zeros(capacity, np.int8) for field in of(FieldType.SYMBOL)}  # 0: UNKNOWN
        self.number = {field: np.full(capacity, np.nan) for field in of(FieldType.NUMBER, FieldType.TIME)}
        self.place = {field: np.full((2, capacity), np.nan) for field in of(FieldType.PLACE)}
        self._symbols = {
            field: {symbol: code for code, symbol in enumerate(FIELDS[field].symbols or ())} for field in self.symbol
        }

    @property
    def nbytes(self) -> int:
        arrays = (*self.symbol.values(), *self.number.values(), *self.place.values())
        coded = self._coded()
        return sum(array.nbytes for array in arrays) + sum(column.nbytes for column in coded)

    def _coded(self) -> list[KeywordColumn | KeywordsColumn]:
        return [*self.keyword.values(), *self.keywords.values()]

    def symbol_codes(self, field: str, symbols: tuple[str, ...]) -> list[int]:
        """The codes of an enum's symbols."""
        return [code for symbol, code in self._symbols[field].items() if symbol.value in symbols]

    def grow(self, capacity: int) -> None:
        for column in self._coded():
            column.grow(capacity)
        self.symbol = {field: grown(array, capacity, 0) for field, array in self.symbol.items()}
        self.number = {field: grown(array, capacity, np.nan) for field, array in self.number.items()}
        self.place = {field: grown(array.T, capacity, np.nan).T for field, array in self.place.items()}

    def write(self, slot: int, update: IndexUpdate) -> None:
        """The attributes of an UPSERT, into an empty slot."""
        found = extract(update)
        for field, one in self.keyword.items():
            one.write(slot, found.get(field))
        for field, many in self.keywords.items():
            many.write(slot, found.get(field, ()))
        for field, symbols in self.symbol.items():
            symbols[slot] = self._symbols[field][found[field]]
        for field, numbers in self.number.items():
            numbers[slot] = found.get(field, np.nan)
        for field, places in self.place.items():
            places[:, slot] = found.get(field, (np.nan, np.nan))

    def clear(self, slot: int) -> None:
        """Empties the slot and gives its codes back. Harmless on an empty or half-written one."""
        for column in self._coded():
            column.clear(slot)
        for symbols in self.symbol.values():
            symbols[slot] = 0
        for numbers in self.number.values():
            numbers[slot] = np.nan
        for places in self.place.values():
            places[:, slot] = np.nan


def grown(array: npt.NDArray[Any], capacity: int, fill: Any) -> npt.NDArray[Any]:
    """A copy with `capacity` places along the first axis, the new ones holding `fill`."""
    out = np.full((capacity, *array.shape[1:]), fill, array.dtype)
    out[: len(array)] = array
    return out
