"""Rows to numbers of one byte and a step: how a kernel that has a row in registers leaves it for a scaled product."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
# What Triton compiles has the types of its arguments, which are no Python types.
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BYTES = (torch.int8, torch.float8_e4m3fn)


@triton.jit
def e4m3(x):
    """The nearest that e4m3 has, ties to even, of float32 from -448 to 448: for the interpreter, whose own cast gives
    half of it where rounding goes up to a power of two."""
    power = (tl.abs(x).to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
    coarse = tl.maximum(power, 2.0**-6) * (1.5 * 2.0**20)  # so great that float32 has 3 bits of x left beside it
    return (x + coarse) - coarse


@triton.jit
def stepped(x, NUMBER: tl.constexpr, INTERPRET: tl.constexpr):
    """(numbers of type NUMBER [R, W], steps float32 [R]) of whole rows [R, W], padded with zeros.

    A row with a value that is not finite has a step that is not, so no product hides it: as whole numbers, absolute
    values are in the same order as themselves, and above all of them stand infinity and NaN.
    """
    x = x.to(tl.float32)
    GREATEST: tl.constexpr = 127.0 if tl.int8 == NUMBER else 448.0
    greatest = tl.max(tl.abs(x).to(tl.int32, bitcast=True), axis=1).to(tl.float32, bitcast=True)
    step = greatest / GREATEST
    scaled = x / tl.where(step > 0.0, step, 1.0)[:, None]
    scaled = tl.minimum(tl.maximum(scaled, -GREATEST), GREATEST)
    if tl.int8 == NUMBER:
        scaled = tl.floor(scaled + 0.5)
    elif INTERPRET:
        scaled = e4m3(scaled)
    return scaled.to(NUMBER), step


def check_steps(rows: int, numbers: Tensor, steps: Tensor) -> None:
    """ValueError where they are no numbers and steps of so many rows."""
    if numbers.dtype not in BYTES or steps.shape != (rows,) or steps.dtype != torch.float32:
        raise ValueError(
            f"numbers {numbers.dtype} {list(numbers.shape)}, steps {steps.dtype} {list(steps.shape)}: expected int8 or "
            f"float8_e4m3fn, and float32 [{rows}]"
        )
