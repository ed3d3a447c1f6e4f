"""What a device holds of the standing queries: their blocks in slabs, numbers of their tenants, room for what is found.

Every byte is claimed of the device's budget (retrieval/device/backend.py) before it is allocated, and given back when
queries go: slabs that hold nobody, numbers of tenants that are gone, room that a storm needed. A block that the device
cannot take is not held, and `bring` says which and why: the host scans it.

The DeviceScan that made it owns it, and calls it under its lock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from penstock.kernels.percolate.room import Room
from penstock.kernels.percolate.rows import MOST_SKETCH, Queries, RowLayout, padded
from penstock.kernels.percolate.standing import Standing
from penstock.kernels.percolate.tuning import PLACE
from penstock.retrieval.device.backend import Backend, Claim
from penstock.retrieval.percolate.batch import Batch
from penstock.retrieval.percolate.blocks import Block, Codes
from penstock.retrieval.percolate.conditions import Bits
from penstock.retrieval.store.errors import OutOfRoom
from penstock.retrieval.store.planes import Space

TERMS = 16  # of a query that a device's record has words for; people's own words and titles have fewer
ROOM = 1 << 16  # pairs that a launch may find at first
CALM = 64  # launches in a row that need a quarter of a larger room, before it is let go of

NO_MEMORY = "the device has no memory left for these standing queries"
NO_SHARED_MEMORY = "standing queries of this width do not fit into the device's shared memory"
TOO_MANY_TERMS = "standing queries with more terms than a device's records can name"

Pairs = npt.NDArray[np.int64]
Key = tuple[int, int]  # of a block: its number, and the epoch in which it was built


def space_of(block: Block) -> Space | None:
    return block.scored.space if block.scored is not None else None


@dataclass(slots=True)
class Tide:
    """How many pairs a launch is given room for: enough at once where there were more, less after CALM launches in a
    row that needed a quarter at most."""

    room: int
    least: int
    _calm: int = 0
    _most: int = 0

    def saw(self, pairs: int) -> int:
        """A launch found so many; returns the room from now on."""
        if pairs > self.room:
            self.room, self._calm, self._most = _power(pairs), 0, 0
        elif pairs > self.room // 4 or self.room == self.least:
            self._calm = self._most = 0
        else:
            self._calm, self._most = self._calm + 1, max(self._most, pairs)
            if self._calm == CALM:
                self.room, self._calm, self._most = max(self.least, 2 * _power(self._most)), 0, 0
        return self.room


class Tenants:
    """A number for each tenant of the blocks that are held; the number of one who has none left is given again."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._blocks: Counter[str] = Counter()
        self._free: list[int] = []

    def __len__(self) -> int:
        """How many numbers there are, given or not."""
        return len(self._numbers) + len(self._free)

    def enter(self, tenants: Sequence[str]) -> Codes:
        """The numbers of a block's tenants."""
        for tenant in tenants:
            if tenant not in self._numbers:
                self._numbers[tenant] = self._free.pop() if self._free else len(self._numbers)
            self._blocks[tenant] += 1
        return np.asarray([self._numbers[tenant] for tenant in tenants], np.int32)

    def leave(self, tenants: Iterable[str]) -> None:
        """A block of theirs is gone."""
        for tenant in tenants:
            self._blocks[tenant] -= 1
            if not self._blocks[tenant]:
                del self._blocks[tenant]
                self._free.append(self._numbers.pop(tenant))

    def bits(self, batch: Batch) -> Bits:
        """uint64 [numbers, words]: of each number's tenant its postings of the batch."""
        theirs = batch.of_tenants(tuple(self._numbers))
        out = np.zeros((len(self), theirs.shape[1]), np.uint64)
        out[list(self._numbers.values())] = theirs
        return out


@dataclass(frozen=True, slots=True)
class _Placed:
    place: int
    tenants: tuple[str, ...]


@dataclass(slots=True)
class Slabs:
    """The blocks of one space on the device."""

    standing: Standing
    placed: dict[Key, _Placed] = field(default_factory=dict)
    scanned: tuple[Pairs, torch.Tensor] | None = None  # the places that were read last, and these on the device

    def places(self, blocks: Iterable[Block]) -> Pairs:
        return np.asarray([self.placed[_key(block)].place for block in blocks], np.int64)

    def there(self, places: Pairs) -> torch.Tensor:
        """The places on the device: int32, copied only when they changed."""
        if self.scanned is None or not np.array_equal(self.scanned[0], places):
            self.scanned = places, torch.from_numpy(places.astype(np.int32)).to(self.standing.device)
        return self.scanned[1]


