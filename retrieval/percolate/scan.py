"""Which (standing query, posting) pairs score enough: a float32 pass with a certified error, then float64.

    1. gather    of block after block the queries that pass for any of a group's postings, until they fill a tile
    2. float32   the tile times these postings at once, and a bound e on every score's distance from the exact one
    3. certify   a pair that passes is left out only where its score + e is below the query's threshold
    4. float64   the rest is rescored exactly (`exact.py`), and what reaches the threshold is a match

The bound is that of retrieval/search/scan_first.py (Higham, section 3.1), here of D + t + 1 terms added in any order:
the dense product is accumulated onto the lexical one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from penstock.retrieval.percolate.batch import Group
from penstock.retrieval.percolate.blocks import Scored, gathered
from penstock.retrieval.percolate.conditions import Bits, pack, unpack
from penstock.retrieval.percolate.exact import Exact, parts
from penstock.retrieval.search.scan_first import off_by
from penstock.retrieval.store.planes import Space

TILE = 2_048  # queries scored at once: 3 MB of 384 values
_SAFE = 1e37  # |q| |p| below it: no product and no partial sum of theirs leaves float32's range

Pairs = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]


def comparable(query: Space, posting: Space | None) -> bool:
    """Whether an inner product of the two means anything. A part that one of them lacks scores 0."""
    if posting is None:
        return True
    widths = ((query.dense, posting.dense), (query.sketch, posting.sketch))
    return query.space_id == posting.space_id and all(not a or not b or a == b for a, b in widths)


@dataclass(frozen=True, slots=True)
class Found:
    """Pairs, as parallel arrays [m]: the block and its row, the posting of the batch, both parts of the score."""

    blocks: Pairs  # places in what was scanned
    rows: Pairs
    places: Pairs
    dense: Doubles
    lexical: Doubles

    @classmethod
    def none(cls) -> Found:
        some = np.zeros(0, np.int64)
        return cls(some, some, some, np.zeros(0), np.zeros(0))


def found(parts: Sequence[Found]) -> Found:
    """All of them as one."""
    names = ("blocks", "rows", "places", "dense", "lexical")
    return Found(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def matches(scored: Sequence[tuple[int, Scored]], passing: Sequence[Bits], group: Group) -> Iterator[Found]:
    """The matches among the pairs of `passing` (uint64 [n, words] of each block: a bit for each row of the group).

    `scored`: the blocks' vectors, all of one space that is comparable with the group's, and the blocks' numbers.
    """
    exact = Exact(group)
    pieces: list[tuple[int, Scored, Pairs]] = []
    bits: list[Bits] = []
    held = 0
    for (number, one), mine in zip(scored, passing, strict=True):
        rows = np.flatnonzero(mine.any(axis=1))
        if not len(rows):
            continue
        if held and held + len(rows) > TILE:
            yield _of_tile(pieces, np.concatenate(bits), group, exact)
            pieces, bits, held = [], [], 0
        pieces.append((number, one, rows))
        bits.append(mine[rows])
        held += len(rows)
    if pieces:
        yield _of_tile(pieces, np.concatenate(bits), group, exact)


def _of_tile(pieces: Sequence[tuple[int, Scored, Pairs]], passing: Bits, group: Group, exact: Exact) -> Found:
    tile = gathered([(scored, rows) for _, scored, rows in pieces])
    rows, columns = _candidates(tile, group, passing)
    dense, lexical = exact.scores(tile, rows, columns)
    enough = np.flatnonzero(dense + lexical >= tile.thresholds[rows])
    rows = rows[enough]
    lengths = [len(each) for _, _, each in pieces]
    return Found(
        blocks=np.repeat([number for number, _, _ in pieces], lengths)[rows],
        rows=np.concatenate([each for _, _, each in pieces])[rows],
        places=group.places[columns[enough]],
        dense=dense[enough],
        lexical=lexical[enough],
    )


def _candidates(tile: Scored, group: Group, passing: Bits) -> tuple[Pairs, Pairs]:
    """(rows of the tile, rows of the group) of the pairs in `passing` that may reach the threshold; those that do are
    in."""
    by_dense, by_term = parts(tile, group)
    if not by_dense and not by_term:
        left = np.where(tile.thresholds[:, None] <= 0, passing, np.uint64(0))
    else:
        if by_term:
            score = torch.nn.functional.embedding_bag(
                tile.terms,
                group.table,
                tile.starts,
                mode="sum",
                per_sample_weights=tile.weights,
                include_last_offset=True,
            )
        else:
            score = torch.zeros((len(tile.thresholds), len(group.places)))
        if by_dense:
            score.addmm_(tile.dense, group.columns)
        scores = score.numpy()
        least, safe = _least(tile, group, by_dense, by_term)
        keep = scores >= least[:, None]
        if not safe:  # a product that left float32's range says nothing: such a pair is always rescored
            keep |= ~np.isfinite(scores)
        left = pack(keep, passing.shape[1]) & passing
    some = np.flatnonzero(left.any(axis=1))
    row, column = np.nonzero(unpack(left[some], len(group.places)))
    return some[row], column


def _least(scored: Scored, group: Group, by_dense: bool, by_term: bool) -> tuple[npt.NDArray[np.float32], bool]:
    """The lowest score that each query may show and be kept, float32 [n]; whether no product can leave float32."""
    sizes = scored.norms * np.asarray(group.norms)
    terms = scored.space.dense * by_dense + scored.longest * by_term
    slack = float(off_by(np.asarray(terms))) * (sizes[:, 0] * by_dense + sizes[:, 1] * by_term)
    # What the norms' own rounding and underflow in float32 can add.
    slack = slack * (1 + 1e-9) + terms * 1e-37
    with np.errstate(over="ignore"):  # a threshold beyond float32 becomes infinite, and nextafter brings it back
        least = np.nextafter((scored.thresholds - slack).astype(np.float32), np.float32(-np.inf))
    return least, bool(sizes.max() < _SAFE)
