"""Memory that batches work in, used over and over: uninitialised, by name, each piece as large as the largest wish."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


class Workspace:
    """Of one batch in flight: one stream's, and one thread's but for `nbytes`, which anybody may read.

    `admit` is told how many bytes it is about to hold, and raises where it may not.
    `moved` counts how often a piece made way for a larger one: whoever captured addresses looks whether it still does.
    """

    def __init__(self, device: torch.device, admit: Callable[[int], None] = lambda _: None) -> None:
        self.device = device
        self.moved = 0
        self._admit = admit
        self._held: dict[str, Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Uninitialised memory of this name, grown when it must be."""
        count = math.prod(shape)
        held = self._held.get(name)
        if held is None or held.dtype != dtype or held.numel() < count:
            held = self._grown(name, max(count, 1), dtype)
        return held[:count].view(shape)

    def _grown(self, name: str, count: int, dtype: torch.dtype) -> Tensor:
        before = self._held[name].nbytes if name in self._held else 0
        self._admit(self.nbytes - before + count * dtype.itemsize)
        if self._held.pop(name, None) is not None:  # before, so that both are never there together
            self.moved += 1
        try:
            held = self._held[name] = torch.empty(count, dtype=dtype, device=self.device)
        except torch.OutOfMemoryError:
            self._admit(self.nbytes)
            raise
        return held

    @property
    def nbytes(self) -> int:
        return sum(held.nbytes for held in list(self._held.values()))  # others may look while one takes
