"""What the conditions of standing queries say of a batch of postings, a bit a posting.

A condition over few postings is quickest asked by value: which of the postings have this word is one look-up, however
many conditions name it. Ranges and circles of many standing queries are compared at once. What a clause says is what
docs/retrieval.md, "Clause program", says of it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from penstock.retrieval.search import filters
from penstock.retrieval.search.geometry import distance_km, reach
from penstock.retrieval.search.program import as_term
from penstock.retrieval.store.columns import extract
from penstock.retrieval.store.page import HASHED, KEYWORD_FIELDS, MANY_FIELDS, PLACE_FIELDS, SYMBOL_FIELDS
from penstock.retrieval.store.vocabulary import keyword
from penstock.schemas.events import FilterKind, IndexUpdate, Missing

_NAMED = (HASHED, *SYMBOL_FIELDS, *KEYWORD_FIELDS, *MANY_FIELDS)  # fields that IN may name
CIRCLES = 1 << 14  # whose boxes of degrees are remembered
PAIRS = 1 << 18  # of clauses and postings compared at once: their masks stay in cache

Bits = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]
Doubles = npt.NDArray[np.float64]
Name = tuple[str, str]  # field, word


class Asked(Protocol):
    """A condition of standing queries (`entries.Condition`)."""

    @property
    def node(self) -> filters.Node: ...
    @property
    def named(self) -> tuple[Name, ...]: ...
    @property
    def plain(self) -> bool: ...
    @property
    def leaves(self) -> tuple[Asked, ...]: ...


class Conditions(dict[filters.Clause, int]):
    """What each clause says of `updates` (UPSERTs), as an integer with a bit a posting; evaluated when first asked for.

    Used by one thread.
    """

    def __init__(self, updates: Sequence[IndexUpdate]) -> None:
        super().__init__()
        self.count = len(updates)
        self.words = max(1, -(-self.count // 64))  # uint64 that hold a bit a posting
        self.every = (1 << self.count) - 1
        self._found = [extract(update) for update in updates]
        self._having: dict[Name, int] = {}  # bits of the postings that have a word
        self._lacks: dict[str, int] = dict.fromkeys(_NAMED, 0)  # bits of those without the attribute
        self._values: dict[str, Doubles] = {}  # [m], or [2, m] of places; NaN missing
        for row, (update, found) in enumerate(zip(updates, self._found, strict=True)):
            self._read(1 << row, update.posting_id, found)

    def __missing__(self, clause: filters.Clause) -> int:
        if clause.filter.kind is FilterKind.IN:
            bits = self._named(clause, names(clause))
        else:
            bits = int.from_bytes(self._compared([clause])[0].tobytes(), "little")
        self[clause] = bits
        return bits

    def bits(self, node: filters.Node) -> int:
        """What a tree says."""
        return filters.fold(node, self.__getitem__)

    def rows(self, asked: Sequence[Asked]) -> Bits:
        """uint64 [n, words]: what each says; the bits past the last posting are 0."""
        leaves = {leaf.node: leaf for one in asked for leaf in one.leaves}
        if leaves:
            found = self.rows(list(leaves.values())).astype("<u8", copy=False)
            for clause, row in zip(leaves, found, strict=True):
                assert isinstance(clause, filters.Clause)
                self[clause] = int.from_bytes(row.tobytes(), "little")
        get = self._having.get
        said = [get(one.named[0], 0) if one.plain else 0 for one in asked]
        compared: dict[str, tuple[list[int], list[filters.Clause]]] = {}
        for place, one in enumerate(asked):
            if one.plain:
                for name in one.named[1:]:
                    said[place] |= get(name, 0)
            elif isinstance(one.node, filters.Group):
                said[place] = self.bits(one.node)
            elif one.node.filter.kind is FilterKind.IN:
                said[place] = self._named(one.node, one.named)
            else:
                places, clauses = compared.setdefault(one.node.filter.field or "", ([], []))
                places.append(place)
                clauses.append(one.node)
        out = self.packed(said)
        step = max(1, PAIRS // max(1, self.count))
        for places, clauses in compared.values():
            for start in range(0, len(clauses), step):
                out[places[start : start + step]] = self._compared(clauses[start : start + step])
        return out

    def packed(self, bits: Iterable[int]) -> Bits:
        """uint64 [n, words] of integers with a bit a posting."""
        size = 8 * self.words
        raw = bytearray().join([one.to_bytes(size, "little") for one in bits])
        return np.frombuffer(raw, "<u8").astype(np.uint64, copy=False).reshape(-1, self.words)

    def _named(self, clause: filters.Clause, named: Sequence[Name]) -> int:
        """IN: those that have one of its values."""
        hit, tree = 0, clause.filter
        for name in named:
            hit |= self._having.get(name, 0)
        if clause.negated:
            hit ^= self.every
        lacks = self._lacks[tree.field or ""]
        return hit | lacks if tree.missing is Missing.INCLUDE else hit & ~lacks

    def _compared(self, clauses: Sequence[filters.Clause]) -> Bits:
        """uint64 [n, words] of RANGE or NEAR clauses of one field."""
        name = clauses[0].filter.field
        assert name is not None
        values = self._column(name)
        mask = _near(clauses, values) if name in PLACE_FIELDS else _within(clauses, values)
        mask ^= np.asarray([clause.negated for clause in clauses])[:, None]
        lacks = np.isnan(values if values.ndim == 1 else values[0])
        if lacks.any():
            mask[:, lacks] = np.asarray([clause.filter.missing is Missing.INCLUDE for clause in clauses])[:, None]
        return pack(mask, self.words)

    def _column(self, name: str) -> Doubles:
        """The values of a field that is compared."""
        values = self._values.get(name)
        if values is None:
            nothing: Any = (np.nan, np.nan) if name in PLACE_FIELDS else np.nan
            values = np.asarray([found.get(name, nothing) for found in self._found], np.float64)
            if name in PLACE_FIELDS:
                values = np.ascontiguousarray(values.reshape(self.count, 2).T)
            self._values[name] = values
        return values

    def _read(self, bit: int, posting_id: str, found: dict[str, Any]) -> None:
        """Takes the words of one posting."""
        having = self._having
        for field in _NAMED:
            value = posting_id if field == HASHED else found.get(field, "")
            words: Sequence[str]
            if field in SYMBOL_FIELDS:
                words = () if value == "UNKNOWN" else (value,)
            elif field in MANY_FIELDS:
                words = [word for one in value if (word := keyword(one))]
            else:
                words = (keyword(value),) if field == HASHED or value.strip() else ()
            for word in words:
                name = (field, word)
                having[name] = having.get(name, 0) | bit
            if not words:
                self._lacks[field] |= bit


def names(clause: filters.Clause) -> tuple[Name, ...]:
    """(field, word) of each value of an IN clause; of another clause none."""
    tree = clause.filter
    if tree.kind is not FilterKind.IN or tree.field is None:
        return ()
    if tree.field in SYMBOL_FIELDS:
        return tuple((tree.field, value) for value in tree.values)
    words = [keyword(value) for value in tree.values]
    if tree.field == "title.terms":
        words += [term for value in tree.values if (term := as_term(value)) is not None]
    return tuple((tree.field, word) for word in dict.fromkeys(words))


def said(node: filters.Node) -> str | None:
    """What a posting that passes the tree satisfies, in words; None where the tree has alternatives."""
    together = node.parts if isinstance(node, filters.Group) and node.every else (node,)
    if any(isinstance(part, filters.Group) and not part.every and len(part.parts) > 1 for part in together):
        return None
    return "; ".join(dict.fromkeys(in_words(part) for part in together))


def in_words(node: filters.Node) -> str:
    """A tree in the text form, one line."""
    if isinstance(node, filters.Clause):
        return filters.said(node)
    inner = (f"({in_words(part)})" if isinstance(part, filters.Group) else in_words(part) for part in node.parts)
    return (" AND " if node.every else " OR ").join(inner)


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


_box = functools.lru_cache(CIRCLES)(reach)


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
    boxes = np.asarray([_box(lat, km) for lat, _, km in circles.tolist()])
    out: Mask = np.abs(places[0] - circles[:, :1]) <= boxes[:, :1]
    circle, place = np.nonzero(out)
    away = np.abs(places[1, place] - circles[circle, 1])
    close = np.minimum(away, 360 - away) <= boxes[circle, 1]
    circle, place = circle[close], place[close]
    out[:] = False
    lat, lon, km = circles[circle].T
    out[circle, place] = distance_km(lat, lon, places[0, place], places[1, place]) <= km
    return out
