"""What attention over a packed forward is, token by token in float64: the oracle of the kernels. torch only."""

from __future__ import annotations

import torch
from torch import Tensor


def prefix_attention(
    qkv: Tensor, starts: Tensor, tiles: Tensor, *, heads: int, kv_heads: int, size: int
) -> tuple[Tensor, Tensor]:
    """float64 [T, heads * size], zero where no tile has the token; and which tokens some tile has: bool [T].

    qkv [T, (heads + 2 kv_heads) * size], starts int32 [T], tiles int32 [S, 4]: see triton.py.
    """
    wide = qkv.double().cpu()
    tokens, group = len(wide), heads // kv_heads
    q = wide[:, : heads * size].view(tokens, kv_heads, group, size)
    k, v = wide[:, heads * size :].view(tokens, 2, kv_heads, size).unbind(1)
    out = torch.zeros(tokens, kv_heads, group, size, dtype=torch.float64)
    covered = torch.zeros(tokens, dtype=torch.bool)
    begins = starts.tolist()
    for first, end, prefix_first, prefix_end in tiles.tolist():
        for token in range(first, end):
            seen = [*range(prefix_first, prefix_end), *range(begins[token], token + 1)]
            weights = torch.softmax(torch.einsum("hgd,khd->hgk", q[token], k[seen]) / size**0.5, -1)
            out[token] = torch.einsum("hgk,khd->hgd", weights, v[seen])
            covered[token] = True
    return out.view(tokens, heads * size), covered


def merged(mine: Tensor, theirs: Tensor, lse: Tensor, lse_theirs: Tensor) -> Tensor:
    """float64 [R, heads, D] of two attentions over disjoint keys; lse [heads, R]. -inf: no keys."""
    share = torch.sigmoid(lse_theirs.double() - lse.double()).T[..., None]
    return torch.where(share > 0, mine.double() * (1 - share) + theirs.double() * share, mine.double())
