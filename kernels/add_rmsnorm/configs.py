"""The forms that are compiled ahead of time: the hidden sizes of Qwen3 models, with what is added and without."""

from __future__ import annotations

from penstock.kernels.aot.config import Config
from penstock.kernels.rowwise.forms import row_form
from penstock.kernels.rowwise.tuning import padded, warps_for

WIDTHS = (896, 1_024, 2_048, 2_560, 4_096)


def configs() -> tuple[Config, ...]:
    return (_config(1_024, adds=False), *(_config(width, adds=True) for width in WIDTHS))


def _config(width: int, *, adds: bool) -> Config:
    return row_form(
        f"add_rmsnorm/{'' if adds else 'first/'}d{width}",
        "add_rmsnorm_rows",
        {
            "residual": "*fp32",
            "delta": "*bf16",
            "weight": "*bf16",
            "out": "*bf16",
            "epsilon": "fp32",
            "count": "i32",
        },
        {"WIDTH": width, "PADDED": padded(width), "ADDS": adds},
        warps=warps_for(width),
    )
