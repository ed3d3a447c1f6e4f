"""The rows of a store: pages, what places rows in them, what their codes mean, and what all of it takes.

    put       admits an update's row, finds it a slot, and writes attributes and vector where no reader can see them
    flush     the vectors that were put go into the planes, many at once
    reveal    the blocks' zones take the rows in, and they are counted: the store publishes them next
    hide      rows that the store is about to end are no longer counted
    empty     nobody can see these rows any more: codes are given back, slots are free

Only the store's one writer calls these. Readers use `table`, `words`, `tenants`, `overflow` and `ids`, each of which
says the same of the rows that they see, whatever the writer does meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from penstock.retrieval.store import columns, content
from penstock.retrieval.store.errors import OutOfRoom
from penstock.retrieval.store.overflow import Overflow
from penstock.retrieval.store.page import BLOCK, NEVER, Longs
from penstock.retrieval.store.pages import Pages, Table
from penstock.retrieval.store.placement import WEEK_MS, Placement
from penstock.retrieval.store.planes import DENSE, REFUSED, STAGE, Planes
from penstock.retrieval.store.vocabulary import Dictionaries, Vocabulary
from penstock.schemas.events import IndexUpdate, Vector

COUNTRY = "location.country"
_KINDS = np.arange(8)  # what a row may hold: bits DENSE, SKETCH, REFUSED


class Rows:
    """`memory_bytes`: what the store may come to, whatever else it holds included; None: no bound."""

    def __init__(self, page_rows: int, memory_bytes: int | None, hash_id: Callable[[str], int]) -> None:
        self.words = Dictionaries(hash_id)
        self.tenants = Vocabulary()
        self.overflow = Overflow()
        self.ids: list[list[str]] = []  # of each page, by row
        self.checksum = 0  # of the rows that are counted (content.py)
        self._pages = Pages(page_rows)
        self._planes = Planes(self._pages)
        self._placement = Placement()
        self._memory_bytes = memory_bytes
        self._kinds = np.zeros(len(_KINDS), np.int64)  # rows that are counted, by what they hold
        self._wide: dict[int, set[int]] = {}  # of a page, the blocks that lost rows since they were swept

    @property
    def table(self) -> Table:
        return self._pages.table

    # --- numbers -------------------------------------------------------------------------------------------------

    @property
    def live(self) -> int:
        return int(self._kinds.sum())

    @property
    def without_vector(self) -> int:
        """Live rows without a dense plane."""
        return int(self._kinds[_KINDS & DENSE == 0].sum())

    @property
    def vectors_refused(self) -> int:
        return int(self._kinds[_KINDS & REFUSED > 0].sum())

    @property
    def spare(self) -> int:
        """Free rows in blocks that hold some."""
        return self._placement.spare

    @property
    def bytes_planes(self) -> int:
        return self._pages.bytes_planes

    @property
    def bytes_columns(self) -> int:
        """Dictionaries and overflow; the codes are in the pages."""
        return self.words.nbytes + self.tenants.nbytes + self.overflow.nbytes

    @property
    def bytes_rows(self) -> int:
        """The rest of the pages, their zone maps, ids and placement."""
        ids = 8 * self.table.capacity
        return self._pages.nbytes - self._pages.bytes_planes + ids + self._placement.nbytes

    @property
    def nbytes(self) -> int:
        return self.bytes_planes + self.bytes_columns + self.bytes_rows

    # --- filling -------------------------------------------------------------------------------------------------

    def put(self, update: IndexUpdate, others: int) -> tuple[int, str | None]:
        """The slot that now holds the row, unseen, and why its vector was left out, if it was.

        `others`: bytes that the store holds or will hold besides `nbytes`. Raises OutOfRoom before any memory is
        taken; whatever else is raised, nothing of the row is left.
        """
        if self._planes.waiting >= STAGE:
            self._planes.flush()
        vector, reason = update.vector, None
        if vector is not None:
            reason = self._planes.refusal(vector)
        stored = vector if reason is None else None
        found = columns.extract(update)
        slot = self._place((columns.keyword(found.get(COUNTRY, "")), recency(update) // WEEK_MS), others)
        try:
            if stored is not None:
                self._make_planes(stored, others)
            page, row = self.table.at(slot)
            page.version[row], page.revision[row] = update.version, update.revision
            page.expires[row] = NEVER if update.expires_at is None else update.expires_at
            page.recency[row] = recency(update)
            page.ties[row] = self.words.hash_id(update.posting_id)
            columns.fill(page, row, found, self.words, self.overflow)
        except BaseException:
            self._placement.give_back(slot)
            self._planes.settle()
            raise
        page.tenant[row] = self.tenants.acquire(update.tenant)
        self.words.acquire_id(update.posting_id)
        self.ids[slot // page.rows][row] = update.posting_id
        if stored is not None:
            self._planes.write(page, row, stored)
        elif vector is not None:
            page.held[row] = REFUSED
        return slot, reason

    def refuse_vector(self, slot: int) -> None:
        """The row's update had a vector that could not be stored."""
        page, row = self.table.at(slot)
        page.held[row] |= REFUSED

    def flush(self) -> None:
        """Before anybody may see what was put."""
        self._planes.flush()

    def forget(self, slots: Longs) -> None:
        """Rows that were put, and will not be revealed after all: all since the last flush among them."""
        self._planes.forget()
        self.empty(slots, revealed=False)

    def add_page(self) -> None:
        page = self._pages.add()
        self.ids.append([""] * page.rows)
        self._placement.add(page.rows // BLOCK)

    def _make_planes(self, vector: Vector, others: int) -> None:
        space = self._planes.wanted(vector)
        if space != self.table.space:
            self._admit("planes for the first vector", self._pages.wider(space), others)
            self._pages.adopt(space)

    def _place(self, partition: tuple[str, int], others: int) -> int:
        self._admit("a posting", 0, others)
        slot = self._placement.take(partition)
        if slot is None:
            try:
                self._admit(f"a page of {self.table.page_rows:,} rows", self._pages.another(), others)
            except OutOfRoom:
                slot = self._placement.take(partition, growing=False)
                if slot is None:
                    raise
            else:
                self.add_page()
                slot = self._placement.take(partition)
        assert slot is not None
        return slot

    def _admit(self, what: str, more: int, others: int) -> None:
        if self._memory_bytes is not None:
            held = self.nbytes + others
            if held + more > self._memory_bytes:
                raise OutOfRoom(what, more, held, self._memory_bytes)

    # --- living and dying ----------------------------------------------------------------------------------------

    def reveal(self, slots: Longs) -> None:
        for number, _, rows in self.table.split(slots):
            self.table.zones[number].widen(rows)
        self._count(slots, 1)

    def hide(self, slots: Longs) -> None:
        self._count(slots, -1)

    def _count(self, slots: Longs, sign: int) -> None:
        table = self.table
        for number, _, rows in table.split(slots):
            page = table.pages[number]
            self._kinds += sign * np.bincount(page.held[rows], minlength=len(_KINDS))
            self.checksum = (self.checksum + sign * content.total(content.row_hashes(page, rows))) % 2**64

    def expired(self, before_ms: int, epoch: int) -> list[str]:
        """The ids of the epoch's rows whose expiry is not after this moment."""
        out = []
        for page, ids in zip(self.table.pages, self.ids, strict=True):
            gone = (page.expires <= before_ms) & (page.birth <= epoch) & (page.death > epoch)
            out += [ids[row] for row in np.flatnonzero(gone).tolist()]
        return out

    def empty(self, slots: Longs, *, revealed: bool = True) -> None:
        table = self.table
        for number, _, rows in table.split(slots):
            page, ids = table.pages[number], self.ids[number]
            columns.clear(page, rows, self.words, self.overflow)
            self._planes.clear(page, rows)
            page.birth[rows] = NEVER
            page.death[rows] = 0
            for code in page.tenant[rows].tolist():
                self.tenants.release(code)
            for row in rows.tolist():
                self.words.release_id(ids[row])
                ids[row] = ""
                self._placement.give_back(page.first + row)
            if revealed:
                table.zones[number].free(rows)
                self._wide.setdefault(number, set()).update((rows // BLOCK).tolist())

    def sweep(self) -> None:
        """Blocks that lost rows get zones as narrow as what is left."""
        for number, blocks in self._wide.items():
            self.table.zones[number].sweep(np.asarray(sorted(blocks), np.int64))
        self._wide.clear()


def recency(update: IndexUpdate) -> int:
    """Epoch ms: what orders postings without a query."""
    assert update.attributes is not None
    return update.produced_at if update.attributes.posted_at is None else update.attributes.posted_at
