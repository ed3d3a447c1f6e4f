"""The flat store: every posting of a shard in memory, exactly searched, changed in epochs.

How an update becomes visible:

    1. order     a batch is reduced to the newest (version, revision) of each id; what is not newer is stale
    2. admit     a row that does not fit into the memory given is refused, with the numbers, before any is taken
    3. fill      each row goes into a slot that no reader can see: attributes, vectors; then its block's zone widens
    4. publish   under the lock, in one step: births, deaths, what is known of ids and the epoch change; waiters wake
    5. retire    a dead row's slot is used again once no reader is pinned to an epoch that saw it, and a while after

A reader pins an epoch, takes the page table, and works without the lock on rows that cannot change (`reading.py`).

With a device (retrieval/device/) the host's pages stay the truth, and the device has a copy of what a search reads: a
batch's rows are sent there before 4, and searches by vector are answered there.

State has one owner: `_writing` serialises the writer (apply, reclaim, capture, restore); `_lock` guards what readers
read together (births, deaths, `_known`, `_tombstones`, epoch, pins). Order: `_writing` before `_lock`.

Where it stands: life-of-a-posting.md, step 6. The arrays: docs/retrieval.md.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from penstock.retrieval.search import filters
from penstock.retrieval.search.evaluate import explain
from penstock.retrieval.search.order import stable_hash
from penstock.retrieval.search.plan import Plan
from penstock.retrieval.search.program import compile_tree
from penstock.retrieval.store import reading
from penstock.retrieval.store.errors import EpochGone, HashCollision, OutOfRoom
from penstock.retrieval.store.ordering import reduce_batch
from penstock.retrieval.store.page import PAGE_ROWS
from penstock.retrieval.store.planes import read
from penstock.retrieval.store.reading import Pin, Scope
from penstock.retrieval.store.records import (
    NO_SLOT,
    Applied,
    Ask,
    Refusal,
    SearchResult,
    StoreCounts,
    Tombstone,
    body_of,
    buried,
    tombstone_of,
    update_of,
)
from penstock.retrieval.store.rows import Rows
from penstock.retrieval.store.slabs import Capture, Contents, captured, restored
from penstock.retrieval.store.slots import Slots
from penstock.retrieval.store.witness import Witness, pick
from penstock.schemas.events import Filter, IndexOp, IndexUpdate, QueryVector, Vector
from penstock.schemas.rpc import Row, RowState

if TYPE_CHECKING:
    from penstock.retrieval.device.backend import Backend
    from penstock.retrieval.device.search import Device

DAY_MS = 86_400_000
# Of an id, besides its row: a slot and a hash as Python objects, and at most 64 bytes in each of two dictionaries.
ID_BYTES = 32 + 40 + 2 * 64


def _wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


class Store:
    """One shard's postings. `now_ms` (epoch ms) is the reader's or writer's moment; `clock` only stamps publication.

    `memory_bytes`: what `counts().nbytes` may come to; None: whatever there is. `capacity`: rows to have pages for
    from the start. `backend`: the device that answers searches by vector; None: the host does.
    """

    def __init__(
        self,
        *,
        capacity: int = 0,
        page_rows: int = PAGE_ROWS,
        memory_bytes: int | None = None,
        first_epoch: int = 0,
        tombstone_window_ms: int = 8 * DAY_MS,
        hold_ms: int = 5_000,
        expiry_grace_ms: int = 60_000,
        hash_id: Callable[[str], int] = stable_hash,
        clock: Callable[[], int] = _wall_clock_ms,
        backend: Backend | None = None,
    ) -> None:
        self._device = device_of(backend, page_rows) if backend is not None else None
        self._writing = threading.RLock()
        self._lock = threading.Lock()
        self._published = threading.Condition(self._lock)
        self._epoch = first_epoch
        self._oldest = first_epoch  # the oldest epoch that can still be read
        self._pins: Counter[int] = Counter()
        self._known: dict[str, int] = {}  # id -> slot of its live row; NO_SLOT: it has a tombstone
        self._tombstones: dict[str, Tombstone] = {}
        self._by_hash: dict[int, str] = {}
        self._graves: deque[tuple[int, str]] = deque()  # (died at, id), in the order of death
        self._rows = Rows(page_rows, memory_bytes, hash_id, self._device.mirror if self._device is not None else None)
        self._slots = Slots()
        self._grave_bytes = 0
        self._stale = 0
        self._collisions = 0
        self._tombstone_window_ms = tombstone_window_ms
        self._hold_ms = hold_ms
        self._expiry_grace_ms = expiry_grace_ms
        self._hash_id = hash_id
        self._clock = clock
        while self._rows.table.capacity < capacity:
            self._rows.add_page()

    @property
    def epoch(self) -> int:
        """The newest published epoch."""
        return self._epoch

    @property
    def mirrored(self) -> Device | None:
        """The device that answers searches by vector, where there is one."""
        return self._device

    @property
    def device(self) -> str:
        """What answers searches by vector: cpu, cuda or interpreter."""
        return "cpu" if self._device is None else self._device.name

    @property
    def space_id(self) -> str:
        """The space of the stored vectors; empty without any."""
        space = self._rows.table.space
        return space.space_id if space is not None else ""

    def checksum(self) -> int:
        """64 bits of what the live rows are: ids, versions, revisions, vectors. Two stores that hold the same have the
        same, wherever rows lie; a row past its expiry counts until `reclaim` has let go of it."""
        return self._rows.checksum

    # --- writing -------------------------------------------------------------------------------------------------

    def apply(self, updates: Sequence[IndexUpdate], *, now_ms: int) -> Applied:
        """Publishes a batch as one epoch (none when nothing in it is new). Idempotent; order within an id is by age.

        A refused update (InvalidRecord, HashCollision, OutOfRoom) does not hold back its fellows. An exception means
        that nothing of the batch was applied.
        """
        with self._writing:
            batch = reduce_batch(updates, self._age, self._by_hash, self._hash_id)
            self._collisions += sum(isinstance(refusal.error, HashCollision) for refusal in batch.refused)
            born: dict[str, int] = {}
            deleted: list[IndexUpdate] = []
            without_vector = []
            no_room: dict[str, OutOfRoom] = {}
            try:
                self._retire(now_ms)
                others = self._bytes_of_ids()
                for posting_id, position in batch.newest.items():
                    update = updates[position]
                    if update.op is not IndexOp.UPSERT:
                        deleted.append(update)
                        continue
                    try:
                        born[posting_id], reason = self._rows.put(update, body_of(update), others + ID_BYTES)
                    except OutOfRoom as error:
                        no_room[posting_id] = error
                        continue
                    others += 0 if posting_id in self._known else ID_BYTES
                    if reason is not None:
                        without_vector.append((position, reason))
                self._rows.flush()
            except BaseException:
                self._rows.forget(np.asarray(list(born.values()), np.int64))
                raise
            self._stale += batch.stale
            published_at = self._clock()
            if born or deleted:
                graves = [tombstone_of(update, published_at, now_ms) for update in deleted]
                self._publish(born, graves, (), now_ms, published_at)
            refused = list(batch.refused)
            accepted = []
            for position in batch.accepted:
                refusal = no_room.get(updates[position].posting_id)
                if refusal is None:
                    accepted.append(position)
                else:
                    refused.append(Refusal(position, refusal))
            if no_room:
                self.reclaim(now_ms=now_ms)  # whoever tries again may find room
            return Applied(
                self._epoch, published_at, tuple(accepted), batch.stale, tuple(refused), tuple(without_vector)
            )

    def reclaim(self, *, now_ms: int) -> int:
        """Lets go of what time has ended: rows well past their expiry, slots of the dead, tombstones past their window.

        Returns how many rows and tombstones went. What any reader sees does not change.
        """
        with self._writing:
            graves = []
            for posting_id in self._rows.expired(now_ms - self._expiry_grace_ms, self._epoch):
                slot = self._known[posting_id]
                page, row = self._rows.table.at(slot)
                graves.append(buried(self._body(slot), int(page.searchable[row]), now_ms))
            ended: dict[str, Tombstone] = {}
            while self._graves and self._graves[0][0] <= now_ms - self._tombstone_window_ms:
                died_at, posting_id = self._graves.popleft()
                grave = self._tombstones.get(posting_id)
                if grave is not None and grave.died_at == died_at:
                    ended[posting_id] = grave
            if graves or ended:
                self._publish({}, graves, tuple(ended.values()), now_ms, 0)
            self._retire(now_ms)
            self._rows.sweep()
            return len(graves) + len(ended)

    def _age(self, posting_id: str) -> tuple[int, int] | None:
        """(version, revision) of what is known of an id."""
        slot = self._known.get(posting_id)
        if slot is None:
            return None
        if slot == NO_SLOT:
            return self._tombstones[posting_id].age
        page, row = self._rows.table.at(slot)
        return int(page.version[row]), int(page.revision[row])

    def _body(self, slot: int) -> bytes:
        number, row = divmod(slot, self._rows.table.page_rows)
        return self._rows.bodies[number][row]

    def _publish(
        self,
        born: Mapping[str, int],
        graves: Sequence[Tombstone],
        ended: Sequence[Tombstone],
        now_ms: int,
        published_at: int,
    ) -> None:
        """One step for readers: rows (slots by id) and tombstones replace what was known of their ids, the ended go."""
        table = self._rows.table
        slots = np.fromiter(born.values(), np.int64, len(born))
        known = [self._known.get(posting_id, NO_SLOT) for posting_id in (*born, *(one.posting_id for one in graves))]
        dying = np.asarray([slot for slot in known if slot != NO_SLOT], np.int64)
        hashes = self._rows.hashes_of(born.values())
        ended_hashes = [self._hash_id(grave.posting_id) for grave in ended]
        born_rows = self._rows.reveal(slots, self._epoch + 1, published_at)
        self._rows.send(slots, dying, self._epoch + 1)
        dead_rows = self._rows.counted(dying)
        with self._published:
            epoch = self._epoch + 1
            self._rows.count(born_rows, dead_rows)
            self._slots.kill(table, dying, epoch, now_ms)
            self._slots.bear(table, slots, epoch)
            for posting_id in born:
                if (before := self._tombstones.pop(posting_id, None)) is not None:
                    self._grave_bytes -= before.nbytes
            self._known.update(born)
            self._by_hash.update(zip(hashes, born, strict=True))
            for grave in graves:
                self._bury(grave)
            for grave, digest in zip(ended, ended_hashes, strict=True):
                del self._known[grave.posting_id], self._tombstones[grave.posting_id], self._by_hash[digest]
                self._grave_bytes -= grave.nbytes
            self._epoch = epoch
            self._published.notify_all()

    def _bury(self, grave: Tombstone) -> None:
        posting_id = grave.posting_id
        before = self._tombstones.get(posting_id)
        if before is not None:
            self._grave_bytes -= before.nbytes
        elif posting_id not in self._known:
            self._by_hash[self._hash_id(posting_id)] = posting_id
        self._known[posting_id] = NO_SLOT
        self._tombstones[posting_id] = grave
        self._graves.append((grave.died_at, posting_id))
        self._grave_bytes += grave.nbytes

    def _bytes_of_ids(self) -> int:
        """Memory of what is known of ids besides their rows."""
        return ID_BYTES * len(self._known) + self._grave_bytes

    def _retire(self, now_ms: int) -> None:
        with self._lock:
            pinned = min(self._pins, default=self._epoch)
            slots, last = self._slots.retired(pinned, now_ms - self._hold_ms)
            self._oldest = max(self._oldest, last)  # before the slots change hands
        self._rows.empty(slots)

    # --- reading -------------------------------------------------------------------------------------------------

    @contextmanager
    def pin(self, at_epoch: int | None = None) -> Iterator[Pin]:
        """Holds an epoch (the newest by default) for as long as the block lasts. Raises EpochGone."""
        with self._lock:
            pin = self._hold(at_epoch)
        try:
            yield pin
        finally:
            self._unpin(pin.epoch)

    def _hold(self, at_epoch: int | None) -> Pin:
        epoch = self._epoch if at_epoch is None else at_epoch
        if not self._oldest <= epoch <= self._epoch:
            raise EpochGone(epoch, self._oldest, self._epoch)
        self._pins[epoch] += 1
        return Pin(epoch, self._rows.table)

    def _unpin(self, epoch: int) -> None:
        with self._lock:
            self._pins[epoch] -= 1
            if not self._pins[epoch]:
                del self._pins[epoch]

    def search(
        self,
        vector: QueryVector | None,
        filter: Filter | None,
        k: int,
        *,
        now_ms: int,
        tenant: str = "default",
        at_epoch: int | None = None,
    ) -> SearchResult:
        """The exact best `k` of the tenant's live rows that pass, in the total order, and how many passed.

        Without a vector every row scores 0 and the newest come first. Raises InvalidRecord (a filter or a vector that
        is wrong, k out of range), SpaceMismatch, EpochGone.
        """
        found = self.search_many([Ask(vector, filter, k, now_ms, tenant, at_epoch)])[0]
        if isinstance(found, Exception):
            raise found
        return found

    def search_many(self, asks: Sequence[Ask]) -> list[SearchResult | Exception]:
        """What `search` says of each ask, or what it would raise. All see one state of the store and share a scan."""
        with ExitStack() as held:
            pins: list[Pin | Exception] = []
            with self._lock:
                for ask in asks:
                    try:
                        pins.append(pin := self._hold(ask.at_epoch))
                    except EpochGone as error:
                        pins.append(error)
                    else:
                        held.callback(self._unpin, pin.epoch)
            return reading.answers(self._rows, asks, pins, self._device)

    def planned(self, ask: Ask) -> Plan:
        """What a search would look at, from zone maps alone. Raises InvalidRecord, EpochGone."""
        with self.pin(ask.at_epoch) as pin:
            program = compile_tree(ask.filter, self._rows.words) if ask.filter is not None else None
            return reading.plan(Scope(pin, self._rows.tenants.find(ask.tenant), ask.now_ms), program)

    def witness(self, turn: int, *, now_ms: int) -> Witness | None:
        """A row of the newest epoch that is live until after `now_ms`, another at each turn; None without any."""
        with self.pin() as pin:
            return pick(pin.table, self._rows.ids, pin.epoch, turn, now_ms)

    def holds(self, tree: Filter, *, now_ms: int, tenant: str = "default") -> bool:
        """Whether some live row has the values that this clause (or tree, its NOTs aside) names."""
        with self.pin() as pin:
            program = compile_tree(filters.positive(tree), self._rows.words)
            scope = Scope(pin, self._rows.tenants.find(tenant), now_ms)
            found = reading.rows_of(scope, program, self._rows.overflow, reading.plan(scope, program))
            return any(len(rows) for rows in found)

    def explain(self, tree: Filter, *, now_ms: int, tenant: str = "default") -> filters.Explanation:
        """What a filter does to the tenant's live rows, clause by clause, and what a search with it would read."""
        with self.pin() as pin:
            program = compile_tree(tree, self._rows.words)
            scope = Scope(pin, self._rows.tenants.find(tenant), now_ms)
            seen = reading.joined(list(reading.rows_of(scope, None, self._rows.overflow, reading.plan(scope, None))))
            parts = [(pin.table.pages[number], rows) for number, _, rows in pin.table.split(seen)]
            said = explain(tree, self._rows.words, self._rows.overflow, parts)
            return replace(said, plan=reading.plan(scope, program).revised(said.passed).reasons)

    def get(self, posting_ids: Sequence[str], *, now_ms: int) -> tuple[Row, ...]:
        """What is held of each id, in order: newest accepted update with its stored vector, state as of `now_ms`."""
        rows = self._rows
        found: list[tuple[_Held | Tombstone | None, tuple[bytes, bytes | None] | None]] = []
        with self._lock:
            space_id, table = self.space_id, rows.table
            for posting_id in posting_ids:
                slot = self._known.get(posting_id)
                if slot is None or slot == NO_SLOT:
                    found.append((self._tombstones.get(posting_id), None))
                else:
                    page, row = table.at(slot)
                    encoder = rows.encoders.word(int(page.encoder[row])) if page.encoder[row] >= 0 else ""
                    held = _Held(self._body(slot), int(page.expires[row]), int(page.searchable[row]), encoder)
                    found.append((held, read(page, row)))
        return tuple(
            _row_of(posting_id, held, planes, space_id, now_ms)
            for posting_id, (held, planes) in zip(posting_ids, found, strict=True)
        )

    def await_version(self, posting_id: str, version: int, timeout_s: float) -> bool:
        """Waits until that version of the posting, or a later one, is visible; False when it is not in time."""

        def visible() -> bool:
            age = self._age(posting_id)
            return age is not None and age[0] >= version

        with self._published:
            return self._published.wait_for(visible, timeout_s)

    def counts(self) -> StoreCounts:
        """How many rows of each kind, and the memory that everything holds."""
        with self._lock:
            rows = self._rows
            return StoreCounts(
                live=rows.live,
                tombstones=len(self._tombstones),
                held_dead=self._slots.dead,
                capacity=rows.table.capacity,
                spare=rows.spare,
                without_vector=rows.without_vector,
                vectors_refused=rows.vectors_refused,
                stale=self._stale,
                collisions=self._collisions,
                oldest_epoch=self._oldest,
                epoch=self._epoch,
                bytes_planes=rows.bytes_planes,
                bytes_columns=rows.bytes_columns,
                bytes_rows=rows.bytes_rows,
                bytes_records=rows.bytes_records + self._bytes_of_ids(),
                bytes_device=self._device.nbytes if self._device is not None else 0,
            )

    # --- snapshots -----------------------------------------------------------------------------------------------

    def capture(self) -> Capture:
        """Everything at the newest epoch, to be written while the store goes on. Call `release` when done."""
        with self._writing, self._lock:
            made = captured(self._rows, self._epoch, self._tombstones.values(), lambda: self._unpin(made.epoch))
            self._hold(None)
            return made

    def restore(self, kept: Contents) -> None:
        """Fills an empty store with what a snapshot kept, as one epoch. Raises OutOfRoom, and WireError where this
        release cannot read what another wrote."""
        with self._writing:
            if self._known:
                raise ValueError(f"restore needs an empty store, this one holds {len(self._known)} ids")
            epoch = self._epoch + 1
            self._known = restored(self._rows, kept, epoch)
            self._by_hash = dict(zip(self._rows.hashes_of(self._known.values()), self._known, strict=True))
            for grave in sorted(kept.tombstones, key=lambda grave: grave.died_at):  # they end in this order
                self._bury(grave)
            self._epoch = self._oldest = epoch


