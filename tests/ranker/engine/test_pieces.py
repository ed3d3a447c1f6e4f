"""A forward as pieces: put together again by the kernel's oracle they are the forward, wherever items lie."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from penstock.kernels.gather_tokens import reference
from penstock.kernels.gather_tokens.tuning import NUMBERS as KERNELS_NUMBERS
from penstock.kernels.gather_tokens.tuning import TOKENS
from penstock.ranker.engine.blocks import BLOCK
from penstock.ranker.engine.pieces import NUMBERS, pieces_of
from penstock.ranker.engine.plan import Request, Text, Vectors, plan

BEGIN, KEPT, ROWS = 24, 5_000, 700  # where what is sent begins, and the arena's tokens and vectors
HIDDEN = 4


def test_pieces_are_as_the_kernel_has_them():
    assert (BLOCK, NUMBERS) == (TOKENS, KERNELS_NUMBERS)


class Arena:
    """Blocks that are no neighbours, in a table of tokens and one of vectors."""

    def __init__(self, chance):
        self.order = {True: iter(chance.permutation(60)), False: iter(chance.permutation(60))}
        self.tokens = np.full((60, BLOCK), -7, np.int32)
        self.vectors = np.full((60, HIDDEN), np.nan, np.float32)

    def keep(self, item):
        values, unit = (item.rows, 1) if isinstance(item, Vectors) else (item.tokens, BLOCK)
        of_vectors = isinstance(item, Vectors)
        blocks = np.array([next(self.order[of_vectors]) for _ in range(-(-len(values) // unit))], np.int32)
        if of_vectors:
            self.vectors[blocks] = values
        else:
            padded = np.zeros(len(blocks) * BLOCK, np.int32)
            padded[: len(values)] = values
            self.tokens[blocks] = padded.reshape(-1, BLOCK)
        return blocks


_lengths = st.sampled_from([1, 2, 31, 32, 33, 64, 70])
_items = st.lists(st.tuples(_lengths, st.sampled_from([0, 0, 1, 3, 33]), st.booleans()), min_size=1, max_size=6)
_requests = st.lists(st.tuples(st.sampled_from([0, 1, 32, 45]), _items), min_size=1, max_size=3)


@given(_requests, st.integers(0, 99))
def test_put_together_again_they_are_the_forward(wanted, seed):
    chance = np.random.default_rng(seed)
    arena, chosen, requests = Arena(chance), {}, []
    for prefix, items in wanted:
        made = []
        for length, vectors, there in items:
            tokens = chance.integers(0, 900, length, dtype=np.int32)
            item = Vectors(chance.standard_normal((vectors, HIDDEN), np.float32), tokens) if vectors else Text(tokens)
            room = not vectors or vectors + sum(isinstance(one, Vectors) for one in chosen) * 33 < 60
            if there and len(chosen) < 12 and room:
                chosen[id(item)] = item
            made.append(item)
        requests.append(Request(chance.integers(0, 900, prefix, dtype=np.int32), tuple(made)))
    (forward,) = plan(requests, 10_000, 10_000)
    in_order = [requests[request].items[item] for request, item in forward.scores_of.tolist()]
    places, taken = [], {True: 0, False: 0}
    for item in in_order:
        of_vectors = isinstance(item, Vectors)
        needed = len(item.rows) if of_vectors else -(-len(item.tokens) // BLOCK)
        fits = id(item) in chosen and taken[of_vectors] + needed <= 60
        taken[of_vectors] += needed if fits else 0
        places.append(arena.keep(item) if fits else None)

    pieces = pieces_of(forward, places, begin=BEGIN, kept_tokens=KEPT, kept_rows=ROWS)

    sent = np.full(KEPT, -9, np.int32)
    behind = BEGIN + pieces.table.size
    sent[behind : behind + len(pieces.tokens)] = pieces.tokens
    assert pieces.table.size + len(pieces.tokens) == pieces.numbers
    assert pieces.table[:, 1].min() >= 1 and pieces.table[:, 1].max() <= BLOCK
    assert np.array_equal(
        np.sort(np.concatenate([np.arange(p, p + n) for p, n in pieces.table[:, :2]])), np.arange(len(forward))
    )
    untouched = torch.full((3, len(forward)), -1, dtype=torch.int32)
    tables = torch.from_numpy(sent), torch.from_numpy(arena.tokens.reshape(-1))
    codes, positions, starts = reference.gather_tokens(torch.from_numpy(pieces.table), *tables, untouched).numpy()
    assert np.array_equal(positions, forward.positions)
    assert np.array_equal(starts, forward.starts)
    own = np.ones(len(forward), bool)
    own[forward.embedded] = False
    assert np.array_equal(codes[own], forward.tokens[own])
    rows = np.concatenate([np.full((ROWS, HIDDEN), np.nan, np.float32), arena.vectors])
    rows[: len(pieces.rows)] = pieces.rows.reshape(-1, HIDDEN)
    assert np.array_equal(rows[~codes[forward.embedded]], forward.rows.reshape(-1, HIDDEN))
    there = sum(
        len(item) - (len(item.tail) if isinstance(item, Vectors) else 0)
        for item, place in zip(in_order, places, strict=True)
        if place is not None
    )
    assert len(pieces.tokens) + len(pieces.rows) == len(forward) - there
