"""Rows of a program, the type that sums are in, and which tensors are refused."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
# What Triton compiles has the types of its arguments, which are no Python types.
from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def wide(x):
    """In float32; float64 stays. Sums, norms and products are in it, whatever is loaded and stored."""
    WIDE: tl.constexpr = tl.float64 if x.dtype == tl.float64 else tl.float32
    return x.to(WIDE)


INTERPRETED = not isinstance(wide, triton.JITFunction)
# A program's rows: one, which its warps share. The interpreter takes programs one by one, so some together.
ROWS = 64 if INTERPRETED else 1


def check_contiguous(**tensors: Tensor) -> None:
    """ValueError where one is not: kernels find rows by their width."""
    for name, tensor in tensors.items():
        if not tensor.is_contiguous():
            raise ValueError(
                f"{name} {list(tensor.shape)} has strides {list(tensor.stride())}: expected rows one behind the other"
            )
