"""Which of the tunings that fit is quickest on this device, measured once a shape and kept in a file.

The file belongs to whoever gives its path; processes that share it see each other's entries, and the last writer of a
shape stands. A key names the device and Triton's release: another of either measures anew. Searches never measure:
they take what is kept, or else the first that fits (tuning.py); `penstock warmup` measures.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path

import torch
import triton

from penstock.kernels.filtered_topk.tuning import Tuning

RUNS = 9  # of which the median counts
WARM = 2  # runs before them


class Tunings:
    """The quickest known tuning of each shape. The file is read once; what this process keeps it knows at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries: dict[str, object] | None = None

    def get(self, key: str) -> Tuning | None:
        """What is kept; None of an unknown shape, and of an entry that this release cannot read."""
        if self._entries is None:
            self._entries = self._read()
        entry = self._entries.get(key)
        names = {field.name for field in fields(Tuning)}
        if (
            not isinstance(entry, dict)
            or set(entry) != names
            or not all(isinstance(one, int) for one in entry.values())
        ):
            return None
        return Tuning(**entry)

    def keep(self, key: str, tuning: Tuning) -> None:
        """Whole or not at all, whoever else writes."""
        entries = self._entries = self._read() | {key: asdict(tuning)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
        with os.fdopen(handle, "w") as file:
            json.dump(entries, file, indent=1, sort_keys=True)
        Path(name).replace(self.path)

    def _read(self) -> dict[str, object]:
        try:
            found = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return {}  # a file that cannot be read is as good as none: it is measured again
        return found if isinstance(found, dict) else {}


def operator_of(quantised: bool) -> str:
    """Whose tunings a scan of that plane takes."""
    return "int8_topk" if quantised else "filtered_topk"


def key_of(operator: str, width: int, batch: int, terms: int, device: torch.device) -> str:
    """What a shape is kept by."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{name}, triton {triton.__version__}: {operator} d{width} b{batch} t{terms}"


def quickest(candidates: Sequence[Tuning], run: Callable[[Tuning], object], clock: Callable[[], float]) -> Tuning:
    """Of candidates run in turns, the one with the least median. `clock`: seconds, once all that was launched is done.

    A candidate that the device refuses (a release of Triton that needs more shared memory for it) is left out; raises
    RuntimeError where all are.
    """
    spent: dict[Tuning, list[float]] = {}
    refused: list[Exception] = []
    for candidate in candidates:
        try:
            for _ in range(WARM):
                run(candidate)
            spent[candidate] = []
        except (RuntimeError, triton.runtime.errors.OutOfResources) as error:
            refused.append(error)
    if not spent:
        raise RuntimeError(f"the device refused all {len(candidates)} tunings, the last: {refused[-1]}")
    for _ in range(RUNS):
        for candidate, times in spent.items():
            begin = clock()
            run(candidate)
            times.append(clock() - begin)
    return min(spent, key=lambda candidate: statistics.median(spent[candidate]))
