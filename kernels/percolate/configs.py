"""The forms of percolation that are compiled ahead of time: the launcher's tunings at the widths in use."""

from __future__ import annotations

import importlib
from typing import Any

from penstock.kernels.aot.config import Config, Expectation
from penstock.kernels.percolate.tuning import BUCKETS, DEMANDS, PLACE, SELECT_WARPS, SLAB, TILE, tuned

OPERATOR = "percolate"
TERMS = 16  # that the store's records have words for
WIDTH = 384  # of the encoders in use; the others are those of the benchmarks
STRIDE = 864  # bytes of such a record

_SELECT = {
    "slabs": "*i64",
    "places": "*i32",
    "bits": "*i64",
    "tenants": "*i64",
    "rows": "*i64",
    "slots": "*i32",
    "masks": "*i64",
    "counters": "*i64",
}
_MATCH = {
    "rows": "*i64",
    "slots": "*i32",
    "masks": "*i64",
    "counters": "*i64",
    "postings": "*bf16",
    "sketches": "*i8",
    "dense_norm": "fp32",
    "lexical_norm": "fp32",
    "floor": "fp32",
    "out_slots": "*i32",
    "out_postings": "*i32",
    "out_scores": "*fp32",
    "capacity": "i32",
}


def configs() -> tuple[Config, ...]:
    widths = (64, 128, 256, 512, 768, 1_024)
    return (
        _select(),
        *(_match(WIDTH, TERMS, bucket) for bucket in BUCKETS),
        *(_match(width, TERMS, BUCKETS[-1]) for width in widths),
        _match(WIDTH, 0, BUCKETS[-1]),
        _match(0, TERMS, BUCKETS[-1]),
        _match(0, 0, BUCKETS[-1]),
    )


def _select() -> Config:
    return Config(
        name=f"{OPERATOR}/select",
        operator=OPERATOR,
        kernel=lambda: _kernel("select"),
        signature=_SELECT,
        constexprs={"STRIDE": STRIDE, "SLAB": SLAB, "PLACE": PLACE, "DEMANDS": DEMANDS},
        divisible=tuple(_SELECT),
        num_warps=SELECT_WARPS,
        num_stages=3,
        # Its grid has seven programs an SM for a million queries: all of them at once.
        expects=Expectation(ctas_per_sm=7),
    )


def _match(width: int, terms: int, bucket: int) -> Config:
    """Every dense value of a tile must come by asynchronous copies of 128 bits. Lines of sketches do not: which ones is
    known only once a record is read, and they are in L2."""
    form = tuned(width, terms, bucket)
    return Config(
        name=f"{OPERATOR}/match/d{width}/b{bucket}/t{terms}",
        operator=OPERATOR,
        kernel=lambda: _kernel("match"),
        signature=_MATCH,
        constexprs=form.constants(interpret=False),
        divisible=tuple(name for name, kind in _MATCH.items() if kind.startswith("*")),
        num_warps=form.warps,
        num_stages=form.stages,
        expects=Expectation(
            tensor_core=width > 0,
            least_async_copies_128=2 * TILE * (width if form.resident else form.chunk) // 16 // (32 * form.warps),
            ctas_per_sm=form.ctas,
        ),
    )


def _kernel(name: str) -> Any:
    """Imported when it is asked for: a list of configs compiles nothing."""
    return getattr(importlib.import_module("penstock.kernels.percolate.scan"), name)
