"""Values of a multi-valued attribute past those that a row itself holds: few rows have any.

Written by the store's one writer; a table is swapped as a whole when it grows. A place that changes hands moves
between rows which no reader of an older epoch can see, so a reader that catches it half-way names only rows that its
epoch rules out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from penstock.retrieval.store.page import ABSENT, MANY_FIELDS, Codes, Longs

FIRST = 64  # places of a table to begin with


class _Table:
    def __init__(self) -> None:
        # (owner int64 [m], the slot or -1: free; code int32 [m])
        self.arrays: tuple[Longs, Codes] = (np.full(FIRST, ABSENT, np.int64), np.full(FIRST, ABSENT, np.int32))
        self.places: dict[int, list[int]] = {}  # of each slot
        self.free = list(range(FIRST - 1, -1, -1))

    def grow(self) -> None:
        owner, code = self.arrays
        size = len(owner)
        self.arrays = (
            np.concatenate([owner, np.full(size, ABSENT, np.int64)]),
            np.concatenate([code, np.full(size, ABSENT, np.int32)]),
        )
        self.free.extend(range(2 * size - 1, size - 1, -1))


class Overflow:
    """One table a field."""

    def __init__(self) -> None:
        self._tables = {field: _Table() for field in MANY_FIELDS}

    @property
    def nbytes(self) -> int:
        # A dict entry with a list of a few places costs about 200 bytes in CPython 3.11.
        return sum(
            table.arrays[0].nbytes + table.arrays[1].nbytes + 200 * len(table.places) + 8 * len(table.free)
            for table in self._tables.values()
        )

    def write(self, field: str, slot: int, codes: Sequence[int]) -> None:
        """The codes of an unseen slot that its row has no place for."""
        if not codes:
            return
        table = self._tables[field]
        while len(table.free) < len(codes):
            table.grow()
        owner, code = table.arrays
        places = [table.free.pop() for _ in codes]
        code[places] = codes
        owner[places] = slot
        table.places[slot] = places

    def clear(self, field: str, slot: int) -> list[int]:
        """The codes that a retired slot had here; they are gone."""
        table = self._tables[field]
        places = table.places.pop(slot, None)
        if places is None:
            return []
        owner, code = table.arrays
        codes: list[int] = code[places].tolist()
        owner[places] = ABSENT
        table.free.extend(places)
        return codes

    def entries(self, field: str) -> tuple[Longs, Codes]:
        """A copy: owner and code of every place that is taken."""
        owner, code = self._tables[field].arrays
        taken = owner >= 0
        return owner[taken], code[taken]

    def restore(self, field: str, owners: Longs, codes: Codes) -> None:
        """Fills an empty table."""
        if not len(owners):
            return
        order = np.argsort(owners, kind="stable")
        found, starts = np.unique(owners[order], return_index=True)
        for owner, some in zip(found.tolist(), np.split(codes[order], starts[1:]), strict=True):
            self.write(field, owner, some.tolist())

    def rows_with(self, field: str, codes: npt.ArrayLike) -> Longs:
        """int64: the slots one of whose codes here is in `codes`; a slot may come twice."""
        owner, code = self._tables[field].arrays
        found = owner[np.isin(code.copy(), codes)]  # a copy: the writer may fill free places meanwhile
        return found[found >= 0]
