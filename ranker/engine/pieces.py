"""A forward as pieces, which a device makes tokens, positions and segments of (kernels/gather_tokens). Pure numpy.

A piece is up to BLOCK neighbouring places of one segment and says where what stands there comes from: tokens that are
sent, a block of the device's arena, vectors that are sent, or a vector of the arena. So of an item that the device has,
only pieces are sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.ranker.engine.blocks import BLOCK
from penstock.ranker.engine.plan import Forward, Tokens, runs

NUMBERS = 5  # of a piece: its first place, its length, that place's position, its segment's first place, its source


@dataclass(frozen=True, slots=True)
class Pieces:
    """Every place of a forward is in one piece, in order."""

    table: NDArray[np.int32]  # [n, NUMBERS]
    tokens: Tokens  # that are sent
    rows: NDArray[np.float32]  # vectors that are sent [E, hidden]

    @property
    def numbers(self) -> int:
        """int32 of what is sent."""
        return self.table.size + len(self.tokens)


def pieces_of(
    forward: Forward, places: Sequence[NDArray[np.int32] | None], *, begin: int, kept_tokens: int, kept_rows: int
) -> Pieces:
    """`places`: for each item the blocks of the arena that its tokens, or vectors, lie in, or None: they are sent.

    A source from `begin` on is a token that is sent, behind all pieces; one from `kept_tokens` on the arena's, counted
    in tokens; one below 0 is ~row of a vector: of one that is sent, or from `kept_rows` on the arena's.
    """
    numbers = np.concatenate([np.full(len(forward.prefixes), -1), np.arange(len(forward.items))])
    spans = np.concatenate([forward.prefixes, forward.items]).astype(np.int64)
    keep = spans[:, 1] > spans[:, 0]  # an empty prefix has no place
    order = np.flatnonzero(keep)[np.argsort(spans[keep, 0], kind="stable")]
    numbers, (firsts, ends) = numbers[order], spans[order].T
    vectors = np.searchsorted(forward.embedded, ends) - np.searchsorted(forward.embedded, firsts)

    # a segment is a run of vectors and a run of tokens, either of which may be missing
    lengths = np.stack([vectors, ends - firsts - vectors], axis=1).reshape(-1)
    at = np.stack([firsts, firsts + vectors], axis=1).reshape(-1)
    is_rows = np.tile([True, False], len(firsts))
    there = np.array([False, *(place is not None for place in places)])[numbers + 1]
    is_there = np.stack([there & (vectors > 0), there & (vectors == 0)], axis=1).reshape(-1)
    starts = np.repeat(firsts, 2)
    positions = np.repeat(forward.positions[firsts], 2) + at - starts
    some = lengths > 0
    lengths, at, is_rows, is_there = lengths[some], at[some], is_rows[some], is_there[some]
    starts, positions = starts[some], positions[some]

    width = np.where(is_rows & is_there, 1, BLOCK)  # an arena's vectors are no neighbours
    counts = -(-lengths // width)
    run = np.repeat(np.arange(len(counts)), counts)
    within = runs(np.zeros(len(counts), np.int64), counts) * width[run]
    table = np.empty((len(run), NUMBERS), np.int32)
    table[:, 0] = at[run] + within
    table[:, 1] = np.minimum(width[run], lengths[run] - within)
    table[:, 2] = positions[run] + within
    table[:, 3] = starts[run]
    sent_tokens, sent_rows = (~is_there & (is_rows == kind) for kind in (False, True))
    firsts = np.where(is_rows, -1 - _before(lengths, sent_rows), begin + table.size + _before(lengths, sent_tokens))
    table[:, 4] = firsts[run] + np.where(is_rows, -1, 1)[run] * within
    if there.any():
        blocks = np.concatenate([place for place in places if place is not None])
        chosen = is_there[run]
        table[chosen, 4] = np.where(is_rows[run][chosen], -1 - kept_rows - blocks, kept_tokens + BLOCK * blocks)
    return Pieces(
        table=table,
        tokens=_those(forward.tokens, sent_tokens, lengths),
        rows=_those(forward.rows, sent_rows[is_rows], lengths[is_rows]),
    )


def _those(values: NDArray[Any], chosen: NDArray[np.bool_], lengths: NDArray[np.int64]) -> NDArray[Any]:
    """Of values that stand in runs, those of chosen runs."""
    return values if chosen.all() else values[np.repeat(chosen, lengths)]


def _before(lengths: NDArray[np.int64], chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Of each, the sum of those chosen before it."""
    of_chosen = np.where(chosen, lengths, 0)
    found: NDArray[np.int64] = np.cumsum(of_chosen) - of_chosen
    return found
