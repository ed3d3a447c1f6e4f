"""Compiling kernels from a test: always in a process of its own, for pytest's may run kernels in the interpreter."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "triton"  # what was compiled before takes no time; a clean clone has none


def compile_in_a_process(*arguments, timeout=1_200, **more):
    """`python <arguments>` without TRITON_INTERPRET, its output as text."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment = {"TRITON_CACHE_DIR": str(CACHE), **environment, **more}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
        timeout=timeout,
        check=False,
    )
