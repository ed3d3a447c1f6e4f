"""What the tunings of attention are kept by (kernels/tunings)."""

from __future__ import annotations

import torch

from penstock.kernels.tunings import kept

SOURCES = ("prefix_attention", "rowwise")  # folders that its code is in


def key_of(dtype: torch.dtype, heads: int, kv_heads: int, size: int, device: torch.device) -> str:
    """`dtype`: of queries, keys and values, by whose bytes a tuning fits into shared memory or not."""
    value = str(dtype).removeprefix("torch.")
    return kept.key_of("prefix_attention", f"{value} h{heads} kv{kv_heads} d{size}", device, sources=SOURCES)
