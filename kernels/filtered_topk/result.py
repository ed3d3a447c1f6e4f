"""What the host needs of a batch: one piece of device memory that kernels write to, read by one copy and one wait."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from penstock.kernels.filtered_topk.finish import STATUS
from penstock.kernels.filtered_topk.workspace import Workspace
from penstock.kernels.slabs.layout import ALIGN

COUNTERS = 2  # of `plan`


@dataclass(frozen=True, slots=True)
class Result:
    """Views of `whole` (uint8), on the device, or of its copy on the host. Of B queries, F filters and their best k:

    counters int64 [2]; totals int64 [F]: rows that pass; status int32 [B, STATUS]; reached float32 [B]: what the k best
    reach at least; slots int64, dense and lexical float64 [B, k].
    """

    whole: Tensor
    counters: Tensor
    totals: Tensor
    status: Tensor
    reached: Tensor
    slots: Tensor
    dense: Tensor
    lexical: Tensor

    @classmethod
    def taken(cls, workspace: Workspace, queries: int, filters: int, k: int) -> Result:
        nbytes, _ = _places(queries, filters, k)
        return cls.of(workspace.take("result", (nbytes,), torch.uint8), queries, filters, k)

    @classmethod
    def of(cls, whole: Tensor, queries: int, filters: int, k: int) -> Result:
        _, places = _places(queries, filters, k)
        return cls(
            whole,
            *(whole[at : at + math.prod(shape) * kind.itemsize].view(kind).view(shape) for at, kind, shape in places),
        )

    def on_host(self) -> Result:
        """As it is once all that was launched is done: the one time that an answer waits for the device."""
        return self.of(fetched(self.whole), len(self.status), len(self.totals), self.slots.shape[1])


def fetched(whole: Tensor) -> Tensor:
    """A copy on the host, of what is written on the current stream."""
    if whole.device.type == "cpu":
        return whole.clone()
    host = torch.empty(whole.shape, dtype=whole.dtype, pin_memory=True)  # torch keeps such memory for the next answer
    host.copy_(whole, non_blocking=True)
    torch.cuda.current_stream(whole.device).synchronize()
    return host


def _places(queries: int, filters: int, k: int) -> tuple[int, list[tuple[int, torch.dtype, tuple[int, ...]]]]:
    """Bytes of the whole, and of each view in its order: where it begins, what it holds, and its shape."""
    wanted: list[tuple[torch.dtype, tuple[int, ...]]] = [
        (torch.int64, (COUNTERS,)),
        (torch.int64, (filters,)),
        (torch.int32, (queries, STATUS)),
        (torch.float32, (queries,)),
        *((kind, (queries, k)) for kind in (torch.int64, torch.float64, torch.float64)),
    ]
    out, at = [], 0
    for kind, shape in wanted:
        out.append((at, kind, shape))
        at += -(-math.prod(shape) * kind.itemsize // ALIGN) * ALIGN
    return at, out
