"""The forms that are compiled ahead of time: the hidden sizes of Qwen3 models."""

from __future__ import annotations

from penstock.kernels.aot.config import Config
from penstock.kernels.rowwise.forms import row_form
from penstock.kernels.rowwise.tuning import padded, warps_for

WIDTHS = (1_024, 2_560)


def configs() -> tuple[Config, ...]:
    return tuple(_config(width) for width in WIDTHS)


def _config(width: int) -> Config:
    return row_form(
        f"yes_no_head/d{width}",
        "log_odds",
        {
            "residual": "*fp32",
            "delta": "*bf16",
            "weight": "*bf16",
            "answer": "*fp32",
            "logits": "*fp32",
            "epsilon": "fp32",
            "count": "i32",
        },
        {"WIDTH": width, "PADDED": padded(width)},
        warps=warps_for(width),
        wide_stores=False,
    )
