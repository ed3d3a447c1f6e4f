"""The forms that are compiled ahead of time: the hidden sizes of Qwen3 models."""

from __future__ import annotations

from penstock.kernels.aot.config import Config
from penstock.kernels.rowwise.forms import row_form
from penstock.kernels.rowwise.tuning import BLOCK, warps_for

WIDTHS = (1_024, 2_560)


def configs() -> tuple[Config, ...]:
    return tuple(_config(width) for width in WIDTHS)


def _config(width: int) -> Config:
    return row_form(
        f"gather_embeddings/d{width}",
        "gather",
        {"codes": "*i32", "tokens": "*bf16", "vectors": "*fp32", "out": "*fp32", "count": "i32"},
        {"WIDTH": width, "BLOCK": BLOCK},
        warps=warps_for(BLOCK),
    )
