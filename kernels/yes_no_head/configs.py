"""The forms that are compiled ahead of time: the hidden sizes of Qwen3 models."""

from __future__ import annotations

import importlib
from typing import Any

from penstock.kernels.add_rmsnorm.tuning import padded, warps_for
from penstock.kernels.aot.config import Config, Expectation

OPERATOR = "yes_no_head"
WIDTHS = (1_024, 2_560)


def configs() -> tuple[Config, ...]:
    return tuple(_config(width) for width in WIDTHS)


def _config(width: int) -> Config:
    signature = {"residual": "*fp32", "delta": "*bf16", "weight": "*bf16", "answer": "*fp32", "logits": "*fp32"}
    return Config(
        name=f"{OPERATOR}/d{width}",
        operator=OPERATOR,
        kernel=lambda: _kernels().log_odds,
        signature={**signature, "epsilon": "fp32", "count": "i32"},
        constexprs={"WIDTH": width, "PADDED": padded(width), "ROWS": 1},
        divisible=tuple(signature),
        num_warps=warps_for(width),
        num_stages=1,
        expects=Expectation(ctas_per_sm=4),
    )


def _kernels() -> Any:
    """Imported when one is asked for: a list of configs compiles nothing."""
    return importlib.import_module("penstock.kernels.yes_no_head.triton")
