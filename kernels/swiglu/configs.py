"""The forms that are compiled ahead of time: the widths of Qwen3 models' MLPs, the first of one pruned by half."""

from __future__ import annotations

import importlib
from typing import Any

from penstock.kernels.aot.config import Config, Expectation

OPERATOR = "swiglu"
WIDTHS = (1_536, 3_072, 6_144, 9_728)


def configs() -> tuple[Config, ...]:
    return tuple(_config(width) for width in WIDTHS)


def _config(width: int) -> Config:
    return Config(
        name=f"{OPERATOR}/d{width}",
        operator=OPERATOR,
        kernel=lambda: _kernels().gate_times_up,
        signature={"gate_up": "*bf16", "out": "*bf16", "count": "i32"},
        constexprs={"WIDTH": width, "BLOCK": 1_024, "ROWS": 1},
        divisible=("gate_up", "out"),
        num_warps=4,
        num_stages=1,
        expects=Expectation(ctas_per_sm=8),
    )


def _kernels() -> Any:
    """Imported when one is asked for: a list of configs compiles nothing."""
    return importlib.import_module("penstock.kernels.swiglu.triton")
