"""The forms that are compiled ahead of time: the products of a layer of Qwen3 0.6B, and its rows quantised."""

from __future__ import annotations

from penstock.kernels.aot.config import Config, Expectation, kernel_of
from penstock.kernels.rowwise.forms import row_form
from penstock.kernels.rowwise.tuning import padded, warps_for
from penstock.kernels.scaled_gemm.tuning import Tuning, fitting, tuning_for

COLUMNS = (4_096, 1_024, 6_144)  # qkv, out and down, gate and up
WIDTHS = (2_048, 4_096)  # of queries: what comes before other products leaves numbers itself
FORMS = {"int8": "*i8", "fp8": "*fp8e4nv"}
# Instructions of a sum of a thread's, for 128 values of K, beside 64 for copies and what they need: of int8 products
# alone; of fp8 a tile's sums are taken and added as well.
A_SUM = {"int8": 0.75, "fp8": 2.0}


def configs() -> tuple[Config, ...]:
    multiplied = (_multiply(form, columns, tuning_for(form)) for form in FORMS for columns in COLUMNS)
    tried = (_multiply(form, 4_096, one) for form in FORMS for one in list(fitting(form))[1:])
    return (*multiplied, *tried, *(_quantise(form, width) for form in FORMS for width in WIDTHS))


def _multiply(form: str, columns: int, tuning: Tuning) -> Config:
    number = FORMS[form]
    signature = {"x": number, "x_steps": "*fp32", "w": number, "w_steps": "*fp32", "bias": "*bf16", "out": "*bf16"}
    tile = "" if tuning == tuning_for(form) else f"/{tuning.rows}x{tuning.columns}/w{tuning.warps}/s{tuning.stages}"
    return Config(
        name=f"scaled_gemm/{form}/n{columns}{tile}",
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
            "BIASED": False,
            "INTERPRET": False,
        },
        divisible=(*signature, "depth"),
        num_warps=tuning.warps,
        num_stages=tuning.stages,
        expects=Expectation(
            tensor_core=True,
            async_copies_128=True,
            ctas_per_sm=tuning.resident,
            max_loop_instructions=64 + int(A_SUM[form] * tuning.rows * tuning.columns / (tuning.warps * 32)),
        ),
    )


def _quantise(form: str, width: int) -> Config:
    return row_form(
        f"scaled_gemm/quantise/{form}/d{width}",
        "quantise",
        {"rows": "*bf16", "numbers": FORMS[form], "steps": "*fp32", "count": "i32"},
        {"WIDTH": width, "PADDED": padded(width), "INTERPRET": False},
        warps=warps_for(width),
        wide_stores=False,
    )
