"""The forms that are compiled ahead of time: the hidden sizes of Qwen3 models, with what is added and without."""

from __future__ import annotations

from penstock.kernels.aot.config import Config
from penstock.kernels.rowwise.forms import STEPPED, row_form
from penstock.kernels.rowwise.tuning import padded, warps_for

WIDTHS = (896, 1_024, 2_048, 2_560, 4_096)


def configs() -> tuple[Config, ...]:
    stepped = (_config(width, adds=True, out=out) for width, out in ((1_024, "i8"), (1_024, "fp8e4nv"), (4_096, "i8")))
    return (_config(1_024, adds=False), *(_config(width, adds=True) for width in WIDTHS), *stepped)


def _config(width: int, *, adds: bool, out: str = "bf16") -> Config:
    name = f"d{width}" if out == "bf16" else f"{STEPPED[out]}/d{width}"
    return row_form(
        f"add_rmsnorm/{name if adds else f'first/{name}'}",
        "add_rmsnorm_rows",
        {
            "residual": "*fp32",
            "delta": "*bf16",
            "weight": "*bf16",
            "out": f"*{out}",
            "steps": "*fp32",
            "epsilon": "fp32",
            "count": "i32",
        },
        {"WIDTH": width, "PADDED": padded(width), "ADDS": adds, "STEPS": out != "bf16", "INTERPRET": False},
        warps=warps_for(width),
        wide_stores=out == "bf16",
    )
