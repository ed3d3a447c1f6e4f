"""The zone maps of one page: what its blocks hold, so that a query can pass most of them by.

Invariant: a zone is never narrower than the taken rows of its block. It widens when a row is filled, before anybody
sees it; it stays wide when a row is freed, and is exact again after a sweep. Written by the store's one writer; readers
need no lock, because every value that an array goes through covers the rows they see. docs/retrieval.md, "Zone map".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from penstock.retrieval.store.page import (
    ABSENT,
    BLOCK,
    INLINE,
    KEYWORD_FIELDS,
    MANY_FIELDS,
    NUMBER_FIELDS,
    PLACE_FIELDS,
    SYMBOL_FIELDS,
    Codes,
    Doubles,
    Longs,
    Page,
)

LACKING = np.uint64(1 << 63)  # the bit of a signature that says: some row has no value
EVERY_CODE = np.uint64((1 << 63) - 1)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio: multiplicative hashing (Knuth, volume 3, 6.4)

Bits = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]


class Maps(Protocol):
    """What a program reads of blocks: arrays over them as `Zones` has them, of one page, of several or of some."""

    @property
    def rows(self) -> npt.NDArray[np.int16]: ...
    @property
    def low(self) -> Mapping[str, Doubles]: ...
    @property
    def high(self) -> Mapping[str, Doubles]: ...
    @property
    def lacks(self) -> Mapping[str, Mask]: ...
    @property
    def bits(self) -> Mapping[str, npt.NDArray[np.uint32]]: ...
    @property
    def signature(self) -> Mapping[str, Bits]: ...


def signature_bits(codes: Codes) -> Bits:
    """The bit of each code, `mix(code) % 63`, or LACKING of an absent one; the shape of `codes`."""
    mixed = (codes.astype(np.uint64) * _GOLDEN) >> np.uint64(32)
    bits: Bits = np.where(codes == ABSENT, LACKING, np.uint64(1) << (mixed % np.uint64(63)))
    return bits


def signature(codes: Codes) -> np.uint64:
    """The bits of several codes together; 0 of none."""
    return np.uint64(np.bitwise_or.reduce(signature_bits(codes))) if len(codes) else np.uint64(0)


@dataclass(frozen=True, slots=True)
class _Summary:
    """One value a block, and how it comes of the rows."""

    array: npt.NDArray[Any]  # [B]
    empty: Any  # of a block without rows
    merge: np.ufunc
    values: Callable[[Longs], npt.NDArray[Any]]  # of rows of the page


class Zones:
    """One value a block of everything in the contract's table, B = page.rows / BLOCK. The writer alone calls methods.

    `low`, `high`: float64 [B] of numbers and times, [2, B] of places (degrees north, degrees east).
    `lacks`: bool [B] of all of those: some row has no value.
    """

    def __init__(self, page: Page) -> None:
        blocks = page.rows // BLOCK
        self.rows = np.zeros(blocks, np.int16)
        self.expires_max = np.full(blocks, np.iinfo(np.int64).min)
        self.tenants = np.zeros(blocks, np.uint64)
        self.low: dict[str, Doubles] = {field: np.full(blocks, np.inf) for field in NUMBER_FIELDS}
        self.low |= {field: np.full((2, blocks), np.inf) for field in PLACE_FIELDS}
        self.high: dict[str, Doubles] = {field: -low for field, low in self.low.items()}
        self.lacks: dict[str, Mask] = {field: np.zeros(blocks, np.bool_) for field in self.low}
        self.bits = {field: np.zeros(blocks, np.uint32) for field in SYMBOL_FIELDS}
        self.signature = {field: np.zeros(blocks, np.uint64) for field in (*KEYWORD_FIELDS, *MANY_FIELDS)}
        self.taken = np.zeros(page.rows, np.bool_)
        self._summaries = tuple(self._all(page))

    @property
    def nbytes(self) -> int:
        return self.rows.nbytes + self.taken.nbytes + sum(summary.array.nbytes for summary in self._summaries)

    def widen(self, rows: Longs) -> None:
        """Takes in rows of the page (int64, any order) that were just filled and that nobody sees yet."""
        if not len(rows):
            return
        rows = np.sort(rows)
        blocks, starts = np.unique(rows // BLOCK, return_index=True)
        vacant = blocks[self.rows[blocks] == 0]  # an empty block starts anew
        for summary in self._summaries:
            summary.array[vacant] = summary.empty
            found = summary.merge.reduceat(summary.values(rows), starts)
            summary.array[blocks] = summary.merge(summary.array[blocks], found)
        self.taken[rows] = True
        self._count(blocks)

    def free(self, rows: Longs) -> None:
        """Rows that are free again. Their blocks stay as wide as they are until they are swept or empty."""
        self.taken[rows] = False
        self._count(np.unique(rows // BLOCK))

    def sweep(self, blocks: Longs) -> None:
        """Makes these blocks (int64) exact: as wide as their taken rows."""
        blocks = np.unique(blocks)
        held = np.flatnonzero(self.taken.reshape(-1, BLOCK)[blocks])
        rows = blocks[held // BLOCK] * BLOCK + held % BLOCK
        filled, starts = np.unique(rows // BLOCK, return_index=True)
        vacant = np.setdiff1d(blocks, filled, assume_unique=True)
        for summary in self._summaries:
            summary.array[vacant] = summary.empty
            if len(filled):
                summary.array[filled] = summary.merge.reduceat(summary.values(rows), starts)

    def _count(self, blocks: Longs) -> None:
        self.rows[blocks] = self.taken.reshape(-1, BLOCK)[blocks].sum(1)

    def _all(self, page: Page) -> Iterator[_Summary]:
        expires = page.expires  # not `page`: its planes may be replaced
        yield _Summary(self.expires_max, np.iinfo(np.int64).min, np.maximum, lambda rows: expires[rows])
        yield _Summary(self.tenants, 0, np.bitwise_or, _codes(page.tenant))
        for field in NUMBER_FIELDS:
            yield from _range(self.low[field], self.high[field], page.numbers[field])
            yield _gaps(self.lacks[field], page.numbers[field])
        for field in PLACE_FIELDS:
            for axis in (0, 1):
                yield from _range(self.low[field][axis], self.high[field][axis], page.places[field][axis])
            yield _gaps(self.lacks[field], page.places[field][0])
        for field in SYMBOL_FIELDS:
            yield _Summary(self.bits[field], 0, np.bitwise_or, _symbols(page.symbols[field]))
        for field in KEYWORD_FIELDS:
            yield _Summary(self.signature[field], 0, np.bitwise_or, _codes(page.codes[field]))
        for field in MANY_FIELDS:
            yield _Summary(self.signature[field], 0, np.bitwise_or, _many(page.many[field], page.counts[field]))


class _Read(dict[str, npt.NDArray[Any]]):
    """Arrays by field, each put together when first asked for."""

    def __init__(self, read: Callable[[str], npt.NDArray[Any]]) -> None:
        super().__init__()
        self._read = read

    def __missing__(self, field: str) -> npt.NDArray[Any]:
        array = self[field] = self._read(field)
        return array


class Joined:
    """The zone maps of several pages as one, for one query: a few long steps instead of many short ones."""

    def __init__(self, zones: Sequence[Zones]) -> None:
        def of(name: str) -> _Read:
            return _Read(lambda field: np.concatenate([getattr(zone, name)[field] for zone in zones], axis=-1))

        self.rows = np.concatenate([zone.rows for zone in zones])
        self.expires_max = np.concatenate([zone.expires_max for zone in zones])
        self.tenants = np.concatenate([zone.tenants for zone in zones])
        self.low, self.high, self.lacks = of("low"), of("high"), of("lacks")
        self.bits, self.signature = of("bits"), of("signature")


class Some:
    """Some blocks (int64) of zone maps."""

    def __init__(self, maps: Maps, blocks: Longs) -> None:
        def of(name: str) -> _Read:
            return _Read(lambda field: getattr(maps, name)[field][..., blocks])

        self.rows = maps.rows[blocks]
        self.low, self.high, self.lacks = of("low"), of("high"), of("lacks")
        self.bits, self.signature = of("bits"), of("signature")


def _range(low: Doubles, high: Doubles, values: Doubles) -> Iterator[_Summary]:
    yield _Summary(low, np.inf, np.fmin, lambda rows: np.fmin(values[rows], np.inf))
    yield _Summary(high, -np.inf, np.fmax, lambda rows: np.fmax(values[rows], -np.inf))


def _gaps(lacks: Mask, values: Doubles) -> _Summary:
    return _Summary(lacks, False, np.logical_or, lambda rows: np.isnan(values[rows]))


def _symbols(symbols: npt.NDArray[np.int8]) -> Callable[[Longs], npt.NDArray[Any]]:
    return lambda rows: np.uint32(1) << symbols[rows].astype(np.uint32)


def _codes(codes: Codes) -> Callable[[Longs], Bits]:
    return lambda rows: signature_bits(codes[rows])


def _many(many: Codes, counts: Codes) -> Callable[[Longs], Bits]:
    def values(rows: Longs) -> Bits:
        bits = np.bitwise_or.reduce(signature_bits(many[rows]) & EVERY_CODE, axis=1)
        bits[counts[rows] == 0] = LACKING
        bits[counts[rows] > INLINE] = EVERY_CODE  # the codes past the eighth are not in the page
        return np.asarray(bits)

    return values
