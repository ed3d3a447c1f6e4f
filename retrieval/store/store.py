"""The flat store: every posting of a shard in memory, exactly searched, changed in epochs.

How an update becomes visible:

    1. order     a batch is reduced to the newest (version, revision) of each id; what is not newer is stale
    2. fill      each row goes into a slot that no reader can see: columns, planes, norms
    3. publish   under the lock, in one step: births, deaths, entries and the epoch change, and waiters wake
    4. retire    a dead row's slot is used again once no reader is pinned to an epoch that saw it, and a while after

A reader pins an epoch, takes its mask of visible rows, and works without the lock on slots that cannot change.

State has one owner: `_writing` serialises the writer (apply, reclaim, capture, restore); `_lock` guards what readers
read together (births, deaths, entries, epoch, pins). Order: `_writing` before `_lock`.

Where it stands: life-of-a-posting.md, step 6.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from penstock.retrieval.search import filters, scan
from penstock.retrieval.search.order import stable_hash
from penstock.retrieval.store.columns import Columns
from penstock.retrieval.store.errors import EpochGone, HashCollision
from penstock.retrieval.store.ordering import reduce_batch
from penstock.retrieval.store.planes import DENSE, REFUSED, Planes
from penstock.retrieval.store.records import (
    NO_SLOT,
    STATE_OF_OP,
    Applied,
    Capture,
    Entry,
    Kept,
    SearchResult,
    StoreCounts,
    body_of,
    buried,
    update_kept,
    update_of,
)
from penstock.retrieval.store.slots import NEVER, Slots
from penstock.retrieval.store.vocabulary import Vocabulary
from penstock.schemas.errors import InvalidRecord
from penstock.schemas.events import Filter, IndexUpdate, QueryVector, Vector
from penstock.schemas.rpc import Hit, Row, RowState

DAY_MS = 86_400_000
MAX_K = 16_384

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Pin:
    """An epoch held for reading: its slots are not used again before the pin is gone."""

    epoch: int
    visible: Mask  # bool [n]: the slots 0 … n-1 of this epoch


def _wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


class Store:
    """One shard's postings. `now_ms` (epoch ms) is the reader's or writer's moment; `clock` only stamps publication."""

    def __init__(
        self,
        *,
        capacity: int = 16_384,
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
        self._tenants = Vocabulary()
        self._slots = Slots(max(capacity, 1))
        self._columns = Columns(max(capacity, 1))
        self._planes = Planes(max(capacity, 1))
        self._record_bytes = 0
        self._stale = 0
        self._collisions = 0
        self._tombstone_window_ms = tombstone_window_ms
        self._hold_ms = hold_ms
        self._expiry_grace_ms = expiry_grace_ms
        self._hash_id = hash_id
        self._clock = clock

    @property
    def epoch(self) -> int:
        """The newest published epoch."""
        return self._epoch

    @property
    def space_id(self) -> str:
        """The space of the stored vectors; empty without any."""
        space = self._planes.layout.space
        return space.space_id if space is not None else ""

    # --- writing -------------------------------------------------------------------------------------------------

    def apply(self, updates: Sequence[IndexUpdate], *, now_ms: int) -> Applied:
        """Publishes a batch as one epoch (none when nothing in it is new). Idempotent; order within an id is by age.

        A refused update (InvalidRecord, HashCollision) does not hold back its fellows. An exception means that
        nothing of the batch was applied.
        """
        with self._writing:
            batch = reduce_batch(updates, self._entries, self._by_hash, self._hash_id)
            self._stale += batch.stale
            self._collisions += sum(isinstance(refusal.error, HashCollision) for refusal in batch.refused)
            drafts: list[tuple[Entry, IndexUpdate]] = []
            without_vector = []
            try:
                self._retire(now_ms)
                for position in batch.newest.values():
                    draft, reason = self._fill(updates[position], now_ms)
                    drafts.append((draft, updates[position]))
                    if reason is not None:
                        without_vector.append((position, reason))
                self._planes.flush()
            except BaseException:
                self._planes.forget()
                for draft, _ in drafts:
                    self._empty(draft.slot)
                raise
            published_at = self._clock()
            if drafts:
                self._publish([replace(draft, searchable_at=published_at) for draft, _ in drafts], (), now_ms)
            return Applied(self._epoch, published_at, batch.accepted, batch.stale, batch.refused, tuple(without_vector))

    def reclaim(self, *, now_ms: int) -> int:
        """Lets go of what time has ended: rows well past their expiry, slots of the dead, tombstones past their window.

        Returns how many rows and tombstones went. What any reader sees does not change.
        """
        with self._writing:
            visible = self._slots.visible(self._epoch)
            over = visible & (self._slots.expires[: len(visible)] <= now_ms - self._expiry_grace_ms)
            graves = [buried(self._entries[self._slots.ids[slot]], now_ms) for slot in np.flatnonzero(over)]
            ended = []
            while self._graves and self._graves[0][0] <= now_ms - self._tombstone_window_ms:
                died_at, posting_id = self._graves.popleft()
                entry = self._entries.get(posting_id)
                if entry is not None and entry.state is not RowState.LIVE and entry.died_at == died_at:
                    ended.append(entry)
            if graves or ended:
                self._publish(graves, ended, now_ms)
            self._retire(now_ms)
            return len(graves) + len(ended)

    def _fill(self, update: IndexUpdate, now_ms: int, body: bytes | None = None) -> tuple[Entry, str | None]:
        """The entry of an update, its row written into an unseen slot; and why its vector was left out, if it was."""
        state = STATE_OF_OP[update.op]
        slot, reason, encoder_id = NO_SLOT, None, ""
        if state is RowState.LIVE:
            slot, reason = self._write_row(update)
            if update.vector is not None and reason is None:
                encoder_id = update.vector.encoder_id
        entry = Entry(
            posting_id=update.posting_id,
            version=update.version,
            revision=update.revision,
            state=state,
            slot=slot,
            expires_at=update.expires_at,
            encoder_id=encoder_id,
            body=body_of(update) if body is None else body,
            searchable_at=0,
            died_at=0 if state is RowState.LIVE else now_ms,
        )
        return entry, reason

    def _write_row(self, update: IndexUpdate) -> tuple[int, str | None]:
        """The slot that now holds the row, still unseen, and why its vector was left out."""
        slots = self._slots
        if slots.full:
            capacity = 2 * slots.capacity
            with self._lock:
                slots.grow(capacity)
            self._columns.grow(capacity)
            self._planes.grow(capacity)
        slot = slots.take()
        slots.tenant[slot] = self._tenants.acquire(update.tenant)
        reason = None
        try:
            attributes = update.attributes
            assert attributes is not None
            slots.ids[slot] = update.posting_id
            slots.version[slot], slots.revision[slot] = update.version, update.revision
            slots.expires[slot] = NEVER if update.expires_at is None else update.expires_at
            slots.recency[slot] = update.produced_at if attributes.posted_at is None else attributes.posted_at
            slots.ties[slot] = self._hash_id(update.posting_id)
            self._columns.write(slot, update)
            if update.vector is not None:
                reason = self._planes.write(slot, update.vector)
        except BaseException:
            self._empty(slot)
            raise
        return slot, reason

    def _publish(self, entries: Iterable[Entry], ended: Iterable[Entry], now_ms: int) -> None:
        """One step for readers: these entries replace what was known of their ids, the ended ones go."""
        with self._published:
            epoch = self._epoch + 1
            for entry in entries:
                before = self._entries.get(entry.posting_id)
                if before is not None:
                    self._record_bytes -= before.nbytes
                    if before.slot != NO_SLOT:
                        self._slots.kill(before.slot, epoch, now_ms)
                else:
                    self._by_hash[self._hash_id(entry.posting_id)] = entry.posting_id
                if entry.slot != NO_SLOT:
                    self._slots.bear(entry.slot, epoch)
                else:
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
        for slot in slots:
            self._empty(slot)

    def _empty(self, slot: int) -> None:
        if slot == NO_SLOT:
            return
        self._columns.clear(slot)
        self._planes.clear(slot)
        self._tenants.release(int(self._slots.tenant[slot]))
        self._slots.give_back(slot)

    # --- reading -------------------------------------------------------------------------------------------------

    @contextmanager
    def pin(self, at_epoch: int | None = None) -> Iterator[Pin]:
        """Holds an epoch (the newest by default) for as long as the block lasts. Raises EpochGone."""
        with self._lock:
            epoch = self._epoch if at_epoch is None else at_epoch
            if not self._oldest <= epoch <= self._epoch:
                raise EpochGone(epoch, self._oldest, self._epoch)
            self._pins[epoch] += 1
            visible = self._slots.visible(epoch)
        try:
            yield Pin(epoch, visible)
        finally:
            self._unpin(epoch)

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
        if not 0 < k <= MAX_K:
            raise InvalidRecord("k", k, f"1 to {MAX_K}")
        program = filters.compile_tree(filter) if filter is not None else None
        with self.pin(at_epoch) as pin:
            layout = self._planes.layout
            query = layout.query(vector) if vector is not None else None
            rows = np.flatnonzero(self._passing(pin, program, tenant, now_ms))
            slots = self._slots
            if vector is None:
                top = _newest(rows, slots.recency, slots.ties, k)
                found = scan.Best(top, np.zeros(len(top)), np.zeros(len(top)), 0)
            elif query is None:
                found = scan.unscored(rows, slots.ties, k)
            else:
                found = scan.best(layout.dense, layout.sketch, layout.norms, rows, query, slots.ties, k)
            top = found.rows
            hits = tuple(
                Hit(
                    posting_id=slots.ids[slot],
                    version=version,
                    revision=revision,
                    score=by_dense + by_term,
                    dense=by_dense,
                    lexical=by_term,
                    recency=recency,
                )
                for slot, version, revision, by_dense, by_term, recency in zip(
                    top.tolist(),
                    slots.version[top].tolist(),
                    slots.revision[top].tolist(),
                    found.dense.tolist(),
                    found.lexical.tolist(),
                    slots.recency[top].tolist(),
                    strict=True,
                )
            )
            return SearchResult(hits, len(rows), pin.epoch, found.rescored)

    def holds(self, tree: Filter, *, now_ms: int, tenant: str = "default") -> bool:
        """Whether some live row has the values that this clause (or tree, its NOTs aside) names."""
        program = filters.compile_tree(filters.positive(tree))
        with self.pin() as pin:
            return bool(self._passing(pin, program, tenant, now_ms).any())

    def explain(self, tree: Filter, *, now_ms: int, tenant: str = "default") -> filters.Explanation:
        """What a filter does to the tenant's live rows, clause by clause."""
        with self.pin() as pin:
            return filters.explain(tree, self._columns, self._passing(pin, None, tenant, now_ms))

    def get(self, posting_ids: Sequence[str], *, now_ms: int) -> tuple[Row, ...]:
        """What is held of each id, in order: newest accepted update with its stored vector, state as of `now_ms`."""
        found: list[tuple[Entry | None, tuple[bytes, bytes | None] | None]] = []
        with self._lock:
            space_id = self.space_id
            for posting_id in posting_ids:
                entry = self._entries.get(posting_id)
                live = entry is not None and entry.slot != NO_SLOT
                found.append((entry, self._planes.read(entry.slot) if entry is not None and live else None))
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
            visible = self._slots.visible(self._epoch)
            held = self._planes.held[: len(visible)][visible]
            return StoreCounts(
                live=len(held),
                tombstones=len(self._entries) - len(held),
                held_dead=self._slots.dead,
                capacity=self._slots.capacity,
                without_vector=int(np.count_nonzero((held & np.uint8(DENSE)) == 0)),
                vectors_refused=int(np.count_nonzero(held & REFUSED)),
                stale=self._stale,
                collisions=self._collisions,
                oldest_epoch=self._oldest,
                epoch=self._epoch,
                bytes_planes=self._planes.nbytes,
                bytes_columns=self._columns.nbytes + self._tenants.nbytes,
                bytes_rows=self._slots.nbytes,
                bytes_records=self._record_bytes,
            )

    def _passing(self, pin: Pin, program: filters.Program | None, tenant: str, now_ms: int) -> Mask:
        rows = len(pin.visible)
        code = self._tenants.find(tenant)
        if code is None:
            return np.zeros(rows, np.bool_)
        slots = self._slots
        passing: Mask = pin.visible & (slots.expires[:rows] > now_ms) & (slots.tenant[:rows] == code)
        return passing if program is None else passing & filters.evaluate(program, self._columns, rows)

    # --- snapshots -----------------------------------------------------------------------------------------------

    def capture(self) -> Capture:
        """Everything at the newest epoch, to be written while the store goes on. Call `release` when done."""
        with self._writing, self._lock:
            epoch = self._epoch
            self._pins[epoch] += 1
            return Capture(
                epoch=epoch,
                space_id=self.space_id,
                entries=tuple(self._entries.values()),
                layout=self._planes.layout,
                held=self._planes.held.copy(),
                release=lambda: self._unpin(epoch),
            )

    def restore(self, kept: Iterable[Kept]) -> None:
        """Fills an empty store with what a snapshot kept, as one epoch."""
        with self._writing:
            if self._entries:
                raise ValueError(f"restore needs an empty store, this one holds {len(self._entries)} ids")
            entries = []
            for one in kept:
                entry, _ = self._fill(update_kept(one), one.died_at, one.body)
                if one.refused_vector:
                    self._planes.held[entry.slot] |= REFUSED
                entries.append(replace(entry, searchable_at=one.searchable_at))
            self._planes.flush()
            entries.sort(key=lambda entry: entry.died_at)  # tombstones end in the order in which they began
            self._publish(entries, (), 0)
            self._oldest = self._epoch


def _newest(
    rows: npt.NDArray[np.int64], recency: npt.NDArray[np.int64], ties: npt.NDArray[np.uint64], k: int
) -> npt.NDArray[np.int64]:
    """The `k` newest rows, ties by hash."""
    when = recency[rows]
    if len(rows) > k:
        rows = rows[when >= np.partition(when, len(when) - k)[len(when) - k]]
        when = recency[rows]
    newest: npt.NDArray[np.int64] = rows[np.lexsort((ties[rows], -when))[:k]]
    return newest
