"""A handful of seeded forwards against the oracle, for benchmarks and tests."""

from __future__ import annotations

import torch
from torch import Tensor

from penstock.kernels.gather_tokens import reference
from penstock.kernels.gather_tokens.triton import gather_tokens
from penstock.kernels.gather_tokens.tuning import NUMBERS, TOKENS

POISON = -(2**31)


def differing(pieces: Tensor, sent: Tensor, arena: Tensor, tokens: int) -> int:
    """Integers, in memory that was poisoned, that are not the oracle's. Behind the pieces stand wild ones."""
    wild = torch.full((3, NUMBERS), 2**30, dtype=torch.int32, device=pieces.device)
    count = torch.tensor([len(pieces)], dtype=torch.int32, device=pieces.device)
    out = torch.full((3, tokens), POISON, dtype=torch.int32, device=pieces.device)
    wanted = reference.gather_tokens(pieces.cpu(), sent.cpu(), arena.cpu(), out.cpu())
    gather_tokens(torch.cat([pieces, wild]), count, sent, arena, *out)
    return int((out.cpu().long() != wanted).sum())


def sample(
    lengths: list[int], seed: int, sent: int = 70, blocks: int = 4, gap: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Pieces of these lengths, `gap` places apart: tokens that are sent, an arena's, vectors. And both tables."""
    chance = torch.Generator().manual_seed(seed)
    pieces, place = [], gap
    for length in lengths:
        kind = int(torch.randint(0, 3 if blocks else 2, (), generator=chance))
        if kind == 0:
            source = int(torch.randint(0, sent - length + 1, (), generator=chance))
        elif kind == 1:
            source = -1 - int(torch.randint(0, 9, (), generator=chance))
        else:
            source = sent + TOKENS * int(torch.randint(0, blocks, (), generator=chance))
        position = int(torch.randint(0, 900, (), generator=chance))
        pieces.append([place, length, position, max(0, place - position), source])
        place += length + gap
    whole = torch.randint(0, 152_000, (sent + TOKENS * blocks,), generator=chance, dtype=torch.int32)
    return torch.tensor(pieces, dtype=torch.int32).reshape(-1, NUMBERS), whole[:sent].clone(), whole[sent:].clone()


def mismatches() -> int:
    """How many integers are wrong."""
    wrong = 0
    for seed, (lengths, gap) in enumerate((([1], 0), ([32, 32, 7], 1), ([1, 31, 32, 5] * 30, 0), ([1] * 300, 2))):
        pieces, sent, arena = sample(lengths, seed, gap=gap)
        wrong += differing(pieces, sent, arena, sum(lengths) + gap * (len(lengths) + 1))
    return wrong
