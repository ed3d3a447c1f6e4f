"""A batch of postings as percolation reads it on a device: one piece of staging, copied at once.

bits      int64 [conditions]: of each condition the postings for which it holds, bit p of posting p; number 0 holds
          for all. Which conditions there are is the caller's; the host has asked each once.
tenants   int64 [tenants]: of each tenant its postings
dense     bfloat16 [bucket, width]: zeros behind the last posting and the last value
sketches  int8 [L, bucket]: a line a term, since a query names a few of them
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from penstock.kernels.percolate import tuning
from penstock.kernels.percolate.rows import RowLayout

_ALIGN = 256  # bytes

Bits = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Postings:
    """A batch on its device; `staging` is what it lies in."""

    count: int
    bucket: int
    dense_norm: float  # float32, the greatest of the batch, rounded up
    lexical_norm: float
    staging: torch.Tensor
    bits: torch.Tensor
    tenants: torch.Tensor
    dense: torch.Tensor
    sketches: torch.Tensor


def staged(
    layout: RowLayout,
    dense: torch.Tensor,
    sketch: torch.Tensor,
    norms: tuple[float, float],
    bits: Bits,
    tenants: Bits,
    device: torch.device | str,
) -> Postings:
    """dense bfloat16 [m, D], sketch int8 [m, L], the greatest norms of either.

    D may be 0: that part scores 0; L too, where no query of the store has a term: each names a line that must be there.

    bits, tenants: the first m bits of each count. One copy to the device, on the current stream; nothing waits for it.
    """
    count, width = dense.shape
    if len(sketch) != count:
        raise ValueError(f"{count} dense rows and {len(sketch)} sketches: expected one of each a posting")
    if width > layout.width:
        raise ValueError(f"postings of {width} values for records of {layout.width}")
    bucket = tuning.bucket_of(count)
    lines = max(sketch.shape[1], 1)
    sizes = [8 * len(bits), 8 * max(len(tenants), 1), 2 * bucket * layout.width, lines * bucket]
    begins = np.cumsum([0, *(-(-size // _ALIGN) * _ALIGN for size in sizes)]).tolist()
    device = torch.device(device)
    host = torch.zeros(begins[-1], dtype=torch.uint8, pin_memory=device.type == "cuda")
    parts = _parts(host, begins, sizes, bucket, layout.width, lines)
    parts[0].copy_(torch.from_numpy(bits))
    if len(tenants):
        parts[1].copy_(torch.from_numpy(tenants))
    parts[2][:count, :width] = dense
    parts[3][: sketch.shape[1], :count] = sketch.T
    staging = host if device.type == "cpu" else host.to(device, non_blocking=True)
    return Postings(
        count=count,
        bucket=bucket,
        # Room for the product with an error in float32, and for values that are flushed to zero.
        dense_norm=_up(norms[0] * (1 + 2.0**-20) + max(layout.width, 1) ** 0.5 * 2.0**-116),
        lexical_norm=_up(norms[1] * (1 + 2.0**-20)),
        staging=staging,
        **dict(
            zip(
                ("bits", "tenants", "dense", "sketches"),
                _parts(staging, begins, sizes, bucket, layout.width, lines),
                strict=True,
            )
        ),
    )


def _parts(
    staging: torch.Tensor, begins: list[int], sizes: list[int], bucket: int, width: int, lines: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    raw = [staging[begin : begin + size] for begin, size in zip(begins, sizes, strict=False)]
    return (
        raw[0].view(torch.int64),
        raw[1].view(torch.int64),
        raw[2].view(torch.bfloat16).view(bucket, width),
        raw[3].view(torch.int8).view(lines, bucket),
    )


def _up(value: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.nextafter(np.float32(value), np.float32(np.inf)))
