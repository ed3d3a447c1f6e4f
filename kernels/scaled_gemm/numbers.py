"""What a row is quantised to: numbers of one byte and a step, value = number * step. torch only.

int8   whole numbers from -127 to 127: a value is off by half a step, 1/254 of the row's greatest, at most
fp8    e4m3, 3 bits of mantissa to 448: off by a sixteenth of itself, at most, or half of the least number's 2^-9
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Form = Literal["int8", "fp8"]
FORMS: dict[Form, torch.dtype] = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
GREATEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}


def quantised(rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(numbers of `dtype` [M, K], steps float32 [M]), computed in float64: a matrix's, once, when it is loaded."""
    wide = rows.double()
    steps = wide.abs().amax(-1) / GREATEST[dtype]
    scaled = torch.where(steps[:, None] > 0, wide / steps[:, None], 0.0)
    return (scaled.round() if dtype == torch.int8 else scaled.float()).to(dtype), steps.float()


def off(values: Tensor, dtype: torch.dtype) -> Tensor:
    """How far number * step may lie from each value, at most, float64: of a row's own greatest."""
    wide = values.double().abs()
    steps = wide.amax(-1, keepdim=True) / GREATEST[dtype]
    return (steps / 2).expand_as(wide) if dtype == torch.int8 else (wide / 16).maximum(steps / 1_024)
