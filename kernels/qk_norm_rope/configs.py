"""The forms that are compiled ahead of time: heads of Qwen3 models and of others like them."""

from __future__ import annotations

from penstock.kernels.aot.config import Config
from penstock.kernels.qk_norm_rope.tuning import warps_of
from penstock.kernels.rowwise.forms import row_form
from penstock.kernels.rowwise.tuning import padded

SHAPES = ((16, 8, 128), (32, 8, 128), (14, 2, 64))  # heads, kv_heads, size


def configs() -> tuple[Config, ...]:
    return tuple(_config(*shape) for shape in SHAPES)


def _config(heads: int, kv_heads: int, size: int) -> Config:
    turned = heads + kv_heads
    return row_form(
        f"qk_norm_rope/h{heads}/kv{kv_heads}/d{size}",
        "turn",
        {
            "qkv": "*bf16",
            "weight": "*bf16",
            "positions": "*i32",
            "cosines": "*fp32",
            "sines": "*fp32",
            "epsilon": "fp32",
            "count": "i32",
        },
        {"WIDTH": (heads + 2 * kv_heads) * size, "HEADS": turned, "PADDED": padded(turned), "HALF": size // 2},
        warps=warps_of(turned, size),
        busy=32,
    )
