"""The forms that are compiled ahead of time: the products of a layer of Qwen3 0.6B, and its rows quantised."""

from __future__ import annotations

from penstock.kernels.aot.config import Config, Expectation, kernel_of
from penstock.kernels.rowwise.forms import row_form
from penstock.kernels.rowwise.tuning import padded, warps_for
from penstock.kernels.scaled_gemm.tuning import Tuning

COLUMNS = (4_096, 1_024, 6_144)  # qkv, out and down, gate and up
WIDTHS = (1_024, 3_072)
MOST_INSTRUCTIONS = 110  # of 128 values of K: 4 products and 8 copies, and what copies need


def configs() -> tuple[Config, ...]:
    return (*(_multiply(columns) for columns in COLUMNS), *(_quantise(width) for width in WIDTHS))


def _multiply(columns: int) -> Config:
    tuning = Tuning()
    signature = {"x": "*i8", "x_steps": "*fp32", "w": "*i8", "w_steps": "*fp32", "out": "*bf16"}
    return Config(
        name=f"scaled_gemm/n{columns}",
        operator="scaled_gemm",
        kernel=kernel_of("penstock.kernels.scaled_gemm.triton", "multiply"),
        signature={**signature, "count": "i32", "depth": "i32"},
        constexprs={
            "N": columns,
            "TILE_M": tuning.rows,
            "TILE_N": tuning.columns,
            "TILE_K": tuning.depth,
            "GROUP": tuning.group,
            "STAGES": tuning.stages,
        },
        divisible=(*signature, "depth"),
        num_warps=tuning.warps,
        num_stages=tuning.stages,
        expects=Expectation(
            tensor_core=True,
            async_copies_128=True,
            ctas_per_sm=tuning.resident,
            max_loop_instructions=MOST_INSTRUCTIONS,
        ),
    )


def _quantise(width: int) -> Config:
    return row_form(
        f"scaled_gemm/quantise/d{width}",
        "quantise",
        {"rows": "*bf16", "numbers": "*i8", "steps": "*fp32", "count": "i32"},
        {"WIDTH": width, "PADDED": padded(width)},
        warps=warps_for(width),
        wide_stores=False,
    )
