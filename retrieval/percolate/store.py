"""The standing queries of a shard: kept in memory, exactly percolated, changed in epochs.

How a record becomes visible:

    1. order     a batch is reduced to the newest version of each subscription; what is not newer is stale
    2. build     the blocks it touches are made anew, beside those that readers have (`blocks.py`)
    3. publish   one assignment: blocks and epoch change together, and so do the versions that `standing` tells

State has one owner: `_writing` serialises the writer (apply, reclaim, capture, restore); `_lock` guards the entries.
`percolate` takes the view once and no lock. Order: `_writing` before `_lock`.

Where it stands: life-of-an-alert.md, step 4.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from penstock.retrieval.device.backend import Backend
from penstock.retrieval.percolate.blocks import BLOCK, Block, build
from penstock.retrieval.percolate.device import DeviceScan
from penstock.retrieval.percolate.entries import Draft, Entry, Trees, draft_of
from penstock.retrieval.percolate.matching import REPLY_BYTES, Percolated, percolate
from penstock.retrieval.store.planes import Space
from penstock.retrieval.store.records import Applied, Refusal
from penstock.schemas.errors import InvalidRecord
from penstock.schemas.events import IndexUpdate, StandingQuery

DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class View:
    """One epoch, whole."""

    epoch: int
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class StandingCounts:
    """Byte counts are what the structures hold; Python's own overhead for entries is an estimate."""

    live: int
    tombstones: int
    without_vector: int  # queries that filters alone decide
    trees: int  # distinct filter trees
    stale: int
    epoch: int
    nbytes: int
    bytes_device: int  # that the device holds of them; not in `nbytes`, which is the host's


@dataclass(frozen=True, slots=True)
class Capture:
    """Every standing query and tombstone at one epoch."""

    epoch: int
    blocks: tuple[Block, ...]
    tombstones: tuple[Entry, ...]

    @staticmethod
    def release() -> None:
        """Nothing is pinned: blocks do not change."""


def _wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


