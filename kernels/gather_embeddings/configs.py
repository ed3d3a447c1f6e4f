"""The forms that are compiled ahead of time: the hidden sizes of Qwen3 models."""

from __future__ import annotations

import importlib
from typing import Any

from penstock.kernels.aot.config import Config, Expectation

OPERATOR = "gather_embeddings"
WIDTHS = (1_024, 2_560)


def configs() -> tuple[Config, ...]:
    return tuple(_config(width) for width in WIDTHS)


def _config(width: int) -> Config:
    signature = {"codes": "*i32", "tokens": "*bf16", "vectors": "*bf16", "out": "*fp32"}
    divisible = tuple(signature)
    signature["count"] = "i32"
    return Config(
        name=f"{OPERATOR}/d{width}",
        operator=OPERATOR,
        kernel=lambda: _kernels().gather,
        signature=signature,
        constexprs={"WIDTH": width, "BLOCK": 1_024, "ROWS": 1},
        divisible=divisible,
        num_warps=4,
        num_stages=1,
        expects=Expectation(ctas_per_sm=8),
    )


def _kernels() -> Any:
    """Imported when one is asked for: a list of configs compiles nothing."""
    return importlib.import_module("penstock.kernels.gather_embeddings.triton")
