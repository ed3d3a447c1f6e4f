"""The forms that are compiled ahead of time: heads of Qwen3 models and of others like them."""

from __future__ import annotations

from penstock.kernels.aot.config import Config, Expectation, kernel_of
from penstock.kernels.prefix_attention.tuning import TILE_TOKENS, tuning_for
from penstock.kernels.rowwise.forms import row_form
from penstock.kernels.rowwise.tuning import padded, warps_for

OPERATOR = "prefix_attention"
SHAPES = ((16, 8, 128), (32, 8, 128), (40, 8, 128), (14, 2, 64), (8, 8, 64), (4, 1, 128))  # heads, kv_heads, size

# Of a block of 32 keys, by the size of a head: 16 scores and size / 2 sums a thread, masked, scaled and added up.
MOST_INSTRUCTIONS = {64: 320, 128: 420}


def configs() -> tuple[Config, ...]:
    return (*(_attention(*shape) for shape in SHAPES), _merge(16, 128), _merge(14, 64))


def _attention(heads: int, kv_heads: int, size: int) -> Config:
    tuning = tuning_for(heads // kv_heads, size)
    signature = {"qkv": "*bf16", "starts": "*i32", "tiles": "*i32", "out": "*bf16"}
    return Config(
        name=f"{OPERATOR}/h{heads}/kv{kv_heads}/d{size}",
        operator=OPERATOR,
        kernel=kernel_of("penstock.kernels.prefix_attention.triton", "attention"),
        signature=signature,
        constexprs={
            "HEADS": heads,
            "KV_HEADS": kv_heads,
            "D": size,
            "GROUP": tuning.group,
            "TOKENS": tuning.tokens,
            "SPLITS": TILE_TOKENS // tuning.tokens,
            "KEYS": tuning.keys,
            "STAGES": tuning.stages,
            "INTERPRET": False,
        },
        divisible=("qkv", "starts", "tiles", "out"),
        num_warps=tuning.warps,
        num_stages=tuning.stages,
        expects=Expectation(
            tensor_core=True,
            async_copies_128=True,
            ctas_per_sm=tuning.resident,
            max_loop_instructions=MOST_INSTRUCTIONS[size],
        ),
    )


def _merge(heads: int, size: int) -> Config:
    return row_form(
        f"{OPERATOR}/merge/h{heads}/d{size}",
        "merge",
        {"mine": "*bf16", "theirs": "*bf16", "lse": "*fp32", "lse_theirs": "*fp32", "count": "i32"},
        {"HEADS": heads, "D": size, "PADDED": padded(heads)},
        warps=warps_for(padded(heads) * size, of_a_thread=16),
        module="merge",
    )
