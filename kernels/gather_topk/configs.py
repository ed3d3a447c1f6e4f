"""The forms of collecting and gathering that are compiled ahead of time."""

from __future__ import annotations

from penstock.kernels.aot.config import Config, Expectation
from penstock.kernels.filtered_topk.configs import ASKED, LINES, OUT, PAGE_BLOCKS, READ, divisible, kernel
from penstock.kernels.gather_topk.tuning import gather_tuning

OPERATOR = "gather_topk"


def configs() -> tuple[Config, ...]:
    lists = {"lists": "*i32", "lengths": "*i64", "room": "i32"}
    collect = READ | lists
    return (
        Config(
            name=f"{OPERATOR}/collect",
            operator=OPERATOR,
            kernel=lambda: kernel("gather_topk.gather", "collect"),
            signature=collect,
            constexprs={"BLOCKS": PAGE_BLOCKS},
            divisible=divisible(collect),
            num_warps=4,
            num_stages=3,
        ),
        *(
            _gather(*shape, seed=False)
            for shape in ((128, 0), (256, 0), (384, 0), (384, 16), (384, 64), (1_024, 0), (768, 64))
        ),
        _gather(384, 16, seed=True),
    )


def _gather(width: int, terms: int, *, seed: bool) -> Config:
    tuning = gather_tuning(width, terms)
    signature = {"table": "*i64", "offsets": "*i64", "lists": "*i32", "lengths": "*i64", "room": "i32"}
    signature |= {"vectors": "*bf16"} | ASKED | OUT
    return Config(
        name=f"{OPERATOR}/{'seed' if seed else 'gather'}/d{width}/t{terms}",
        operator=OPERATOR,
        kernel=lambda: kernel("gather_topk.gather", "gather"),
        signature=signature,
        constexprs={
            "BLOCKS": PAGE_BLOCKS,
            "D": width,
            "PIECE": tuning.piece(width),
            "L": LINES,
            "T": terms,
            "BN": tuning.queries,
            "TILE": tuning.tile,
            "PARTS": tuning.parts,
            "SEED": seed,
            "SAMPLED": 64,
            "STAGES": tuning.stages,
            "INTERPRET": False,
        },
        divisible=divisible(signature),
        num_warps=tuning.warps,
        num_stages=tuning.stages,
        expects=Expectation(tensor_core=True, async_copies_128=terms == 0, ctas_per_sm=tuning.resident),
    )
