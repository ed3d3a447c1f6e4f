"""The forms that are compiled ahead of time: heads of Qwen3 models and of others like them."""

from __future__ import annotations

import importlib
from typing import Any

from penstock.kernels.aot.config import Config, Expectation
from penstock.kernels.qk_norm_rope.tuning import padded, warps_for

OPERATOR = "qk_norm_rope"
SHAPES = ((16, 8, 128), (32, 8, 128), (14, 2, 64))  # heads, kv_heads, size


def configs() -> tuple[Config, ...]:
    return tuple(_config(*shape) for shape in SHAPES)


def _config(heads: int, kv_heads: int, size: int) -> Config:
    signature = {"qkv": "*bf16", "weight": "*bf16", "positions": "*i32", "cosines": "*fp32", "sines": "*fp32"}
    turned = heads + kv_heads
    return Config(
        name=f"{OPERATOR}/h{heads}/kv{kv_heads}/d{size}",
        operator=OPERATOR,
        kernel=lambda: _kernels().turn,
        signature={**signature, "epsilon": "fp32", "count": "i32"},
        constexprs={
            "WIDTH": (heads + 2 * kv_heads) * size,
            "HEADS": turned,
            "PADDED": padded(turned),
            "HALF": size // 2,
            "ROWS": 1,
        },
        divisible=tuple(signature),
        num_warps=warps_for(turned, size),
        num_stages=1,
        expects=Expectation(ctas_per_sm=3),
    )


def _kernels() -> Any:
    """Imported when one is asked for: a list of configs compiles nothing."""
    return importlib.import_module("penstock.kernels.qk_norm_rope.triton")
