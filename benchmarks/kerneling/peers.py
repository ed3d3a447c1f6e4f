"""What people would use instead: torch's products and topk, eager, by chunks, compiled; bf16 in, float32 scores out.

Peers answer approximately (float32 order, no epochs) and hold one plain tensor: that is their advantage, and it stays.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

CHUNK = 1 << 20  # rows of a chunk: the scores of 64 queries are 256 MB
Peer = Callable[[int], tuple[torch.Tensor, torch.Tensor]]


def product(rows: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    """float32 [B, n] of bfloat16 rows [n, D] and queries [B, D]."""
    if rows.is_cuda:
        return torch.mm(queries, rows.T, out_dtype=torch.float32)
    return queries.float() @ rows.float().T


def eager(rows: torch.Tensor, queries: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    found = torch.topk(product(rows, queries), k, dim=1)
    return found.values, found.indices


def chunked(rows: torch.Tensor, queries: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The scores of all rows are never there at once."""
    values, indices = [], []
    for begin in range(0, len(rows), CHUNK):
        part = product(rows[begin : begin + CHUNK], queries)
        found = torch.topk(part, min(k, part.shape[1]), dim=1)
        values.append(found.values)
        indices.append(found.indices + begin)
    best = torch.topk(torch.cat(values, 1), k, dim=1)
    return best.values, torch.cat(indices, 1).gather(1, best.indices)


def masked(rows: torch.Tensor, mask: torch.Tensor, queries: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """mask bool [n]: rows that pass."""
    scores = product(rows, queries).masked_fill_(~mask[None, :], -torch.inf)
    found = torch.topk(scores, k, dim=1)
    return found.values, found.indices


def gathered(
    rows: torch.Tensor, mask: torch.Tensor, queries: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    places = mask.nonzero().flatten()
    found = torch.topk(product(rows.index_select(0, places), queries), k, dim=1)
    return found.values, places[found.indices]


def unfiltered(rows: torch.Tensor, queries: list[torch.Tensor], k: int) -> dict[str, Peer]:
    """By name; `queries` are the buffers that take turns, bfloat16 [B, D]."""
    peers: dict[str, Peer] = {
        "torch eager": lambda buffer: eager(rows, queries[buffer], k),
        "torch chunked": lambda buffer: chunked(rows, queries[buffer], k),
    }
    if rows.is_cuda:  # on a CPU nothing is timed
        whole = torch.compile(eager, mode="max-autotune-no-cudagraphs")
        peers["torch compiled"] = lambda buffer: whole(rows, queries[buffer], k)
    return peers
