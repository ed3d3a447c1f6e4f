"""What the tunings of a scan are kept by (kernels/tunings). Searches never measure; `penstock warmup --tune` does."""

from __future__ import annotations

import torch

from penstock.kernels.tunings import kept

SOURCES = ("filtered_topk", "slabs")  # folders that a scan's code is in


def operator_of(quantised: bool) -> str:
    """Whose tunings a scan of that plane takes."""
    return "int8_topk" if quantised else "filtered_topk"


def key_of(operator: str, width: int, batch: int, terms: int, device: torch.device) -> str:
    """What a shape is kept by."""
    return kept.key_of(operator, f"d{width} b{batch} t{terms}", device, sources=SOURCES)
