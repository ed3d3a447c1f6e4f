"""The forms that are compiled ahead of time: the widths of Qwen3 models' MLPs, the first of one pruned by half."""

from __future__ import annotations

from penstock.kernels.aot.config import Config
from penstock.kernels.rowwise.forms import row_form
from penstock.kernels.rowwise.tuning import BLOCK, warps_for

WIDTHS = (1_536, 3_072, 6_144, 9_728)


def configs() -> tuple[Config, ...]:
    return tuple(_config(width) for width in WIDTHS)


def _config(width: int) -> Config:
    return row_form(
        f"swiglu/d{width}",
        "gate_times_up",
        {"gate_up": "*bf16", "out": "*bf16", "count": "i32"},
        {"WIDTH": width, "BLOCK": BLOCK},
        warps=warps_for(BLOCK),
    )
