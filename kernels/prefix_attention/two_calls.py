"""Attention of a packed forward as two attentions of variable length that others wrote, merged by log-sum-exp.

    1. own       each prefix and each item over itself, causal
    2. shared    what follows a prefix over that prefix, all of it
    3. merged    merge.py

What prefix_attention does in one pass over tiles: its oracle on a device, and a fallback where its kernel will not do.
On CUDA in bfloat16 or float16 the calls are torch's varlen_attn by FlashAttention (Dao, FlashAttention-2, 2023); on a
CPU, and in other dtypes, `plain`, of the same contract. A CUDA graph is of one forward's spans and of no other's.

Invariant: as in triton.py, but no tiles: every token of the forward is of a prefix or an item, and is written.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from penstock.kernels.prefix_attention.merge import merged

NARROW = (torch.bfloat16, torch.float16)  # what FlashAttention takes


@dataclass(frozen=True, slots=True)
class Spans:
    """A forward's sequences. Bounds are int32 [sequences + 1], as variable-length attention wants them."""

    own: Tensor  # bounds of prefixes and items, one behind the other
    asking: Tensor  # bounds of queries: a prefix, what follows it, the next prefix ...
    asked: Tensor  # bounds of their keys among the prefixes' tokens: none of a prefix's own, then all of it
    places: Tensor  # int64 [prefixes' tokens]: where they stand in the forward
    alone: Tensor  # bool [T]: no prefix is before it
    longest_own: int
    longest_asking: int
    longest_prefix: int

    @classmethod
    def of(cls, prefixes: NDArray[np.int32], items: NDArray[np.int32], device: torch.device) -> Spans:
        """[first, end) of each: prefixes [P, 2] in order, items [N, 2] that follow them (ranker/engine/plan.py)."""
        tokens = int(max(prefixes[:, 1].max(initial=0), items[:, 1].max(initial=0)))
        own = np.unique(np.concatenate([prefixes.reshape(-1), items.reshape(-1), [0]]))
        asking = np.append(prefixes.reshape(-1), tokens)
        lengths = prefixes[:, 1] - prefixes[:, 0]
        asked = np.zeros(len(asking), np.int64)
        asked[2::2] = np.cumsum(lengths)
        asked[3::2] = asked[2:-1:2]
        places = np.concatenate([np.arange(0), *(np.arange(first, end) for first, end in prefixes.tolist())])
        alone = np.repeat((asked[1:] == asked[:-1]), np.diff(asking))

        def bounds(values: NDArray[Any]) -> Tensor:
            return torch.from_numpy(values.astype(np.int32)).to(device)

        return cls(
            own=bounds(own),
            asking=bounds(asking),
            asked=bounds(asked),
            places=torch.from_numpy(places).to(device),
            alone=torch.from_numpy(alone).to(device),
            longest_own=int(np.diff(own).max(initial=0)),
            longest_asking=int(np.diff(asking).max(initial=0)),
            longest_prefix=int(lengths.max(initial=0)),
        )


def two_calls(qkv: Tensor, spans: Spans, out: Tensor, *, heads: int, kv_heads: int, size: int) -> Tensor:
    """`out` [T, heads * size] of qkv [T, (heads + 2 kv_heads) * size]. On CUDA it waits for nothing.

    Raises ValueError: shapes that do not fit.
    """
    tokens = len(spans.alone)
    if qkv.shape != (tokens, (heads + 2 * kv_heads) * size) or out.shape != (tokens, heads * size):
        raise ValueError(
            f"qkv {list(qkv.shape)} and out {list(out.shape)}: expected {tokens} rows of "
            f"{(heads + 2 * kv_heads) * size} and {heads * size}"
        )
    q = qkv[:, : heads * size].view(tokens, heads, size)
    k, v = qkv[:, heads * size :].view(tokens, 2, kv_heads, size).unbind(1)
    attend = varlen if qkv.is_cuda and qkv.dtype in NARROW else plain
    longest = spans.longest_own
    mine, lse = attend(q, k, v, spans.own, spans.own, longest, longest, causal=True)
    if len(spans.places):
        keys, values = k[spans.places], v[spans.places]
        limits = spans.longest_asking, spans.longest_prefix
        theirs, lse_theirs = attend(q, keys, values, spans.asking, spans.asked, *limits, causal=False)
        # Of no keys FlashAttention-2 says +inf, others -inf.
        lse_theirs = lse_theirs.masked_fill(spans.alone, float("-inf"))
        merged(mine, theirs, lse.contiguous(), lse_theirs)
    return out.copy_(mine.view(tokens, -1))


def varlen(
    q: Tensor, k: Tensor, v: Tensor, asking: Tensor, asked: Tensor, longest_q: int, longest_k: int, *, causal: bool
) -> tuple[Tensor, Tensor]:
    """(attended [T, heads, size], natural log-sum-exp float32 [heads, T]), by torch's FlashAttention."""
    from torch.nn.attention.varlen import AuxRequest, varlen_attn  # here: only a device has it

    more: dict[str, Any] = {}
    if k.shape[1] != q.shape[1]:
        if "enable_gqa" in inspect.signature(varlen_attn).parameters:
            more["enable_gqa"] = True
        else:  # torch up to 2.11
            k, v = (each.repeat_interleave(q.shape[1] // each.shape[1], 1) for each in (k, v))
    window = (-1, 0) if causal else (-1, -1)
    # cuDNN, which torch prefers where it may, has another log-sum-exp.
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        found: Any = varlen_attn(
            q,
            k,
            v,
            asking,
            asked,
            longest_q,
            longest_k,
            return_aux=AuxRequest(lse=True),
            window_size=window,
            **more,
        )
    attended, lse = found
    if lse.shape != (q.shape[1], len(q)):
        raise RuntimeError(
            f"torch {torch.__version__} gave a log-sum-exp of {list(lse.shape)}: expected [heads, T], "
            f"{[q.shape[1], len(q)]}; take the tiles"
        )
    return attended, lse


def plain(
    q: Tensor, k: Tensor, v: Tensor, asking: Tensor, asked: Tensor, longest_q: int, longest_k: int, *, causal: bool
) -> tuple[Tensor, Tensor]:
    """`varlen` sequence by sequence, in float32 (float64 stays): 0 and -inf where a sequence has no keys.

    On a device it waits for the bounds.
    """
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    group = q.shape[1] // k.shape[1]
    out, lse = torch.zeros_like(q, memory_format=torch.contiguous_format), q.new_zeros(q.shape[1], len(q), dtype=wide)
    edges, limits = asking.tolist(), asked.tolist()
    for first, end, begin, stop in zip(edges, edges[1:], limits, limits[1:], strict=False):
        if begin == stop:
            lse[:, first:end] = float("-inf")
            continue
        queries = q[first:end].to(wide).transpose(0, 1)
        keys, values = (each[begin:stop].to(wide).transpose(0, 1).repeat_interleave(group, 0) for each in (k, v))
        scores = queries @ keys.mT * q.shape[2] ** -0.5
        if causal:
            ahead = torch.ones(end - first, stop - begin, dtype=torch.bool, device=q.device).triu(1)
            scores = scores.masked_fill(ahead, float("-inf"))
        lse[:, first:end] = scores.logsumexp(-1)
        out[first:end] = (scores.softmax(-1) @ values).transpose(0, 1).to(q.dtype)
    return out, lse
