"""Which pairs of standing queries and postings match, found by kernels and decided on the host.

    1. hold      the blocks of the view that is read are on the device; those that are gone give up their places
    2. stage     what the conditions say of the batch, its vectors and sketches: one copy for 64 postings
    3. percolate a superset of the pairs that pass and score enough, in no order (kernels/percolate)
    4. float64   the same exact scores and the same comparison as on a CPU (`exact.py`)

A block never changes, so what a place holds is right for as long as its block is in the view. One batch at a time: a
second one waits, and finds the device's time as free as if it had not.

Where it stands: life-of-an-alert.md, step 5.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from penstock.retrieval.device.backend import INTERPRETING
from penstock.retrieval.percolate import scan
from penstock.retrieval.percolate.batch import Batch, Group
from penstock.retrieval.percolate.blocks import Block, Scored, gathered
from penstock.retrieval.percolate.conditions import Bits, pack, unpack
from penstock.retrieval.percolate.exact import Exact
from penstock.retrieval.store.planes import Space

if TYPE_CHECKING:
    from penstock.kernels.percolate.rows import Queries
    from penstock.kernels.percolate.standing import Standing

DEVICES = ("cuda", "interpreter")
TERMS = 16  # of a query that a device's record has words for; people's own words and titles have fewer
POSTINGS = 64  # of a launch
ROOM = 1 << 16  # pairs that a launch may find at first

Pairs = npt.NDArray[np.int64]
Key = tuple[int, int]  # of a block: its number, and the epoch in which it was built


@dataclass(slots=True)
class _Held:
    """The blocks of one space on the device."""

    standing: Standing
    places: dict[Key, int] = field(default_factory=dict)
    scanned: tuple[Pairs, torch.Tensor] | None = None  # the places that were read last, and these on the device

    def there(self, places: Pairs) -> torch.Tensor:
        """The places on the device: int32, copied only when they changed."""
        if self.scanned is None or not np.array_equal(self.scanned[0], places):
            self.scanned = places, torch.from_numpy(places.astype(np.int32)).to(self.standing.device)
        return self.scanned[1]


class DeviceScan:
    """The standing queries of one store on a device, and the scan of them. Any thread may ask; `_lock` lets one in."""

    def __init__(self, device: str, block: int) -> None:
        """block: how many queries a block of the store has at most."""
        if device not in DEVICES:
            raise ValueError(f"device {device!r}: expected {' or '.join(DEVICES)}, or a store without one for cpu")
        # Here and not above: a process without a device never loads triton.
        from penstock.kernels.percolate import triton, tuning

        interpreted = device == "interpreter"
        if interpreted != triton.INTERPRET:
            raise ValueError(
                f"device {device!r} with kernels that {'are' if triton.INTERPRET else 'are not'} interpreted: "
                "TRITON_INTERPRET=1 in the environment makes them so, from before the process begins"
            )
        if block > tuning.PLACE:
            raise ValueError(f"blocks of {block} standing queries: a device's places hold {tuning.PLACE}")
        self._device = torch.device("cuda" if device == "cuda" else "cpu")
        self._slab = tuning.SLAB if device == "cuda" else 4
        self._room = triton.Room(self._device, ROOM)
        self._held: dict[Space | None, _Held] = {}
        self._tenants: dict[str, int] = {}
        self._lock = INTERPRETING if interpreted else threading.Lock()

    @property
    def nbytes(self) -> int:
        """Of device memory that standing queries hold, and what is found of them."""
        return self._room.nbytes + sum(held.standing.nbytes for held in tuple(self._held.values()))

    def pairs(self, blocks: Sequence[Block], batch: Batch) -> tuple[scan.Found, int]:
        """Every match of a batch that is prepared for these blocks, and how many pairs are of two spaces."""
        with self._lock:
            spaces: dict[Space | None, list[int]] = {}
            for number, block in enumerate(blocks):
                spaces.setdefault(_space(block), []).append(number)
            self._hold(blocks)
            out, other_space = [scan.Found.none()], 0
            for space, numbers in spaces.items():
                if space is None:
                    everything = np.arange(len(batch))
                    out += [
                        scan.Found(*pair, np.zeros(len(pair[0])), np.zeros(len(pair[0])))
                        for pair in self._found(space, blocks, numbers, batch, everything, None)
                    ]
                    continue
                for group in batch.groups:
                    if scan.comparable(space, group.space):
                        found = self._found(space, blocks, numbers, batch, group.places, group)
                        exact = Exact(group)
                        for which, rows, places in found:
                            out += _decided(blocks, which, rows, places, group, exact)
                    else:
                        other_space += sum(len(blocks[number].entries) for number in numbers) * len(group.places)
            return scan.found(out), other_space

    def _hold(self, blocks: Sequence[Block]) -> None:
        """Brings the device to these blocks."""
        from penstock.kernels.percolate.rows import RowLayout, padded
        from penstock.kernels.percolate.standing import Standing

        wanted = {_key(block) for block in blocks}
        for held in self._held.values():
            for key in held.places.keys() - wanted:
                held.standing.free(held.places.pop(key))
        for block in blocks:
            space = _space(block)
            if space not in self._held:
                layout = RowLayout(padded(space.dense), TERMS if space.sketch else 0) if space else RowLayout(0, 0)
                self._held[space] = _Held(Standing(layout, self._device, slab=self._slab))
            held = self._held[space]
            if _key(block) not in held.places:
                codes = [self._tenants.setdefault(tenant, len(self._tenants)) for tenant in block.tenants]
                tenants = np.asarray(codes, np.int32)[block.tenant_of]
                held.places[_key(block)] = held.standing.put(_queries(block), tenants, block.demands)

    def _found(
        self,
        space: Space | None,
        blocks: Sequence[Block],
        numbers: Sequence[int],
        batch: Batch,
        postings: Pairs,
        group: Group | None,
    ) -> Iterator[tuple[Pairs, Pairs, Pairs]]:
        """(block, row, posting of the batch) of what may match among these postings, by block and row, a launch each.

        group: whose postings they are, in its order; None: only their filters count.
        """
        from penstock.kernels.percolate.postings import staged
        from penstock.kernels.percolate.triton import Room, percolate
        from penstock.kernels.percolate.tuning import PLACE

        held = self._held[space]
        mine = np.asarray([held.places[_key(blocks[number])] for number in numbers], np.int64)
        which = np.zeros(int(mine.max()) + 1, np.int64)
        which[mine] = numbers
        there = held.there(mine)
        tenants = batch.of_tenants(tuple(self._tenants))
        for begin in range(0, len(postings), POSTINGS):
            some = slice(begin, begin + POSTINGS)
            dense, sketch = _vectors(space, group, some, len(postings[some]))
            staging = staged(
                held.standing.layout,
                dense,
                sketch,
                group.norms if group is not None else (0.0, 0.0),
                _word(batch.bits(), len(batch), postings[some]),
                _word(tenants, len(batch), postings[some]),
                self._device,
            )
            found = percolate(held.standing, there, staging, self._room)
            count = found.count()
            if count > self._room.capacity:
                self._room = Room(self._device, 1 << (count - 1).bit_length())
                found = percolate(held.standing, there, staging, self._room)
            slots, places, _ = found.read()
            order = np.argsort(which[slots // PLACE], kind="stable")
            slots, places = slots[order], places[order]
            yield which[slots // PLACE], slots % PLACE, postings[some][places]


def _decided(
    blocks: Sequence[Block], which: Pairs, rows: Pairs, places: Pairs, group: Group, exact: Exact
) -> Iterator[scan.Found]:
    """The matches among pairs of one space and the group, by block and row: (block, row, posting of the batch)."""
    columns = np.searchsorted(group.places, places)
    # A query that several postings may match is gathered once.
    new = np.ones(len(which), np.bool_)
    new[1:] = (which[1:] != which[:-1]) | (rows[1:] != rows[:-1])
    query = np.cumsum(new) - 1
    firsts = np.flatnonzero(new)
    for begin in range(0, len(firsts), scan.TILE):
        some = firsts[begin : begin + scan.TILE]
        first, last = np.searchsorted(query, [begin, begin + len(some)])
        tile = gathered([(scored, rows[some[of]]) for scored, of in _by_block(blocks, which[some])])
        mine = slice(int(first), int(last))
        dense, lexical = exact.scores(tile, query[mine] - begin, columns[mine])
        enough = np.flatnonzero(dense + lexical >= tile.thresholds[query[mine] - begin])
        yield scan.Found(which[mine][enough], rows[mine][enough], places[mine][enough], dense[enough], lexical[enough])


def _by_block(blocks: Sequence[Block], which: Pairs) -> Iterator[tuple[Scored, slice]]:
    """Of ascending numbers of blocks, each block's vectors and where its own are."""
    numbers, begins = np.unique(which, return_index=True)
    for number, begin, end in zip(numbers.tolist(), begins.tolist(), [*begins.tolist()[1:], len(which)], strict=True):
        scored = blocks[number].scored
        assert scored is not None
        yield scored, slice(begin, end)


def _vectors(space: Space | None, group: Group | None, some: slice, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Those parts of the postings' vectors that the queries have too."""
    nothing = torch.zeros((count, 0), dtype=torch.bfloat16), torch.zeros((count, 0), dtype=torch.int8)
    if space is None or group is None:
        return nothing
    dense = group.dense[some] if space.dense else nothing[0]
    if not space.sketch:
        return dense, nothing[1]
    # Postings without a sketch score 0 by words: lines of zeros, since a query's terms name lines that must be there.
    none = group.sketch.shape[1] == 0
    return dense, torch.zeros((count, space.sketch), dtype=torch.int8) if none else group.sketch[some]


def _word(bits: Bits, count: int, postings: Pairs) -> npt.NDArray[np.int64]:
    """int64 [n]: of bits of the batch's `count` postings those of at most 64 of them, in their order."""
    if len(postings) == count:
        return bits[:, 0].view(np.int64)
    return pack(unpack(bits, count)[:, postings], 1)[:, 0].view(np.int64)


def _queries(block: Block) -> Queries:
    from penstock.kernels.percolate.rows import Queries

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


def _space(block: Block) -> Space | None:
    return block.scored.space if block.scored is not None else None


def _key(block: Block) -> Key:
    return block.number, block.built
