"""One page of the store: the arrays of docs/retrieval.md, for a fixed number of rows.

The store's one writer fills rows that no reader can see; births and deaths change under the store's lock. A page is
never resized, so whoever holds one reads it without copying. Memory that no row has touched is not resident.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from penstock.schemas.filters import FIELDS, FieldType

PAGE_ROWS = 65_536
BLOCK = 128  # rows of a block; divides a page's rows
NEVER = np.iinfo(np.int64).max
ABSENT = -1  # the code of an attribute that a row lacks
INLINE = 8  # values of a multi-valued attribute that a row itself holds; more are in the field's overflow

Longs = npt.NDArray[np.int64]
Codes = npt.NDArray[np.int32]
Doubles = npt.NDArray[np.float64]

_PLAIN = (
    *("birth", "death", "expires", "recency", "version", "revision", "searchable"),
    *("ties", "tenant", "encoder", "held"),
)
HASHED = "posting_id"  # the field that `ties` stands for


def of(*kinds: FieldType) -> tuple[str, ...]:
    """The filter fields of these kinds that have an array, in their order."""
    return tuple(field for field, spec in FIELDS.items() if spec.type in kinds and field != HASHED)


KEYWORD_FIELDS = of(FieldType.KEYWORD)
MANY_FIELDS = of(FieldType.KEYWORDS)
SYMBOL_FIELDS = of(FieldType.SYMBOL)
NUMBER_FIELDS = of(FieldType.NUMBER, FieldType.TIME)
PLACE_FIELDS = of(FieldType.PLACE)


@dataclass(slots=True)
class Page:
    """`rows` places; `first` is the slot of the first. Shapes and meanings: docs/retrieval.md, "Layout"."""

    first: int
    rows: int
    birth: Longs
    death: Longs
    expires: Longs
    recency: Longs
    version: Longs
    revision: Longs
    ties: npt.NDArray[np.uint64]
    searchable: Longs
    tenant: Codes
    encoder: Codes
    held: npt.NDArray[np.uint8]
    codes: dict[str, Codes]
    symbols: dict[str, npt.NDArray[np.int8]]
    numbers: dict[str, Doubles]
    places: dict[str, Doubles]
    many: dict[str, Codes]
    counts: dict[str, Codes]
    dense: torch.Tensor  # bfloat16 [rows, D]; D = 0 until a space is known
    sketch: torch.Tensor  # int8 [rows, L]
    norms: Doubles  # [rows, 2]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays().values()) + self.dense.nbytes + self.sketch.nbytes

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Every array but the planes, by a name that says which."""
        out: dict[str, npt.NDArray[Any]] = {name: getattr(self, name) for name in _PLAIN}
        for name in ("codes", "symbols", "numbers", "places", "many", "counts"):
            out |= {f"{name}.{field}": array for field, array in getattr(self, name).items()}
        return out | {"norms": self.norms}

    def codes_of(self, field: str) -> Codes:
        """The codes of a keyword field, or those in the rows of a multi-valued one."""
        return self.codes[field] if field in self.codes else self.many[field]

    def restore(self, rows: slice | Longs, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Takes rows from arrays as `arrays` and the planes (bfloat16 as int16) have them, places with rows first.

        A plane of another width is left out: no row with a vector has one."""
        own = self.arrays() | {"dense": self.dense.view(torch.int16).numpy(), "sketch": self.sketch.numpy()}
        for name, values in arrays.items():
            target = own[name] if own[name].shape[0] == self.rows else own[name].T
            if target.shape[1:] == values.shape[1:]:
                target[rows] = values

    def wipe(self, rows: Longs) -> None:
        """What must be zero of rows that nobody has (int64)."""
        places = torch.from_numpy(rows)
        self.dense[places] = 0
        self.sketch[places] = 0
        self.norms[rows] = 0
        self.held[rows] = 0


def make_page(first: int, rows: int = PAGE_ROWS, dense: int = 0, sketch: int = 0) -> Page:
    """An empty page. Of what is not zero when empty, pages are touched at once: 8 to 32 bytes a row each."""
    if rows % BLOCK:
        raise ValueError(f"{rows} rows in a page: expected a multiple of {BLOCK}")
    return Page(
        first=first,
        rows=rows,
        birth=np.full(rows, NEVER),
        death=np.zeros(rows, np.int64),
        expires=np.zeros(rows, np.int64),
        recency=np.zeros(rows, np.int64),
        version=np.zeros(rows, np.int64),
        revision=np.zeros(rows, np.int64),
        ties=np.zeros(rows, np.uint64),
        searchable=np.zeros(rows, np.int64),
        tenant=np.zeros(rows, np.int32),
        encoder=np.zeros(rows, np.int32),
        held=np.zeros(rows, np.uint8),
        codes={field: np.zeros(rows, np.int32) for field in KEYWORD_FIELDS},
        symbols={field: np.zeros(rows, np.int8) for field in SYMBOL_FIELDS},
        numbers={field: np.zeros(rows) for field in NUMBER_FIELDS},
        places={field: np.zeros((2, rows)) for field in PLACE_FIELDS},
        many={field: np.zeros((rows, INLINE), np.int32) for field in MANY_FIELDS},
        counts={field: np.zeros(rows, np.int32) for field in MANY_FIELDS},
        dense=bfloat16_plane(rows, dense),
        sketch=torch.from_numpy(np.zeros((rows, sketch), np.int8)),
        norms=np.zeros((rows, 2)),
    )


def split(slots: Longs, page_rows: int) -> Iterator[tuple[int, Longs, Longs]]:
    """(number of a page, which of `slots` lie in it, their rows there), int64 each, for every page they touch."""
    numbers = slots // page_rows
    for number in np.unique(numbers).tolist():
        at = np.flatnonzero(numbers == number)
        yield number, at, slots[at] - number * page_rows


def bfloat16_plane(rows: int, width: int) -> torch.Tensor:
    """Zeros, bfloat16 [rows, width]. By numpy, which leaves zero pages to the kernel: torch.zeros touches them all."""
    return torch.from_numpy(np.zeros((rows, width), np.int16)).view(torch.bfloat16)
