"""How far a kernel's result may lie from its float64 oracle: what rounding can do at most, derived, not tuned.

`u` is the unit roundoff of the type that sums are in. A sum of n terms passes through at most `steps(n)` roundings: a
thread's own values in a row, then a tree. Triton's interpreter cuts float32 to bfloat16 off instead of rounding it, so
a cast to it may be off by twice as much there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from penstock.kernels.rowwise.rows import INTERPRETED

SMALLEST = 2.0**-126  # a normal float32: below it values may be flushed to 0


def unit(dtype: torch.dtype) -> float:
    """The relative error of a cast to `dtype`, at most."""
    return float(torch.finfo(dtype).eps) / (1 if INTERPRETED and dtype == torch.bfloat16 else 2)


def sums(dtype: torch.dtype) -> float:
    """The unit roundoff of what a kernel adds up values of `dtype` in."""
    return unit(torch.float64 if dtype == torch.float64 else torch.float32)


def steps(count: int) -> int:
    return 32 + count.bit_length()


def beyond(found: Tensor, wanted: Tensor, allowed: Tensor | float) -> int:
    """Values that are further from what is wanted than is allowed. NaN is right where it is wanted, and only there."""
    found, wanted = found.double().cpu(), wanted.double()
    same = (found == wanted) | (found.isnan() & wanted.isnan())
    return int((~same & ~((found - wanted).abs() <= allowed)).sum())
