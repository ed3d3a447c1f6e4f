"""Which pairs of standing queries and postings match, found by kernels and decided on the host.

    1. hold      the blocks of the view that is read are on the device; those that are gone give up theirs (`held.py`)
    2. stage     what the conditions say of the batch, its vectors and sketches: one copy for 64 postings
    3. percolate a superset of the pairs that pass and score enough, in no order (kernels/percolate)
    4. float64   the same exact scores and the same comparison as on a CPU (`exact.py`)

A block never changes, so what a place holds is right for as long as its block is in the view. Blocks that the device
has no memory for, or for whose launch, or whose space its multiprocessors are too small for, are left to the host, with
the reason. One batch at a time: a second one waits, and finds the device's time as free as if it had not.

Where it stands: life-of-an-alert.md, step 5.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from penstock.kernels.percolate.postings import Postings, staged
from penstock.kernels.percolate.room import Survivors
from penstock.kernels.percolate.tuning import BUCKETS, PLACE, SLAB
from penstock.retrieval.device.backend import Backend
from penstock.retrieval.percolate import scan
from penstock.retrieval.percolate.batch import Batch, Group
from penstock.retrieval.percolate.blocks import Block, Scored, gathered
from penstock.retrieval.percolate.conditions import Bits, pack, unpack
from penstock.retrieval.percolate.exact import Exact
from penstock.retrieval.percolate.held import NO_MEMORY, NO_SHARED_MEMORY, Held, Slabs, space_of
from penstock.retrieval.store.errors import OutOfRoom
from penstock.retrieval.store.planes import Space

POSTINGS = BUCKETS[-1]  # of a launch
SMALL_SLAB = 4  # places: an interpreter's stores have a few thousand queries

Pairs = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Told:
    """What a device says of a batch."""

    found: scan.Found
    other_space: int  # pairs whose vectors are not of one space
    left: Mapping[int, str]  # numbers of blocks that the host has to scan, and why; nothing above is of them


class DeviceScan:
    """The standing queries of one store on a device, and the scan of them. Any thread may ask; `_lock` lets one in."""

    def __init__(self, backend: Backend, block: int) -> None:
        """block: how many queries a block of the store has at most."""
        if block > PLACE:
            raise ValueError(f"blocks of {block} standing queries: a device's places hold {PLACE}")
        self._backend = backend
        self._held = Held(backend, SLAB if backend.is_cuda else SMALL_SLAB)
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Of device memory that standing queries hold, and what is found of them."""
        return self._held.nbytes

    def pairs(self, blocks: Sequence[Block], batch: Batch) -> Told:
        """Every match of a batch that is prepared for these blocks."""
        from triton.runtime.errors import OutOfResources  # here: a process without a device never loads triton

        with self._lock, self._backend.launching():
            left = self._held.bring(blocks)
            spaces: dict[Space | None, list[int]] = {}
            for number, block in enumerate(blocks):
                if number not in left:
                    spaces.setdefault(space_of(block), []).append(number)
            out, other_space = [scan.Found.none()], 0
            for space, numbers in spaces.items():
                try:
                    found, others = self._of_space(space, blocks, numbers, batch)
                except (OutOfRoom, torch.OutOfMemoryError):
                    left |= dict.fromkeys(numbers, NO_MEMORY)
                except OutOfResources:
                    left |= dict.fromkeys(numbers, NO_SHARED_MEMORY)
                else:
                    out += found
                    other_space += others
            return Told(scan.found(out), other_space, left)

    def _of_space(
        self, space: Space | None, blocks: Sequence[Block], numbers: Sequence[int], batch: Batch
    ) -> tuple[list[scan.Found], int]:
        """Every match of these blocks, which are of this space, and how many pairs are of two."""
        if space is None:
            everything = np.arange(len(batch))
            return [
                scan.Found(*pair, np.zeros(len(pair[0])), np.zeros(len(pair[0])))
                for pair in self._found(space, blocks, numbers, batch, everything, None)
            ], 0
        out: list[scan.Found] = []
        other_space = 0
        for group in batch.groups:
            if scan.comparable(space, group.space):
                exact = Exact(group)
                for which, rows, places in self._found(space, blocks, numbers, batch, group.places, group):
                    out += _decided(blocks, which, rows, places, group, exact)
            else:
                other_space += sum(len(blocks[number].entries) for number in numbers) * len(group.places)
        return out, other_space

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
        held = self._held.of(space)
        mine = held.places(blocks[number] for number in numbers)
        which = np.zeros(int(mine.max()) + 1, np.int64)
        which[mine] = numbers
        tenants = self._held.tenants.bits(batch)
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
                self._backend.device,
            )
            slots, places, _ = self._launched(held, mine, staging).read()
            order = np.argsort(which[slots // PLACE], kind="stable")
            slots, places = slots[order], places[order]
            yield which[slots // PLACE], slots % PLACE, postings[some][places]

    def _launched(self, held: Slabs, places: Pairs, batch: Postings) -> Survivors:
        """All that is found: again, with more room, where it was too little."""
        from penstock.kernels.percolate.triton import percolate  # here, as above

        while True:
            room = self._held.room()
            found = percolate(held.standing, held.there(places), batch, room)
            count = found.count()
            self._held.saw(count)
            if count <= room.capacity:
                return found
            del room, found  # so that the larger one is not beside it


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
