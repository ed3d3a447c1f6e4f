"""One device, what it could do when the session began, and everything that was timed on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from benchmarks.kerneling.timing import RUNS, Timed, interleaved, peak_flops


class Lacking(Exception):
    """A cell that cannot run here: what each of its rows needs."""

    def __init__(self, rows: Mapping[str, str]) -> None:
        super().__init__(str(rows))
        self.rows = dict(rows)


@dataclass
class DeviceSession:
    device: torch.device
    runs: int = RUNS  # of each contender
    flops: float = 0.0
    cells: list[dict[str, Any]] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    def roofline(self, size: int = 8_192) -> None:
        """Measures what everything else is a share of: products of matrices of this size, bfloat16."""
        self.flops = peak_flops(self.device, size, self.runs)

    @property
    def measured(self) -> dict[str, float]:
        """What `roofline` found, by the names of the report."""
        return {"bf16_flops": self.flops}

    def timed(self, cell: str, contenders: dict[str, Callable[[int], Any]], **about: object) -> dict[str, Timed]:
        found = interleaved(contenders, self.device, self.runs)
        self.cells.append({"cell": cell, **about, "ms": {name: asdict(one) for name, one in found.items()}})
        return found
