"""Numpy arrays on their way to a device: packed into pinned memory, one copy, views of what arrived.

A pinned buffer is filled again only once its copy has ended, so there are two, and the host waits for neither in
passing. Without a device there is nothing to copy: the tensors are the arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

_ALIGN = 256  # bytes: kernels load lines of 16 and more
_FIRST = 1 << 20

Array = npt.NDArray[Any]


class Staging:
    """One thread's, and of one stream: the one that is current when it sends."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: list[torch.Tensor | None] = [None, None]
        self._copied: list[torch.cuda.Event | None] = [None, None]
        self._turn = 0

    def sent(self, arrays: Sequence[Array]) -> list[torch.Tensor]:
        """The arrays on the device, of the same shapes, in the current stream's order; on a CPU the arrays themselves,
        which must not change meanwhile."""
        whole = [np.ascontiguousarray(array) for array in arrays]
        if self._device.type == "cpu":
            return [torch.from_numpy(array) for array in whole]
        begins, total = [], 0
        for array in whole:
            begins.append(total)
            total += -(-array.nbytes // _ALIGN) * _ALIGN
        pinned = self._room(total)
        for begin, array in zip(begins, whole, strict=True):
            raw = torch.from_numpy(array.reshape(-1).view(np.uint8))
            pinned[begin : begin + array.nbytes].copy_(raw)
        there = pinned[:total].to(self._device, non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's
        event.record()
        self._copied[self._turn] = event
        self._turn = 1 - self._turn
        return [
            there[begin : begin + array.nbytes].view(torch.from_numpy(array[:0]).dtype).view(array.shape)
            for begin, array in zip(begins, whole, strict=True)
        ]

    def _room(self, count: int) -> torch.Tensor:
        """The buffer whose turn it is, its last copy done."""
        copied, buffer = self._copied[self._turn], self._buffers[self._turn]
        if copied is not None:
            copied.synchronize()
        if buffer is None or len(buffer) < count:
            size = _FIRST
            while size < count:
                size *= 2
            buffer = torch.empty(size, dtype=torch.uint8, pin_memory=True)
            self._buffers[self._turn] = buffer
        return buffer
