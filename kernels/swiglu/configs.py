"""The forms that are compiled ahead of time: the widths of Qwen3 models' MLPs, the first of one pruned by half."""

from __future__ import annotations

from penstock.kernels.aot.config import Config
from penstock.kernels.rowwise.forms import STEPPED, WARPS_PER_SM, row_form
from penstock.kernels.rowwise.tuning import BLOCK, padded, warps_for

WIDTHS = (1_536, 3_072, 6_144, 9_728)


def configs() -> tuple[Config, ...]:
    stepped = (_config(width, out) for width, out in ((3_072, "i8"), (3_072, "fp8e4nv"), (9_728, "i8")))
    return (*(_config(width) for width in WIDTHS), *stepped)


def _config(width: int, out: str = "bf16") -> Config:
    steps = out != "bf16"
    block = padded(width) if steps else BLOCK
    return row_form(
        f"swiglu/{STEPPED[out]}/d{width}" if steps else f"swiglu/d{width}",
        "gate_times_up",
        {"gate_up": "*bf16", "out": f"*{out}", "steps": "*fp32", "count": "i32"},
        {"WIDTH": width, "BLOCK": block, "STEPS": steps, "INTERPRET": False},
        warps=warps_for(block),
        busy=32 if steps else WARPS_PER_SM,  # of the widest a whole row's values and gates are in registers
        wide_stores=not steps,
    )
