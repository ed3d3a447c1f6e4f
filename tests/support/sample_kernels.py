"""Kernels that hold what is expected of ours, and kernels that break it: so that the checks are seen to fail.

Run as a program, in an environment without TRITON_INTERPRET: compiles each and writes what was found to a file.

    python tests/support/sample_kernels.py FILE
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import triton
import triton.language as tl

from penstock.kernels.aot.check import check
from penstock.kernels.aot.config import Config, Expectation


@triton.jit
def multiply(pages, queries, out, count, D: tl.constexpr, N: tl.constexpr, DECLARED: tl.constexpr):
    """Tiles [128, D] bfloat16 found through a table of addresses, times queries [N, D], summed over the tiles."""
    rows, values, columns = tl.arange(0, 128), tl.arange(0, D), tl.arange(0, N)
    resident = tl.load(queries + columns[None, :] * D + values[:, None])
    total = tl.zeros([128, N], tl.float32)
    for tile in tl.range(count):
        page = tl.load(pages + tile)
        plane = page.to(tl.pointer_type(tl.bfloat16))
        if DECLARED:  # of the pointer: what is said of the integer is lost on the way
            plane = tl.multiple_of(plane, 16)
        total += tl.dot(tl.load(plane + rows[:, None] * D + values[None, :]), resident)
    tl.store(out + rows[:, None] * N + columns[None, :], total)


@triton.jit
def copy(source, out, count, WIDTH: tl.constexpr):
    """No tensor core in its loop."""
    at = tl.arange(0, WIDTH)
    for step in tl.range(count):
        tl.store(out + step * WIDTH + at, tl.load(source + step * WIDTH + at))


def _multiply():
    return multiply


def _copy():
    return copy


GOOD = Config(
    name="sample/good",
    operator="sample",
    kernel=_multiply,
    signature={"pages": "*i64", "queries": "*bf16", "out": "*fp32", "count": "i32"},
    constexprs={"D": 128, "N": 32, "DECLARED": True},
    divisible=("pages", "queries", "out"),
    num_warps=4,
    num_stages=3,
    expects=Expectation(tensor_core=True, async_copies_128=True, max_registers=128, ctas_per_sm=2),
)
COPY = Config(
    name="sample/copy",
    operator="sample",
    kernel=_copy,
    signature={"source": "*fp32", "out": "*fp32", "count": "i32"},
    constexprs={"WIDTH": 1024},
    divisible=("source", "out"),
    num_warps=4,
    num_stages=1,
    expects=Expectation(wide_loads=True, wide_stores=True),
)
SAMPLES = (
    GOOD,
    COPY,
    # 128 x 256 sums in 128 threads are 256 registers each: more than a thread can have.
    replace(GOOD, name="sample/spilling", constexprs={**GOOD.constexprs, "N": 256}, options={"maxnreg": 168}),
    replace(GOOD, name="sample/undeclared", constexprs={**GOOD.constexprs, "DECLARED": False}),
    replace(GOOD, name="sample/crowded", expects=replace(GOOD.expects, ctas_per_sm=8, max_registers=24)),
    replace(GOOD, name="sample/too_large", constexprs={**GOOD.constexprs, "D": 512}, num_stages=4),
    replace(COPY, name="sample/no_tensor_core", expects=Expectation(tensor_core=True, async_copies_128=True)),
    replace(COPY, name="sample/narrow", divisible=("source",)),
    replace(COPY, name="sample/narrower", divisible=()),
    replace(GOOD, name="sample/short", expects=replace(GOOD.expects, max_loop_instructions=10)),
    replace(GOOD, name="sample/misnamed", signature={**GOOD.signature, "tile": "i32"}),
)

if __name__ == "__main__":
    found = [check(config).as_json() for config in SAMPLES]
    Path(sys.argv[1]).write_text(json.dumps(found), encoding="utf-8")