class Held:
    """`slab`: places that are allocated at once."""

    def __init__(self, backend: Backend, slab: int) -> None:
        self.tenants = Tenants()
        self._device = backend.device
        self._slab = slab
        self._claim = Claim(backend.budget)
        self._spaces: dict[Space | None, Slabs] = {}
        self._tide = Tide(ROOM, ROOM)
        self._room: Room | None = None

    @property
    def nbytes(self) -> int:
        """Of device memory."""
        room = self._room
        return sum(one.standing.nbytes for one in tuple(self._spaces.values())) + (0 if room is None else room.nbytes)

    def of(self, space: Space | None) -> Slabs:
        """Of a space that a block which is held is of."""
        return self._spaces[space]

    def bring(self, blocks: Sequence[Block]) -> dict[int, str]:
        """Brings the device to these blocks; of those that it cannot take their numbers, and why."""
        self._let_go(blocks)
        left: dict[int, str] = {}
        full: set[Space | None] = set()
        for number, block in enumerate(blocks):
            space = space_of(block)
            held = self._spaces.get(space)
            if held is not None and _key(block) in held.placed:
                continue
            if space is not None and space.sketch > MOST_SKETCH:
                left[number] = TOO_MANY_TERMS
            elif space in full and (held is None or held.standing.full):
                left[number] = NO_MEMORY
            else:
                try:
                    self._put(block, space)
                except (OutOfRoom, torch.OutOfMemoryError):
                    full.add(space)
                    left[number] = NO_MEMORY
        self._settle()
        return left

    def room(self) -> Room:
        """Where a launch puts what it finds. Raises OutOfRoom, OutOfMemoryError."""
        if self._room is None:
            pairs = self._tide.room
            try:
                self._claim.resize(f"room for {pairs:,} pairs of standing queries and postings", self._bytes(pairs))
                self._room = Room(self._device, pairs)
            except (OutOfRoom, torch.OutOfMemoryError):
                self._tide = Tide(ROOM, ROOM)
                raise
        self._room.fit(self._listed())
        return self._room

    def saw(self, pairs: int) -> None:
        """A launch found so many: the next `room` is made for it."""
        before = self._tide.room
        if self._tide.saw(pairs) != before:
            self._room = None

    def _let_go(self, blocks: Sequence[Block]) -> None:
        """Of what is not among these."""
        wanted, spaces = {_key(block) for block in blocks}, {space_of(block) for block in blocks}
        for space, held in list(self._spaces.items()):
            for key in held.placed.keys() - wanted:
                placed = held.placed.pop(key)
                held.standing.free(placed.place)
                self.tenants.leave(placed.tenants)
            if space not in spaces:
                del self._spaces[space]

    def _put(self, block: Block, space: Space | None) -> None:
        """Raises OutOfRoom, OutOfMemoryError, and then nothing has changed."""
        held = self._spaces.get(space)
        if held is None:
            held = Slabs(Standing(_layout(space), self._device, slab=self._slab))
        standing = held.standing
        if standing.full:
            what = f"a slab of {standing.slab * PLACE:,} standing queries on the device"
            self._claim.resize(what, self._bytes(self._tide.room, standing))
        numbers = self.tenants.enter(block.tenants)
        try:
            place = standing.put(_queries(block), numbers[block.tenant_of], block.demands)
        except BaseException:
            self.tenants.leave(block.tenants)
            raise
        held.placed[_key(block)] = _Placed(place, block.tenants)
        self._spaces[space] = held

    def _settle(self) -> None:
        """Lets go of slabs that nobody is in, and gives back what was claimed for more than there is."""
        for held in self._spaces.values():
            held.standing.trim()
        if not self._spaces:
            self._room, self._tide = None, Tide(ROOM, ROOM)
        needed = self._bytes(self._tide.room) if self._spaces else 0
        self._claim.resize("the standing queries that the device holds", needed)

    def _bytes(self, pairs: int, growing: Standing | None = None) -> int:
        """Of all that there is, with room for so many pairs, and a slab more of one that grows."""
        slabs = sum(held.standing.nbytes for held in self._spaces.values())
        if growing is not None:
            slabs += growing.slab_bytes
        return slabs + Room.bytes_for(pairs, self._listed(growing))

    def _listed(self, growing: Standing | None = None) -> int:
        """How many queries a launch may list: of one space all that there is room for."""
        rows = [held.standing.rows for held in self._spaces.values()]
        if growing is not None:
            rows.append(growing.rows + growing.slab * PLACE)
        return max(rows)


def _layout(space: Space | None) -> RowLayout:
    return RowLayout(padded(space.dense), TERMS if space.sketch else 0) if space else RowLayout(0, 0)


def _queries(block: Block) -> Queries:
    scored, count = block.scored, len(block.entries)
    if scored is None:
        return Queries(
            dense=torch.zeros((count, 0)),
            starts=np.zeros(count + 1, np.int64),
            terms=np.zeros(0, np.int64),
            weights=np.zeros(0, np.float32),
            norms=np.zeros((count, 2)),
            thresholds=np.full(count, -np.inf),
        )
    return Queries(
        dense=scored.dense,
        starts=scored.starts.numpy().astype(np.int64),
        terms=scored.terms.numpy().astype(np.int64),
        weights=scored.weights.numpy(),
        norms=scored.norms,
        thresholds=scored.thresholds,
    )


def _key(block: Block) -> Key:
    return block.number, block.built


def _power(count: int) -> int:
    """The least power of two that is not below it."""
    return 1 << max(count - 1, 0).bit_length()
