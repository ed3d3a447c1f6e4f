"""Results with their targets, what they are printed and written as, and the machine."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Result:
    name: str
    value: float | None  # None: not measured, for want of what `needs` says
    unit: str
    target: float
    better: str  # lower or higher
    peers: dict[str, float] = field(default_factory=dict)  # milliseconds
    needs: str | None = None

    @property
    def met(self) -> bool | None:
        if self.value is None:
            return None
        return self.value <= self.target if self.better == "lower" else self.value >= self.target

    def as_json(self) -> dict[str, Any]:
        """`needs` where something was missing, and only there."""
        return {name: value for name, value in asdict(self).items() if name != "needs" or value is not None}


@dataclass(slots=True)
class Report:
    """`subject`: what the names of its results begin with."""

    subject: str
    results: list[Result] = field(default_factory=list)
    cells: list[dict[str, Any]] = field(default_factory=list)  # everything that was timed, where that is kept
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
        value = round(value, 4) if abs(value) >= 0.01 else float(f"{value:.4g}")
        self.results.append(Result(f"{self.subject}/{name}", value, unit, target, better, peers or {}))
        print(f"  {self.subject}/{name} {value:.4g} {unit}", flush=True)

    def lacking(self, name: str, unit: str, target: float, better: str, needs: str) -> None:
        """A result that could not be measured here."""
        self.results.append(Result(f"{self.subject}/{name}", None, unit, target, better, needs=needs))

    def write(self, path: Path, about: Mapping[str, Any], **more: object) -> None:
        """As JSON: the machine, the results, what else is given, and the notes."""
        results = [result.as_json() for result in self.results]
        written_as(path, {"machine": about, "results": results, **more, "notes": self.notes})


def written_as(path: Path, whole: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    print(f"written: {path}")


def machine(**more: object) -> dict[str, Any]:
    """What every benchmark says of where it ran, and what else this one does."""
    model = [line for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "cpu": model[0].split(":", 1)[1].strip() if model else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        **more,
        "load_before": os.getloadavg(),
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def computing(threads: int) -> dict[str, Any]:
    """What matters of the machine to torch and its peers."""
    import torch  # which a benchmark of the whole stack does not need

    return {
        "capability": torch.backends.cpu.get_cpu_capability(),
        "onednn_max_cpu_isa": os.environ.get("ONEDNN_MAX_CPU_ISA"),
        "threads": threads,
        "torch": torch.__version__,
        **{name: version for name in ("numpy", "faiss-cpu", "usearch") if (version := _version(name))},
    }


def table(results: Sequence[Result]) -> str:
    width = max(len(result.name) for result in results)
    lines = []
    for result in results:
        sign = "<=" if result.better == "lower" else ">="
        verdict = {True: "met", False: "NOT MET", None: f"not measured: needs {result.needs}"}[result.met]
        value = "" if result.value is None else f"{result.value:g}"
        lines.append(f"{result.name:<{width}}  {value:>10}  {sign} {result.target:g} {result.unit}  {verdict}")
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
