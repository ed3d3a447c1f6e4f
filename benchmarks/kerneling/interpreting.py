"""Operators' own cases through Triton's interpreter against its oracle, in a process of its own.

An operator's seam is kernels/<operator>/check.py with `mismatches() -> int`: ids (or pairs) that are wrong over some
seeded cases, small enough for the interpreter. Run as a program it writes {operator: mismatches} to a file.

    TRITON_INTERPRET=1 python benchmarks/kerneling/interpreting.py FILE OPERATOR ...
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.kerneling.importing import from_checkout  # noqa: E402  # found by the line above

from_checkout()

from penstock.kernels.aot.registry import modules, operators  # noqa: E402


def mismatches(chosen: Sequence[str]) -> dict[str, int]:
    """By operator, of those that have cases; RuntimeError where the interpreter failed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mismatches.json"
        environment = {**os.environ, "TRITON_INTERPRET": "1"}
        done = subprocess.run([sys.executable, __file__, str(path), *chosen], cwd=ROOT, env=environment, check=False)
        if done.returncode or not path.exists():
            raise RuntimeError(f"the interpreter's cases ended with status {done.returncode}: the error stands above")
        found: dict[str, int] = json.loads(path.read_text())
        return found


def judged(chosen: Sequence[str]) -> tuple[dict[str, int], str]:
    """Mismatches by operator, and what is needed before they say anything of all: nothing, usually."""
    try:
        counts = mismatches(chosen)
    except RuntimeError as error:  # Triton 3.6's interpreter, say, on a NumPy that it does not know
        return {}, f"Triton's interpreter to run here: {error}"
    lacking = unchecked(chosen)
    return counts, f"cases (check.py) of {', '.join(lacking)}" if lacking else ""


def unchecked(chosen: Sequence[str]) -> list[str]:
    """Those without cases of their own: nothing may be said of all while there is one."""
    return sorted(set(chosen) - set(operators("check")))


if __name__ == "__main__":
    counts = {
        operator: int(module.mismatches()) for operator, module in modules("check").items() if operator in sys.argv[2:]
    }
    Path(sys.argv[1]).write_text(json.dumps(counts), encoding="utf-8")
