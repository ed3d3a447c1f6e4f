"""The ahead-of-time suite of some operators, run as its command runs it, and what every benchmark says of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.kerneling.importing import ROOT
from penstock.kernels.aot.check import MOSTLY, Checked, wide_share
from penstock.kernels.aot.sass import SHARED_PER_CTA


def compile_all(operators: Sequence[str], jobs: int) -> tuple[list[Checked], str]:
    """By the command, in a process without the interpreter: what was found, and Triton's version."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "found.json"
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        environment.setdefault("TRITON_CACHE_DIR", str(ROOT / ".cache" / "triton"))
        (Path(folder) / "penstock").symlink_to(ROOT)  # for it and the processes that it starts, installed or not
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (folder, environment.get("PYTHONPATH"))))
        arguments = ["--json", str(path), "--jobs", str(jobs), "--operator", *operators]
        command = [sys.executable, "-m", "penstock.kernels.aot", *arguments]
        subprocess.run(command, cwd=folder, env=environment, check=False)
        if not path.exists():
            raise RuntimeError("the ahead-of-time suite wrote nothing: its error stands above")
        read = json.loads(path.read_text())
    return [Checked.from_json(one) for one in read["configs"]], read["triton"]


def counted(checked: Sequence[Checked]) -> dict[str, float]:
    """Rows of aot/. What was not compiled spills, as far as anybody knows."""
    spilling = [one for one in checked if one.figures is None or one.figures.main.spills]
    crowded = [one for one in checked if one.figures is None or one.figures.shared > SHARED_PER_CTA]
    return {
        "aot/spilling_configs": len(spilling),
        "aot/over_shared_memory": len(crowded),
        "aot/configs": len(checked),
    }


def all_multiply_well(chosen: Sequence[Checked]) -> bool:
    """Whether there are some, each with tensor-core instructions, and tiles by 128-bit asynchronous copies."""
    return bool(chosen) and all(
        one.figures is not None and one.figures.main.tensor_core > 0 and wide_share(one.figures.main) >= MOSTLY
        for one in chosen
    )
