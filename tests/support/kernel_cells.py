"""The device cells of benchmarks/kernels.py on the CPU, small enough for Triton's interpreter, and what they find.

Nothing of Penstock is taken from an installation, as on a machine that has torch, triton and numpy alone.

    TRITON_INTERPRET=1 python tests/support/kernel_cells.py FILE
"""

import importlib.util
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

installed = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "penstock" else installed(name, package)

from benchmarks.kerneling.importing import from_checkout  # noqa: E402  # found by the line above

from_checkout()
importlib.util.find_spec = installed

import torch  # noqa: E402
from quick_interpreter import replace_once_a_launch  # noqa: E402

from benchmarks.kerneling import cells, timing  # noqa: E402
from benchmarks.kerneling.churning import churning  # noqa: E402
from benchmarks.kerneling.matching import matching  # noqa: E402

if __name__ == "__main__":
    replace_once_a_launch()
    timing.WARM = 1
    session = cells.Session(torch.device("cpu"), rows=300, runs=1, page_rows=128)
    session.roofline(64, 1 << 18)
    # The interpreter takes half a minute for 64 queries: two stand in for them.
    batch = cells.batch(session, k=3, width=16, batches=(1, 2), compared=2)
    found = {
        **{name.replace("/B2", "/B64"): value for name, value in batch.items()},
        **cells.clustered(session, count=2, k=5, width=16),
        **cells.int8(session, count=2, k=5, width=16),
        **cells.linr(session, 280, k=5),
        **matching(session, 300, 16),
        **churning(session, 0.2, 2, 1_000, 5, 16),
    }
    path = cells.__file__
    Path(sys.argv[1]).write_text(json.dumps({"found": found, "cells": session.cells, "from": path}), encoding="utf-8")
