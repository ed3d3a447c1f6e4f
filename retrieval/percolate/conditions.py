"""What the conditions of standing queries say of a batch of postings, a bit a posting.

A condition over few postings is quickest asked by value: which of the postings have this word is one look-up, however
many conditions name it. Ranges and circles of many standing queries are compared at once. What a clause says is what
docs/retrieval.md, "Clause program", says of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from penstock.retrieval.search import filters
from penstock.retrieval.search.geometry import distance_km, reach
from penstock.retrieval.search.program import as_term
from penstock.retrieval.store.columns import extract
from penstock.retrieval.store.page import HASHED, KEYWORD_FIELDS, MANY_FIELDS, PLACE_FIELDS, SYMBOL_FIELDS
from penstock.retrieval.store.vocabulary import keyword
from penstock.schemas.events import FilterKind, IndexUpdate, Missing

PAIRS = 1 << 18  # of clauses and postings compared at once: their masks stay in cache

Bits = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]
Doubles = npt.NDArray[np.float64]


@dataclass(slots=True)
class _Column:
    """A field of the postings: which have each word, or their values."""

    lacks: int = 0  # bits of the postings without the attribute
    words: dict[str, int] = field(default_factory=dict)  # keyword or symbol -> bits
    values: Doubles = field(default_factory=lambda: np.zeros(0))  # [m], or [2, m] of places; NaN missing


class Conditions(dict[filters.Clause, int]):
    """What each clause says of `updates` (UPSERTs), as an integer with a bit a posting; evaluated when first asked for.

    Used by one thread.
    """

    def __init__(self, updates: Sequence[IndexUpdate]) -> None:
        super().__init__()
        self.count = len(updates)
        self.words = max(1, -(-self.count // 64))  # uint64 that hold a bit a posting
        self._found = [extract(update) | {HASHED: update.posting_id} for update in updates]
        self._columns: dict[str, _Column] = {}
        self._every = (1 << self.count) - 1

    def __missing__(self, clause: filters.Clause) -> int:
        if clause.filter.kind is FilterKind.IN:
            bits = self._named(clause)
        else:
            bits = int.from_bytes(self._compared([clause])[0].tobytes(), "little")
        self[clause] = bits
        return bits

    def bits(self, node: filters.Node) -> int:
        """What a tree says."""
        return filters.fold(node, self.__getitem__)

    def rows(self, nodes: Sequence[filters.Node]) -> Bits:
        """uint64 [n, words]: what each tree says; the bits past the last posting are 0."""
        out = np.zeros((len(nodes), self.words), np.uint64)
        compared: dict[str, tuple[list[int], list[filters.Clause]]] = {}
        said: list[int] = []
        one_by_one: list[int] = []
        for place, node in enumerate(nodes):
            if isinstance(node, filters.Clause) and node.filter.kind is not FilterKind.IN:
                places, clauses = compared.setdefault(node.filter.field or "", ([], []))
                places.append(place)
                clauses.append(node)
            else:
                one_by_one.append(place)
                said.append(self._named(node) if isinstance(node, filters.Clause) else self.bits(node))
        out[one_by_one] = self.packed(said)
        step = max(1, PAIRS // max(1, self.count))
        for places, clauses in compared.values():
            for start in range(0, len(clauses), step):
                out[places[start : start + step]] = self._compared(clauses[start : start + step])
        return out

    def packed(self, bits: Iterable[int]) -> Bits:
        """uint64 [n, words] of integers with a bit a posting."""
        size = 8 * self.words
        raw = b"".join([one.to_bytes(size, "little") for one in bits])
        return np.frombuffer(raw, "<u8").astype(np.uint64, copy=False).reshape(-1, self.words)

    def _named(self, clause: filters.Clause) -> int:
        """IN: those that have one of its values."""
        tree = clause.filter
        assert tree.field is not None
        column, hit = self._column(tree.field), 0
        for value in tree.values:
            hit |= column.words.get(value if tree.field in SYMBOL_FIELDS else keyword(value), 0)
        if tree.field == "title.terms":
            for value in tree.values:
                if (term := as_term(value)) is not None:
                    hit |= column.words.get(term, 0)
        if clause.negated:
            hit ^= self._every
        return hit | column.lacks if tree.missing is Missing.INCLUDE else hit & ~column.lacks

    def _compared(self, clauses: Sequence[filters.Clause]) -> Bits:
        """uint64 [n, words] of RANGE or NEAR clauses of one field."""
        name = clauses[0].filter.field
        assert name is not None
        values = self._column(name).values
        mask = _near(clauses, values) if name in PLACE_FIELDS else _within(clauses, values)
        mask ^= np.asarray([clause.negated for clause in clauses])[:, None]
        lacks = np.isnan(values if values.ndim == 1 else values[0])
        if lacks.any():
            mask[:, lacks] = np.asarray([clause.filter.missing is Missing.INCLUDE for clause in clauses])[:, None]
        return pack(mask, self.words)

    def _column(self, name: str) -> _Column:
        column = self._columns.get(name)
        if column is None:
            column = self._columns[name] = self._read(name)
        return column

    def _read(self, name: str) -> _Column:
        column = _Column()
        if name in PLACE_FIELDS:
            nowhere = (np.nan, np.nan)
            places = [found.get(name, nowhere) for found in self._found]
            column.values = np.ascontiguousarray(np.asarray(places, np.float64).reshape(-1, 2).T)
        elif name in SYMBOL_FIELDS or name == HASHED or name in KEYWORD_FIELDS or name in MANY_FIELDS:
            for row, found in enumerate(self._found):
                words = _words(name, found)
                for word in words:
                    column.words[word] = column.words.get(word, 0) | 1 << row
                if not words:
                    column.lacks |= 1 << row
        else:
            column.values = np.asarray([found.get(name, np.nan) for found in self._found], np.float64)
        return column


def pack(mask: Mask, words: int) -> Bits:
    """uint64 [n, words] of bool [n, m]."""
    out = np.zeros((len(mask), 8 * words), np.uint8)
    some = np.packbits(mask, axis=1, bitorder="little")
    out[:, : some.shape[1]] = some
    return out.view("<u8").astype(np.uint64, copy=False)


def unpack(bits: Bits, count: int) -> Mask:
    """bool [n, count] of uint64 [n, words]."""
    raw = np.ascontiguousarray(bits).astype("<u8", copy=False).view(np.uint8)
    return np.unpackbits(raw, axis=1, count=count, bitorder="little").view(np.bool_)


def _words(name: str, found: dict[str, Any]) -> Sequence[str]:
    """What a posting has in a field: none when it lacks the attribute."""
    if name == HASHED:
        return (keyword(found[HASHED]),)
    value = found.get(name)
    if value is None:
        return ()
    if name in SYMBOL_FIELDS:
        return () if value == "UNKNOWN" else (value,)
    several = value if isinstance(value, tuple) else (value,)
    return [word for one in several if (word := keyword(one))]


def _within(clauses: Sequence[filters.Clause], values: Doubles) -> Mask:
    """bool [n, m]: RANGE, NaN never."""
    low = np.asarray([-np.inf if one.filter.minimum is None else one.filter.minimum for one in clauses])
    high = np.asarray([np.inf if one.filter.maximum is None else one.filter.maximum for one in clauses])
    out = values >= low[:, None]
    return np.logical_and(out, values <= high[:, None], out=out)


def _near(clauses: Sequence[filters.Clause], places: Doubles) -> Mask:
    """bool [n, m]: NEAR, NaN never. Who is in the box of degrees first: degrees are cheap, sines are not."""
    trees = [clause.filter for clause in clauses]
    circles = np.asarray([(one.lat, one.lon, one.radius_km) for one in trees], np.float64)
    boxes = np.asarray([reach(lat, km) for lat, _, km in circles.tolist()])
    out: Mask = np.abs(places[0] - circles[:, :1]) <= boxes[:, :1]
    circle, place = np.nonzero(out)
    away = np.abs(places[1, place] - circles[circle, 1])
    close = np.minimum(away, 360 - away) <= boxes[circle, 1]
    circle, place = circle[close], place[close]
    out[:] = False
    lat, lon, km = circles[circle].T
    out[circle, place] = distance_km(lat, lon, places[0, place], places[1, place]) <= km
    return out