class StandingQueries:
    """One shard's standing queries. `now_ms` (epoch ms) is the caller's moment; `clock` only stamps publication."""

    def __init__(
        self,
        *,
        first_epoch: int = 0,
        tombstone_window_ms: int = 8 * DAY_MS,
        block: int = BLOCK,
        clock: Callable[[], int] = _wall_clock_ms,
        backend: Backend | None = None,
    ) -> None:
        """backend: the device that finds pairs; None: the host does."""
        self._writing = threading.RLock()
        self._lock = threading.Lock()
        self._view = View(first_epoch, ())
        self._entries: dict[str, Entry] = {}
        self._homes: dict[str, int] = {}  # subscription -> number of its block
        self._blocks: dict[int, Block] = {}
        self._spaces: dict[Space | None, set[int]] = {}  # which blocks are of a space
        self._next = 0
        self._trees = Trees()
        self._graves: deque[tuple[int, str]] = deque()  # (gone since, id)
        self._stale = 0
        self._tombstone_window_ms = tombstone_window_ms
        self._block = block
        self._clock = clock
        self._scan = None if backend is None else DeviceScan(backend, block)

    @property
    def epoch(self) -> int:
        """The newest published epoch."""
        return self._view.epoch

    # --- writing -------------------------------------------------------------------------------------------------

    def apply(self, records: Sequence[StandingQuery], *, now_ms: int) -> Applied:
        """Publishes a batch as one epoch (none when nothing in it is new). Idempotent; the newest version wins.

        Of two records of one version the later in the log stands: it may be the same subscription compiled anew, by
        another encoder or to another threshold (`alerts.query.v1` has one writer a key, so that later is newer).

        A refused record (InvalidRecord) does not hold back its fellows. An exception means that nothing was applied.
        """
        with self._writing:
            newest: dict[str, Draft] = {}
            accepted: list[int] = []
            refused: list[Refusal] = []
            stale = 0
            for position, record in enumerate(records):
                draft = newest.get(record.subscription_id)
                known = draft.entry if draft is not None else self._entries.get(record.subscription_id)
                if known is not None and record.version < known.query.version:
                    stale += 1
                    continue
                try:
                    newest[record.subscription_id] = draft_of(record, self._trees, now_ms)
                except InvalidRecord as error:
                    refused.append(Refusal(position, error))
                else:
                    accepted.append(position)
            if newest:
                self._publish(tuple(newest.values()), ())
            self._stale += stale
            return Applied(self.epoch, self._clock(), tuple(accepted), stale, tuple(refused), ())

    def reclaim(self, *, now_ms: int) -> int:
        """Lets go of tombstones past their window; returns how many. What is percolated does not change."""
        with self._writing:
            ended: dict[str, None] = {}
            while self._graves and self._graves[0][0] <= now_ms - self._tombstone_window_ms:
                since, subscription_id = self._graves.popleft()
                entry = self._entries.get(subscription_id)
                if entry is not None and not entry.in_force and entry.known_at == since:
                    ended[subscription_id] = None
            if ended:
                self._publish((), ended)
            return len(ended)

    def _publish(self, drafts: Sequence[Draft], ended: Iterable[str]) -> None:
        """The drafts replace what was known of their ids, the ended tombstones go: one step for readers."""
        homes, blocks = self._rebuilt(drafts)
        spaces: dict[Space | None, set[int]] = {}
        for number, block in blocks.items():
            spaces.setdefault(block.scored.space if block.scored is not None else None, set()).add(number)
        with self._lock:
            for draft in drafts:
                entry = draft.entry
                self._entries[entry.query.subscription_id] = entry
                if not entry.in_force:
                    self._graves.append((entry.known_at, entry.query.subscription_id))
            for subscription_id in ended:
                del self._entries[subscription_id]
            self._homes, self._blocks, self._spaces = homes, blocks, spaces
            self._next = max(self._next, *(number + 1 for number in blocks)) if blocks else self._next
            self._view = View(self._view.epoch + 1, tuple(blocks.values()))

    def _rebuilt(self, drafts: Sequence[Draft]) -> tuple[dict[str, int], dict[int, Block]]:
        """Homes and blocks with these drafts in the place of what was known. Changes nothing."""
        ids = {draft.entry.query.subscription_id for draft in drafts}
        touched: dict[int, list[Draft]] = {self._homes[one]: [] for one in ids if one in self._homes}
        leaving = {number: self._leaving(number, ids) for number in touched}
        number = self._next
        fresh: dict[Space | None, list[Draft]] = {}
        for draft in drafts:
            if draft.entry.in_force:
                fresh.setdefault(draft.entry.space, []).append(draft)
        for space, waiting in fresh.items():
            # Into the blocks that change anyway, then where there is room, then into new ones.
            there = sorted(self._spaces.get(space, ()), key=lambda one: (one not in touched, one))
            while waiting:
                if there:
                    target = there.pop(0)
                    room = self._block - len(self._blocks[target].entries) + leaving.get(target, 0)
                else:
                    target, room, number = number, self._block, number + 1
                if room > 0:
                    touched.setdefault(target, []).extend(waiting[:room])
                    del waiting[:room]
        homes, blocks = dict(self._homes), dict(self._blocks)
        for one in ids:
            homes.pop(one, None)
        for target, arriving in touched.items():
            old = blocks.pop(target, None)
            kept = [row for row, e in enumerate(old.entries) if e.query.subscription_id not in ids] if old else []
            if kept or arriving:
                space = arriving[0].entry.space if arriving else old.entries[kept[0]].space if old else None
                blocks[target] = build(target, self.epoch + 1, space, old, np.asarray(kept, np.int64), arriving)
                homes.update({draft.entry.query.subscription_id: target for draft in arriving})
        return homes, blocks

    def _leaving(self, number: int, ids: set[str]) -> int:
        return sum(entry.query.subscription_id in ids for entry in self._blocks[number].entries)

    # --- reading -------------------------------------------------------------------------------------------------

    def percolate(
        self, updates: Sequence[IndexUpdate], *, now_ms: int, reply_bytes: int = REPLY_BYTES
    ) -> tuple[Percolated, int]:
        """What each posting matches, exactly, and the epoch that was read. See `matching.Percolated`."""
        view = self._view
        return percolate(view.blocks, updates, now_ms, reply_bytes=reply_bytes, pairs_on=self._scan), view.epoch

    def standing(self, subscription_ids: Sequence[str], *, tenant: str) -> tuple[tuple[int, bool], ...]:
        """(newest version heard of, whether it is percolated) of each id; (-1, False) of others' and unknown ones."""
        with self._lock:
            known = [self._entries.get(subscription_id) for subscription_id in subscription_ids]
        return tuple(
            (-1, False) if entry is None or entry.query.tenant != tenant else (entry.query.version, entry.in_force)
            for entry in known
        )

    def counts(self) -> StandingCounts:
        """How many of each kind, and the memory that everything holds."""
        with self._lock:
            entries, blocks = tuple(self._entries.values()), tuple(self._blocks.values())
        live = sum(len(block.entries) for block in blocks)
        return StandingCounts(
            live=live,
            tombstones=len(entries) - live,
            without_vector=sum(len(block.entries) for block in blocks if block.scored is None),
            trees=len(self._trees),
            stale=self._stale,
            epoch=self.epoch,
            nbytes=sum(block.nbytes for block in blocks) + sum(entry.nbytes for entry in entries) + self._trees.nbytes,
            bytes_device=0 if self._scan is None else self._scan.nbytes,
        )

    # --- snapshots -----------------------------------------------------------------------------------------------

    def capture(self) -> Capture:
        """Everything at the newest epoch, to be written while the store goes on."""
        with self._writing:
            gone = tuple(entry for entry in self._entries.values() if not entry.in_force)
            return Capture(self.epoch, self._view.blocks, gone)

    def restore(self, kept: Iterable[tuple[StandingQuery, int]]) -> None:
        """Fills an empty store with (record, known at) pairs, as one epoch."""
        with self._writing:
            if self._entries:
                raise ValueError(f"restore needs an empty store, this one holds {len(self._entries)} ids")
            drafts = [draft_of(record, self._trees, known_at) for record, known_at in kept]
            drafts.sort(key=lambda draft: draft.entry.known_at)  # tombstones end in the order in which they began
            self._publish(drafts, ())