def device_of(backend: Backend, page_rows: int) -> Device:
    """What mirrors a store's pages on a device and searches there. Kernels are imported here, and not before."""
    from penstock.retrieval.device.search import Device

    return Device(backend, page_rows)


@dataclass(frozen=True, slots=True)
class _Held:
    """Of a live row, what its columns and its vector do not say."""

    body: bytes
    expires: int
    searchable_at: int
    encoder_id: str


def _row_of(
    posting_id: str, held: _Held | Tombstone | None, planes: tuple[bytes, bytes | None] | None, space_id: str, now: int
) -> Row:
    if held is None:
        return Row(posting_id=posting_id, state=RowState.ABSENT)
    update = update_of(held.body)
    if isinstance(held, Tombstone):
        return Row(posting_id=posting_id, state=held.state, update=update, searchable_at=held.searchable_at)
    if planes is not None:
        vector = Vector(space_id=space_id, encoder_id=held.encoder_id, dense=planes[0], sketch=planes[1])
        update = replace(update, vector=vector)
    # Expiry is a predicate on read: from then on a posting is not live, whoever is late to say so.
    state = RowState.LIVE if now < held.expires else RowState.EXPIRED
    return Row(posting_id=posting_id, state=state, update=update, searchable_at=held.searchable_at)
