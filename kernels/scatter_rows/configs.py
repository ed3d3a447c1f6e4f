"""The forms of the two writes that are compiled ahead of time."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from penstock.kernels.aot.config import Config, Expectation
from penstock.kernels.scatter_rows.tuning import LANES, PUBLISH_WARPS, ROWS, SLOTS, WARPS

OPERATOR = "scatter_rows"

_SCATTER = {
    "pages": "*i64",
    "segments": "*i64",
    "slots": "*i64",
    "records": "*u8",
    "count": "i32",
    "per_page": "i32",
    "record": "i32",
}
_PUBLISH = {"pages": "*i64", "staged": "*i64", "word": "*i64", "per_page": "i32", "birth": "i32", "death": "i32"}


def configs() -> tuple[Config, ...]:
    return (
        # Rows or blocks a page are a multiple of 16, and for small pages of blocks they are not.
        _config("rows", "scatter", _SCATTER, ("per_page", "record"), {"ROWS": ROWS, "LANES": LANES}, WARPS),
        _config("blocks", "scatter", _SCATTER, ("record",), {"ROWS": ROWS, "LANES": LANES}, WARPS),
        _config("publish", "publish", _PUBLISH, ("per_page", "birth", "death"), {"SLOTS": SLOTS}, PUBLISH_WARPS),
    )


def _config(
    name: str,
    entry: str,
    signature: Mapping[str, str],
    divisible: tuple[str, ...],
    constexprs: Mapping[str, object],
    warps: int,
) -> Config:
    return Config(
        name=f"{OPERATOR}/{name}",
        operator=OPERATOR,
        kernel=lambda: getattr(_kernels(), entry),
        signature=signature,
        constexprs=constexprs,
        divisible=(*(one for one, kind in signature.items() if kind.startswith("*")), *divisible),
        num_warps=warps,
        num_stages=3,
        expects=Expectation(ctas_per_sm=4 if entry == "scatter" else 1),
    )


def _kernels() -> Any:
    """Imported when one is asked for: a list of configs compiles nothing."""
    return importlib.import_module("penstock.kernels.scatter_rows.triton")
