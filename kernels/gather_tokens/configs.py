"""The form that is compiled ahead of time, for all models. A lane has a place, so no access is wider than 32 bits."""

from __future__ import annotations

from penstock.kernels.aot.config import Config, Expectation, kernel_of
from penstock.kernels.gather_tokens.tuning import NUMBERS, PIECES, TOKENS, WARPS

WARPS_PER_SM = 64


def configs() -> tuple[Config, ...]:
    signature = dict.fromkeys(("pieces", "count", "sent", "arena", "codes", "positions", "starts"), "*i32")
    return (
        Config(
            name=f"gather_tokens/p{PIECES}",
            operator="gather_tokens",
            kernel=kernel_of("penstock.kernels.gather_tokens.triton", "gather"),
            signature={**signature, "sent_count": "i32"},
            constexprs={"NUMBERS": NUMBERS, "TOKENS": TOKENS, "PIECES": PIECES},
            divisible=tuple(signature),
            num_warps=WARPS,
            num_stages=1,
            expects=Expectation(ctas_per_sm=WARPS_PER_SM // WARPS, max_registers=32),
        ),
    )
