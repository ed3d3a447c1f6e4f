"""The forms that are compiled ahead of time: the hidden sizes of Qwen3 models, with what is added and without."""

from __future__ import annotations

import importlib
from typing import Any

from penstock.kernels.add_rmsnorm.tuning import padded, warps_for
from penstock.kernels.aot.config import Config, Expectation

OPERATOR = "add_rmsnorm"
WIDTHS = (896, 1_024, 2_048, 2_560, 4_096)


def configs() -> tuple[Config, ...]:
    return (_config(1_024, adds=False), *(_config(width, adds=True) for width in WIDTHS))


def _config(width: int, *, adds: bool) -> Config:
    signature = {"residual": "*fp32", "delta": "*bf16", "weight": "*bf16", "out": "*bf16", "epsilon": "fp32"}
    signature["count"] = "i32"
    return Config(
        name=f"{OPERATOR}/{'' if adds else 'first/'}d{width}",
        operator=OPERATOR,
        kernel=lambda: _kernels().add_rmsnorm_rows,
        signature=signature,
        constexprs={"WIDTH": width, "PADDED": padded(width), "ROWS": 1, "ADDS": adds},
        divisible=("residual", "delta", "weight", "out"),
        num_warps=warps_for(width),
        num_stages=1,
        expects=Expectation(ctas_per_sm=4),
    )


def _kernels() -> Any:
    """Imported when one is asked for: a list of configs compiles nothing."""
    return importlib.import_module("penstock.kernels.add_rmsnorm.triton")
