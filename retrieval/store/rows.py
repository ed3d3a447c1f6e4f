"""The rows of a store: pages, what places rows in them, what their codes mean, and what all of it takes.

    put       admits an update's row, finds it a slot, and takes its attributes and vector
    flush     what was put goes into the pages, many rows at once, where no reader can see them
    reveal    the blocks' zones take the rows in, and they are counted: the store publishes them next
    count     in the step that publishes them: these rows are counted from now on, those no longer
    empty     nobody can see these rows any more: codes are given back, slots are free

Where a device mirrors the pages (retrieval/device/mirror.py), it is told of the same steps: of rows that are revealed
by `send`, before they are published.

Only the store's one writer calls these. Readers use `table`, `words`, `tenants`, `overflow` and `ids`, each of which
says the same of the rows that they see, whatever the writer does meanwhile.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from penstock.retrieval.store import columns, content
from penstock.retrieval.store.errors import OutOfRoom
from penstock.retrieval.store.overflow import Overflow
from penstock.retrieval.store.page import BLOCK, KEYWORD_FIELDS, NEVER, Codes, Longs, split
from penstock.retrieval.store.pages import Pages, Space, Table
from penstock.retrieval.store.placement import WEEK_MS, Placement
from penstock.retrieval.store.planes import DENSE, REFUSED, SKETCH, STAGE, Planes
from penstock.retrieval.store.vocabulary import Dictionaries, Vocabulary
from penstock.schemas.events import IndexUpdate, Vector

if TYPE_CHECKING:
    from penstock.retrieval.device.mirror import Mirror

COUNTRY = KEYWORD_FIELDS.index("location.country")
_KINDS = np.arange(8)  # what a row may hold: bits DENSE, SKETCH, REFUSED
_TEXT = sys.getsizeof("")

T = TypeVar("T", str, bytes)


@dataclass(frozen=True, slots=True)
class Counted:
    """What some rows are counted as."""

    kinds: Longs  # how many hold what
    checksum: int


class Rows:
    """`memory_bytes`: what the store may come to, whatever else it holds included; None: no bound. `mirror`: the pages'
    copy on a device, where there is one."""

    def __init__(
        self, page_rows: int, memory_bytes: int | None, hash_id: Callable[[str], int], mirror: Mirror | None = None
    ) -> None:
        self.words = Dictionaries(hash_id)
        self.tenants = Vocabulary()
        self.encoders = Vocabulary()
        self.overflow = Overflow()
        self.ids: list[list[str]] = []  # of each page, by row
        self.bodies: list[list[bytes]] = []  # likewise: the updates without their vectors (records.py)
        self.stamps: list[int] = []  # of each page: the epoch in which a row was last born there
        self.checksum = 0  # of the rows that are counted (content.py)
        self._mirror = mirror
        self._pages = Pages(page_rows, mirror)
        self._planes = Planes(self._pages)
        self._stage = columns.Stage(self.words, self.overflow)
        self._fixed: list[tuple[int, ...]] = []  # of the rows that were put: slot and what `_write` unpacks
        self._placement = Placement()
        self._memory_bytes = memory_bytes
        self._kinds = np.zeros(len(_KINDS), np.int64)  # rows that are counted, by what they hold
        self._wide: dict[int, set[int]] = {}  # of a page, the blocks that lost rows since they were swept
        self._text_bytes = 0  # ids and bodies

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
        return self.words.nbytes + self.tenants.nbytes + self.encoders.nbytes + self.overflow.nbytes

    @property
    def bytes_rows(self) -> int:
        """The rest of the pages, their zone maps and placement."""
        return self._pages.nbytes - self._pages.bytes_planes + self._placement.nbytes

    @property
    def bytes_records(self) -> int:
        """Ids and bodies."""
        return 2 * 8 * self.table.capacity + self._text_bytes

    @property
    def nbytes(self) -> int:
        return self.bytes_planes + self.bytes_columns + self.bytes_rows + self.bytes_records

    # --- filling -------------------------------------------------------------------------------------------------

    def put(self, update: IndexUpdate, body: bytes, others: int) -> tuple[int, str | None]:
        """The slot that will hold the row, unseen, and why its vector was left out, if it was.

        `others`: bytes that the store holds or will hold besides `nbytes`. Raises OutOfRoom before any memory is
        taken; whatever else is raised, nothing of the row is left. `flush` before anybody may see it.
        """
        if self._planes.waiting >= STAGE:
            self.flush()
        vector, reason = update.vector, None
        if vector is not None:
            reason = self._planes.refusal(vector)
        stored = vector if reason is None else None
        attributes = columns.compared(columns.extract(update))
        when = recency(update)
        posting_id = update.posting_id
        texts = sys.getsizeof(posting_id) + sys.getsizeof(body)
        if self._memory_bytes is not None:
            texts += self._stage.needs(attributes)
        slot = self._place((attributes.keywords[COUNTRY], when // WEEK_MS), texts, others)
        if stored is not None:
            try:
                self._make_planes(stored, others + texts)
            except OutOfRoom:
                self._placement.give_back(slot)
                self._planes.settle()
                raise
        number, row = divmod(slot, self.table.page_rows)
        held, encoder = REFUSED if reason is not None else 0, -1
        if stored is not None:
            held = self._planes.take(number, row, stored)
            encoder = self.encoders.acquire(stored.encoder_id)
        self._stage.take(slot, attributes)
        self._fixed.append(
            (
                slot,
                update.version,
                update.revision,
                NEVER if update.expires_at is None else update.expires_at,
                when,
                self.tenants.acquire(update.tenant),
                encoder,
                held,
                self.words.hash_id(posting_id),
            )
        )
        self.words.acquire_id(posting_id)
        self.ids[number][row] = posting_id
        self.bodies[number][row] = body
        self._text_bytes += sys.getsizeof(posting_id) + sys.getsizeof(body)
        return slot, reason

    def flush(self) -> None:
        """Writes what was put. Before anybody may see it."""
        self._write()
        self._planes.flush()

    def forget(self, slots: Longs) -> None:
        """Rows that were put, and will not be revealed after all: all since the last flush among them."""
        self._write()
        self._planes.forget()
        self.empty(slots, revealed=False)

    def _write(self) -> None:
        if not self._fixed:
            return
        pages = self.table.pages
        self._stage.write(pages)
        *signed, ties = zip(*self._fixed, strict=True)
        self._fixed = []
        slots, version, revision, expires, when, tenant, encoder, held = (np.asarray(each, np.int64) for each in signed)
        hashes = np.asarray(ties, np.uint64)
        for number, at, rows in split(slots, self.table.page_rows):
            page = pages[number]
            page.version[rows], page.revision[rows] = version[at], revision[at]
            page.expires[rows], page.recency[rows] = expires[at], when[at]
            page.tenant[rows], page.encoder[rows] = tenant[at], encoder[at]
            page.held[rows], page.ties[rows] = held[at], hashes[at]

    def add_page(self) -> None:
        page = self._pages.add()
        self.ids.append([""] * page.rows)
        self.bodies.append([b""] * page.rows)
        self.stamps.append(0)
        self._placement.add(page.rows // BLOCK)

    def _make_planes(self, vector: Vector, others: int) -> None:
        space = self._planes.wanted(vector)
        if space != self.table.space:
            self._admit("planes for the first vector", self._pages.wider(space), others)
            self._pages.admit_wider(space)
            self._pages.adopt(space)

    def _place(self, partition: tuple[str, int], texts: int, others: int) -> int:
        self._admit("a posting", texts, others)
        slot = self._placement.take(partition)
        if slot is None:
            try:
                self._admit_page(others + texts)
            except OutOfRoom:
                slot = self._placement.take(partition, growing=False)
                if slot is None:
                    raise
            else:
                self.add_page()
                slot = self._placement.take(partition)
        assert slot is not None
        return slot

    def _admit_page(self, others: int) -> None:
        rows = self.table.page_rows
        self._admit(f"a page of {rows:,} rows", self._pages.another() + 2 * 8 * rows, others)
        self._pages.admit()

    def _admit(self, what: str, more: int, others: int) -> None:
        if self._memory_bytes is not None:
            held = self.nbytes + others
            if held + more > self._memory_bytes:
                raise OutOfRoom(what, more, held, self._memory_bytes)

    # --- living and dying ----------------------------------------------------------------------------------------

    def reveal(self, slots: Longs, epoch: int, searchable_at: int) -> Counted:
        """`epoch`: in which they are born next. What they will be counted as."""
        table = self.table
        for number, _, rows in table.split(slots):
            table.pages[number].searchable[rows] = searchable_at
            table.zones[number].widen(rows)
            self.stamps[number] = epoch
        return self.counted(slots)

    def send(self, born: Longs, dying: Longs, epoch: int) -> None:
        """To the device, where there is one: revealed rows that are born in this epoch, and rows that die in it."""
        if self._mirror is not None:
            self._mirror.live(self.table, born, dying, epoch)

    def counted(self, slots: Longs) -> Counted:
        """What these rows are counted as."""
        table, kinds, checksum = self.table, np.zeros(len(_KINDS), np.int64), 0
        for number, _, rows in table.split(slots):
            page = table.pages[number]
            kinds += np.bincount(page.held[rows], minlength=len(_KINDS))
            checksum += content.total(content.row_hashes(page, rows))
        return Counted(kinds, checksum)

    def count(self, born: Counted, dead: Counted) -> None:
        """In one step for readers of the numbers, which hold the store's lock."""
        self._kinds += born.kinds - dead.kinds
        self.checksum = (self.checksum + born.checksum - dead.checksum) % 2**64

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
            page, ids, bodies = table.pages[number], self.ids[number], self.bodies[number]
            columns.clear(page, rows, self.words, self.overflow)
            self._planes.clear(page, rows)
            page.birth[rows] = NEVER
            page.death[rows] = 0
            for code in page.tenant[rows].tolist():
                self.tenants.release(code)
            for code in page.encoder[rows].tolist():
                if code >= 0:
                    self.encoders.release(code)
            for row in rows.tolist():
                posting_id = ids[row]
                self.words.release_id(posting_id)
                self._text_bytes -= sys.getsizeof(posting_id) + sys.getsizeof(bodies[row])
                ids[row], bodies[row] = "", b""
                self._placement.give_back(page.first + row)
            if revealed:
                table.zones[number].free(rows)
                self._wide.setdefault(number, set()).update((rows // BLOCK).tolist())
        if revealed and self._mirror is not None and len(slots):
            self._mirror.empty(table, slots)

    def sweep(self) -> None:
        """Blocks that lost rows get zones as narrow as what is left."""
        for number, blocks in self._wide.items():
            swept = np.asarray(sorted(blocks), np.int64)
            self.table.zones[number].sweep(swept)
            if self._mirror is not None:
                self._mirror.narrow(self.table, swept + self.table.pages[number].first // BLOCK)
        self._wide.clear()

    # --- restoring -----------------------------------------------------------------------------------------------

    def adopt(self, space: Space | None) -> None:
        """The space of what `restore` will bring. Raises OutOfRoom when a page of it cannot be held."""
        self._pages.adopt(space)

    def restore(
        self,
        slots: Longs,
        live: npt.NDArray[np.bool_],
        arrays: Mapping[str, npt.NDArray[Any]],
        texts: tuple[Sequence[str], Sequence[bytes]],
        epoch: int,
    ) -> None:
        """Rows as `Page.arrays` and the planes have them, at ascending slots of empty pages; born are those that are
        `live`. `texts`: their ids and bodies. Raises OutOfRoom. `settle` after the last."""
        if not len(slots):
            return
        while self.table.capacity <= slots[-1]:
            self._admit_page(0)
            self.add_page()
        ids, bodies = texts
        if not live.all():  # rows that died since their slab was written
            ids = [text if lives else "" for text, lives in zip(ids, live.tolist(), strict=True)]
            bodies = [body if lives else b"" for body, lives in zip(bodies, live.tolist(), strict=True)]
        self._text_bytes += sum(map(sys.getsizeof, ids)) - (len(slots) - int(live.sum())) * _TEXT
        self._text_bytes += sum(map(len, bodies)) + int(live.sum()) * sys.getsizeof(b"")
        self._admit("what a snapshot kept", 0, 0)
        for number, at, rows in split(slots, self.table.page_rows):
            page, begin = self.table.pages[number], int(at[0])
            some, end = live[at], begin + len(at)
            page.restore(_span(rows), {name: values[begin:end] for name, values in arrays.items()})
            page.wipe(rows[~some])
            page.birth[rows[some]] = epoch
            page.death[rows[some]] = NEVER
            self.stamps[number] = epoch
            _put_back(self.ids[number], rows, ids[begin:end])
            _put_back(self.bodies[number], rows, bodies[begin:end])

    def settle(self, words: Mapping[str, Sequence[str | None]], overflow: Mapping[str, tuple[Longs, Codes]]) -> None:
        """After the last `restore`: codes, zones and places follow from the rows. Every birth is of a live row."""
        table = self.table
        born = [np.flatnonzero(page.birth != NEVER) for page in table.pages]
        parts = list(zip(table.pages, born, strict=True))
        for field, vocabulary in self.words.of.items():
            codes = [page.codes_of(field)[rows] for page, rows in parts]
            codes.append(overflow[field][1] if field in overflow else np.zeros(0, np.int32))
            vocabulary.restore(words[field], _uses(codes, len(words[field])))
        for name, vocabulary in (("tenant", self.tenants), ("encoder", self.encoders)):
            known = words[f"{name}s"]
            vocabulary.restore(known, _uses([getattr(page, name)[rows] for page, rows in parts], len(known)))
        for field, entries in overflow.items():
            self.overflow.restore(field, *entries)
        countries = words[KEYWORD_FIELDS[COUNTRY]]
        for number, (page, rows) in enumerate(parts):
            table.zones[number].widen(rows)
            self._kinds += np.bincount(page.held[rows], minlength=len(_KINDS))
            self._planes.rows += int((page.held[rows] & (DENSE | SKETCH) > 0).sum())
            self.words.acquire_ids([self.ids[number][row] for row in rows.tolist()])
            blocks, first = np.unique(rows // BLOCK, return_index=True)
            free = np.packbits(~table.zones[number].taken.reshape(-1, BLOCK)[blocks], axis=1, bitorder="little")
            where = page.codes[KEYWORD_FIELDS[COUNTRY]][rows[first]].tolist()
            weeks = (page.recency[rows[first]] // WEEK_MS).tolist()
            self._placement.restore(
                {
                    page.first // BLOCK + block: (
                        ((countries[code] or "") if code >= 0 else "", week),
                        int.from_bytes(bits.tobytes(), "little"),
                    )
                    for block, code, week, bits in zip(blocks.tolist(), where, weeks, free, strict=True)
                }
            )
        if self._mirror is not None:
            self._mirror.fill(table)
        self._planes.settle()

    def hashes_of(self, slots: Iterable[int]) -> list[int]:
        """The hash of each row's id."""
        hashes: list[int] = self.table.take("ties", np.fromiter(slots, np.int64)).tolist()
        return hashes


def recency(update: IndexUpdate) -> int:
    """Epoch ms: what orders postings without a query."""
    assert update.attributes is not None
    return update.produced_at if update.attributes.posted_at is None else update.attributes.posted_at


def _span(rows: Longs) -> slice | Longs:
    """The same rows (ascending), as a slice where they are one."""
    return slice(int(rows[0]), int(rows[-1]) + 1) if rows[-1] - rows[0] + 1 == len(rows) else rows


def _put_back(kept: list[T], rows: Longs, texts: Sequence[T]) -> None:
    span = _span(rows)
    if isinstance(span, slice):
        kept[span] = texts
    else:
        for row, text in zip(rows.tolist(), texts, strict=True):
            kept[row] = text


def _uses(parts: Sequence[Codes], count: int) -> list[int]:
    """How often each code below `count` is used."""
    uses = np.zeros(count, np.int64)
    for codes in parts:
        uses += np.bincount(codes[codes >= 0], minlength=count)
    out: list[int] = uses.tolist()
    return out
