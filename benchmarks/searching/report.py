"""Results with their targets, what they are written into, and the machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch


@dataclass(frozen=True, slots=True)
class Result:
    name: str
    value: float
    unit: str
    target: float
    better: str  # lower or higher
    peers: dict[str, float] = field(default_factory=dict)  # milliseconds

    @property
    def met(self) -> bool:
        return self.value <= self.target if self.better == "lower" else self.value >= self.target


@dataclass(slots=True)
class Report:
    results: list[Result] = field(default_factory=list)
    cells: list[dict[str, Any]] = field(default_factory=list)  # everything that was timed
    notes: dict[str, Any] = field(default_factory=dict)

    def add(
        self,
        name: str,
        value: float,
        unit: str,
        target: float,
        better: str = "lower",
        peers: dict[str, float] | None = None,
    ) -> None:
        self.results.append(Result(f"retrieval/{name}", round(value, 4), unit, target, better, peers or {}))
        print(f"  retrieval/{name} {value:.4g} {unit}", flush=True)


def machine(threads: int) -> dict[str, Any]:
    model = [line for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "cpu": model[0].split(":", 1)[1].strip() if model else platform.processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "onednn_max_cpu_isa": os.environ.get("ONEDNN_MAX_CPU_ISA"),
        "cores": os.cpu_count(),
        "threads": threads,
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: version for name in ("numpy", "faiss-cpu", "usearch") if (version := _version(name))},
        "load_before": os.getloadavg(),
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def table(results: Sequence[Result]) -> str:
    width = max(len(result.name) for result in results)
    lines = []
    for result in results:
        sign = "<=" if result.better == "lower" else ">="
        verdict = "met" if result.met else "NOT MET"
        lines.append(f"{result.name:<{width}}  {result.value:>10g}  {sign} {result.target:g} {result.unit}  {verdict}")
    return "\n".join(lines)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
