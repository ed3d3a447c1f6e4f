"""The flat store: every posting of a shard in memory, exactly searched, changed in epochs.

How an update becomes visible:

    1. order     a batch is reduced to the newest (version, revision) of each id; what is not newer is stale
    2. admit     a row that does not fit into the memory given is refused, with the numbers, before any is taken
    3. fill      each row goes into a slot that no reader can see: attributes, vectors; then its block's zone widens
    4. publish   under the lock, in one step: births, deaths, entries and the epoch change, and waiters wake
    5. retire    a dead row's slot is used again once no reader is pinned to an epoch that saw it, and a while after

A reader pins an epoch, takes the page table, and works without the lock on rows that cannot change (`reading.py`).

State has one owner: `_writing` serialises the writer (apply, reclaim, capture, restore); `_lock` guards what readers
read together (births, deaths, entries, epoch, pins). Order: `_writing` before `_lock`.

Where it stands: life-of-a-posting.md, step 6. The arrays: docs/retrieval.md.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import numpy as np

from penstock.retrieval.search import filters
from penstock.retrieval.search.evaluate import explain
from penstock.retrieval.search.order import stable_hash
from penstock.retrieval.search.plan import Plan
from penstock.retrieval.search.program import compile_tree
from penstock.retrieval.store import reading
from penstock.retrieval.store.errors import EpochGone, HashCollision, OutOfRoom
from penstock.retrieval.store.ordering import reduce_batch
from penstock.retrieval.store.page import PAGE_ROWS, Longs
from penstock.retrieval.store.planes import read
from penstock.retrieval.store.reading import Pin, Scope
from penstock.retrieval.store.records import (
    NO_SLOT,
    STATE_OF_OP,
    Applied,
    Ask,
    Capture,
    Entry,
    Kept,
    Refusal,
    SearchResult,
    StoreCounts,
    body_of,
    buried,
    update_kept,
    update_of,
)
from penstock.retrieval.store.rows import Rows
from penstock.retrieval.store.slots import Slots
from penstock.retrieval.store.witness import Witness, pick
from penstock.schemas.events import Filter, IndexUpdate, QueryVector, Vector
from penstock.schemas.rpc import Row, RowState

DAY_MS = 86_400_000


def _wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


class Store:
    """One shard's postings. `now_ms` (epoch ms) is the reader's or writer's moment; `clock` only stamps publication.

    `memory_bytes`: what `counts().nbytes` may come to; None: whatever there is. `capacity`: rows to have pages for
    from the start.
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
    ) -> None:
        self._writing = threading.RLock()
        self._lock = threading.Lock()
        self._published = threading.Condition(self._lock)
        self._epoch = first_epoch
        self._oldest = first_epoch  # the oldest epoch that can still be read
        self._pins: Counter[int] = Counter()
        self._entries: dict[str, Entry] = {}
        self._by_hash: dict[int, str] = {}
        self._graves: deque[tuple[int, str]] = deque()  # (died at, id), in the order of death
        self._rows = Rows(page_rows, memory_bytes, hash_id)
        self._slots = Slots()
        self._record_bytes = 0
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
            batch = reduce_batch(updates, self._entries, self._by_hash, self._hash_id)
            self._collisions += sum(isinstance(refusal.error, HashCollision) for refusal in batch.refused)
            drafts: list[Entry] = []
            without_vector = []
            no_room: dict[str, OutOfRoom] = {}
            try:
                self._retire(now_ms)
                others = self._record_bytes
                for posting_id, position in batch.newest.items():
                    try:
                        draft, reason = self._fill(updates[position], now_ms, others)
                    except OutOfRoom as error:
                        no_room[posting_id] = error
                        continue
                    others += draft.nbytes
                    drafts.append(draft)
                    if reason is not None:
                        without_vector.append((position, reason))
                self._rows.flush()
            except BaseException:
                self._rows.forget(_slots_of(drafts))
                raise
            self._stale += batch.stale
            published_at = self._clock()
            if drafts:
                self._publish([replace(draft, searchable_at=published_at) for draft in drafts], (), now_ms)
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
            over = self._rows.expired(now_ms - self._expiry_grace_ms, self._epoch)
            graves = [buried(self._entries[posting_id], now_ms) for posting_id in over]
            ended = []
            while self._graves and self._graves[0][0] <= now_ms - self._tombstone_window_ms:
                died_at, posting_id = self._graves.popleft()
                entry = self._entries.get(posting_id)
                if entry is not None and entry.state is not RowState.LIVE and entry.died_at == died_at:
                    ended.append(entry)
            if graves or ended:
                self._publish(graves, ended, now_ms)
            self._retire(now_ms)
            self._rows.sweep()
            return len(graves) + len(ended)

    def _fill(
        self, update: IndexUpdate, now_ms: int, others: int, body: bytes | None = None
    ) -> tuple[Entry, str | None]:
        """The entry of an update, its row written into an unseen slot; and why its vector was left out, if it was.

        `others`: bytes of what is known besides the rows. Raises OutOfRoom, but not of a deletion: it makes room.
        """
        state = STATE_OF_OP[update.op]
        entry = Entry(
            posting_id=update.posting_id,
            version=update.version,
            revision=update.revision,
            state=state,
            slot=NO_SLOT,
            expires_at=update.expires_at,
            encoder_id="",
            body=body_of(update) if body is None else body,
            searchable_at=0,
            died_at=0 if state is RowState.LIVE else now_ms,
        )
        if state is not RowState.LIVE:
            return entry, None
        slot, reason = self._rows.put(update, others + entry.nbytes)
        encoder_id = update.vector.encoder_id if update.vector is not None and reason is None else ""
        return replace(entry, slot=slot, encoder_id=encoder_id), reason

    def _publish(self, entries: Sequence[Entry], ended: Iterable[Entry], now_ms: int) -> None:
        """One step for readers: these entries replace what was known of their ids, the ended ones go."""
        table = self._rows.table
        born = _slots_of(entries)
        dying = _slots_of([known for entry in entries if (known := self._entries.get(entry.posting_id)) is not None])
        self._rows.reveal(born)
        self._rows.hide(dying)
        with self._published:
            epoch = self._epoch + 1
            self._slots.kill(table, dying, epoch, now_ms)
            self._slots.bear(table, born, epoch)
            for entry in entries:
                before = self._entries.get(entry.posting_id)
                if before is not None:
                    self._record_bytes -= before.nbytes
                else:
                    self._by_hash[self._hash_id(entry.posting_id)] = entry.posting_id
                if entry.slot == NO_SLOT:
                    self._graves.append((entry.died_at, entry.posting_id))
                self._entries[entry.posting_id] = entry
                self._record_bytes += entry.nbytes
            for entry in ended:
                del self._entries[entry.posting_id]
                del self._by_hash[self._hash_id(entry.posting_id)]
                self._record_bytes -= entry.nbytes
            self._epoch = epoch
            self._published.notify_all()

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
            return reading.answers(self._rows, asks, pins)

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
        """What a filter does to the tenant's live rows, clause by clause."""
        with self.pin() as pin:
            program = compile_tree(tree, self._rows.words)
            scope = Scope(pin, self._rows.tenants.find(tenant), now_ms)
            seen = reading.joined(list(reading.rows_of(scope, None, self._rows.overflow, reading.plan(scope, None))))
            parts = [(pin.table.pages[number], rows) for number, _, rows in pin.table.split(seen)]
            return explain(tree, self._rows.words, self._rows.overflow, parts, reading.plan(scope, program).reasons)

    def get(self, posting_ids: Sequence[str], *, now_ms: int) -> tuple[Row, ...]:
        """What is held of each id, in order: newest accepted update with its stored vector, state as of `now_ms`."""
        found: list[tuple[Entry | None, tuple[bytes, bytes | None] | None]] = []
        with self._lock:
            space_id, table = self.space_id, self._rows.table
            for posting_id in posting_ids:
                entry = self._entries.get(posting_id)
                live = entry is not None and entry.slot != NO_SLOT
                found.append((entry, read(*table.at(entry.slot)) if entry is not None and live else None))
        out = []
        for posting_id, (entry, planes) in zip(posting_ids, found, strict=True):
            if entry is None:
                out.append(Row(posting_id=posting_id, state=RowState.ABSENT))
                continue
            update = update_of(entry)
            if planes is not None:
                vector = Vector(space_id=space_id, encoder_id=entry.encoder_id, dense=planes[0], sketch=planes[1])
                update = replace(update, vector=vector)
            state = entry.state_at(now_ms)
            out.append(Row(posting_id=posting_id, state=state, update=update, searchable_at=entry.searchable_at))
        return tuple(out)

    def await_version(self, posting_id: str, version: int, timeout_s: float) -> bool:
        """Waits until that version of the posting, or a later one, is visible; False when it is not in time."""

        def visible() -> bool:
            entry = self._entries.get(posting_id)
            return entry is not None and entry.version >= version

        with self._published:
            return self._published.wait_for(visible, timeout_s)

    def counts(self) -> StoreCounts:
        """How many rows of each kind, and the memory that everything holds."""
        with self._lock:
            rows = self._rows
            return StoreCounts(
                live=rows.live,
                tombstones=len(self._entries) - rows.live,
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
                bytes_records=self._record_bytes,
            )

    # --- snapshots -----------------------------------------------------------------------------------------------

    def capture(self) -> Capture:
        """Everything at the newest epoch, to be written while the store goes on. Call `release` when done."""
        with self._writing, self._lock:
            pin = self._hold(None)
            return Capture(
                epoch=pin.epoch,
                space_id=self.space_id,
                entries=tuple(self._entries.values()),
                table=pin.table,
                release=lambda: self._unpin(pin.epoch),
            )

    def restore(self, kept: Iterable[Kept]) -> None:
        """Fills an empty store with what a snapshot kept, as one epoch. Raises OutOfRoom."""
        with self._writing:
            if self._entries:
                raise ValueError(f"restore needs an empty store, this one holds {len(self._entries)} ids")
            entries = []
            others = 0
            for one in kept:
                entry, _ = self._fill(update_kept(one), one.died_at, others, one.body)
                others += entry.nbytes
                if one.refused_vector:
                    self._rows.refuse_vector(entry.slot)
                entries.append(replace(entry, searchable_at=one.searchable_at))
            self._rows.flush()
            entries.sort(key=lambda entry: entry.died_at)  # tombstones end in the order in which they began
            self._publish(entries, (), 0)
            self._oldest = self._epoch


def _slots_of(entries: Iterable[Entry]) -> Longs:
    """int64: the slots of those that have one."""
    return np.asarray([entry.slot for entry in entries if entry.slot != NO_SLOT], np.int64)
