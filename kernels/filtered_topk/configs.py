"""The forms of the scan that are compiled ahead of time: the tunings that the launcher takes, at the widths in use."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from penstock.kernels.aot.config import Config, Expectation
from penstock.kernels.filtered_topk.tuning import Tuning, select_warps, tuning_for

OPERATOR = "filtered_topk"
PAGE_BLOCKS = 512  # of a page of 65,536 rows
LINES = 1_024  # of a sketch
_INTEGERS = ("dense", "sketch", "capacity", "batch")  # that are multiples of 16

# What kernels of several operators take, by Triton's types.
READ = {
    "table": "*i64",
    "offsets": "*i64",
    "live": "*i32",
    "live_bits": "*i64",
    "counters": "*i64",
    "steps": "*i32",
    "codes": "*i32",
    "numbers": "*fp64",
    "longs": "*i64",
    "bounds": "*i32",
    "epochs": "*i64",
    "nows": "*i64",
    "tenants": "*i32",
    "filters": "i32",
}
ASKED = {"weights": "*fp16", "terms": "*i32", "slack": "*fp32", "filter_of": "*i32", "tau": "*fp32"}
OUT = {
    "found": "*i32",
    "scores": "*fp32",
    "slots": "*i32",
    "maxima": "*fp32",
    "dense": "i32",
    "sketch": "i32",
    "capacity": "i32",
    "width": "i32",
    "rank": "i32",
    "denser_rank": "i32",
    "batch": "i32",
}


def kernel(module: str, name: str) -> Any:
    """A kernel by its name, imported when it is asked for."""
    return getattr(importlib.import_module(f"penstock.kernels.{module}"), name)


def divisible(signature: dict[str, str], *more: str) -> tuple[str, ...]:
    """Pointers, and the integers that the launcher makes so."""
    wide = (*_INTEGERS, *more)
    return tuple(name for name, kind in signature.items() if kind.startswith("*") or name in wide)


def scan_config(
    operator: str,
    width: int,
    batch: int,
    terms: int,
    *,
    seed: bool = False,
    quantised: bool = False,
    filters: int = 1,
) -> Config:
    """The scan at one shape, for batches of so many filters: 1, 31 or 63."""
    tuning: Tuning = tuning_for(width, batch, terms, quantised=quantised)
    signature = READ | {"vectors": "*i8" if quantised else "*bf16"} | ASKED | {"steps_of": "*fp32"} | OUT
    signature |= {"totals": "*i64", "scratch_bits": "*i64" if filters > 31 else "*i32", "scratch_at": "*i64"}
    kind = "seed" if seed else "scan"
    return Config(
        name=f"{operator}/{kind}/d{width}/b{batch}/t{terms}{f'/f{filters}' if filters > 1 else ''}",
        operator=operator,
        kernel=lambda: kernel("filtered_topk.scan", "scan"),
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
            "RUN": 4 if seed else 16,
            "GATE": 4,
            "SINGLE": filters == 1,
            "SEED": seed,
            "SAMPLED": 64,
            "QUANTISED": quantised,
            "STAGES": tuning.stages,
            "INTERPRET": False,
        },
        divisible=divisible(signature),
        num_warps=tuning.warps,
        num_stages=tuning.stages,
        expects=Expectation(tensor_core=True, async_copies_128=True, ctas_per_sm=tuning.resident),
    )


def finish_configs() -> tuple[Config, ...]:
    """What follows a scan."""
    select = {
        "table": "*i64",
        "offsets": "*i64",
        "scores": "*fp32",
        "slots": "*i32",
        "found": "*i32",
        "tau": "*fp32",
        "slack": "*fp32",
        "kept": "*i32",
        "reached": "*fp32",
        "status": "*i32",
        "k": "i32",
        "batch": "i32",
        "query_norms": "*fp32",
    }
    rescore = {
        "table": "*i64",
        "offsets": "*i64",
        "queries": "*fp32",
        "starts": "*i32",
        "terms": "*i32",
        "weights": "*fp32",
        "kept": "*i32",
        "status": "*i32",
        "dense": "*fp64",
        "lexical": "*fp64",
        "ties": "*i64",
        "near": "*fp32",
        "plane": "i32",
        "sketch": "i32",
        "hashes": "i32",
        "capacity": "i32",
    }
    rank = {
        "kept": "*i32",
        "status": "*i32",
        "dense": "*fp64",
        "lexical": "*fp64",
        "ties": "*i64",
        "near": "*fp32",
        "best_slots": "*i64",
        "best_dense": "*fp64",
        "best_lexical": "*fp64",
        "capacity": "i32",
        "k": "i32",
    }
    threshold = {"maxima": "*fp32", "units": "*i64", "unit_of": "*i32", "tau": "*fp32", "width": "i32"}
    threshold |= {"rank": "i32", "denser_rank": "i32", "k": "i32"}
    plan = {name: READ[name] for name in ("table", "offsets", "steps", "numbers", "bounds", "nows", "filters")}
    plan |= {"marks": "*i64", "owners": "*i64", "live": "*i32", "live_bits": "*i64", "counters": "*i64"}

    def config(
        name: str,
        module: str,
        entry: str,
        signature: dict[str, str],
        constexprs: Mapping[str, object],
        warps: int,
        spills: int = 0,
    ) -> Config:
        return Config(
            name=f"{OPERATOR}/{name}",
            operator=OPERATOR,
            kernel=lambda: kernel(module, entry),
            signature=signature,
            constexprs=constexprs,
            divisible=divisible(signature, "plane"),
            num_warps=warps,
            num_stages=3,
            expects=Expectation(max_spills_outside=spills),
        )

    rescored = {"BLOCKS": PAGE_BLOCKS, "L": LINES, "ROWS": 16, "WIDTH": 64, "LEVELS": 6, "LINES": 16, "LINE_LEVELS": 4}
    finish, scan = "filtered_topk.finish", "filtered_topk.scan"
    return (
        config("plan", scan, "plan", plan, {"BLOCKS": PAGE_BLOCKS, "WIDTH": 512}, 4),
        *(
            config(name, finish, "threshold", threshold, {"SAMPLED": 64, "UNIT": unit, "CHUNK": 2_048}, 8)
            for name, unit in (("threshold", 128), ("threshold/gathered", 64))
        ),
        *(
            config(
                f"select/{room}",
                finish,
                "select",
                select,
                {"BLOCKS": PAGE_BLOCKS, "CAPACITY": room, "QUANTISED": False},
                select_warps(room),
                # 1,024 threads have 64 registers each; what is put aside is used once, before and after the counting.
                96 if room > 8_192 else 0,
            )
            for room in (2_048, 8_192, 16_384)
        ),
        *(config(f"rescore/d{width}", finish, "rescore", rescore, rescored | {"D": width}, 8) for width in (256, 384)),
        config("rank", finish, "rank", rank, {"ROWS": 32, "OTHERS": 32}, 1),
    )


def configs() -> tuple[Config, ...]:
    shapes = (
        (128, 16, 0),
        (128, 64, 0),
        (256, 16, 0),
        (256, 64, 0),
        (256, 256, 0),
        (384, 16, 0),
        (384, 16, 64),
        (384, 64, 16),
        (384, 64, 64),
        (384, 64, 256),
        (768, 16, 0),
        (768, 64, 64),
        (1_024, 16, 0),
        (1_024, 64, 0),
    )
    return (
        *(scan_config(OPERATOR, *shape) for shape in shapes),
        *(scan_config(OPERATOR, 384, 64, 64, filters=filters) for filters in (31, 63)),
        scan_config(OPERATOR, 256, 64, 0, filters=31),
        scan_config(OPERATOR, 256, 16, 0, seed=True),
        scan_config(OPERATOR, 256, 64, 0, seed=True),
        scan_config(OPERATOR, 384, 64, 64, seed=True),
        *finish_configs(),
    )
