"""The device cells of benchmarks/ranker_kernels.py on the CPU, small enough for Triton's interpreter: what they find.

Nothing of Penstock is taken from an installation, and what it logs and counts with is not there, as on a machine that
has torch, triton, numpy and transformers alone.

    TRITON_INTERPRET=1 python tests/support/ranker_kernel_cells.py FILE
"""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

ABSENT = ("penstock", "structlog", "prometheus_client", "fastavro", "pydantic")
installed = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in ABSENT else installed(name, package)

from benchmarks.kerneling.importing import from_checkout, silent  # noqa: E402  # found by the line above

from_checkout()
silent("structlog", "prometheus_client")
importlib.util.find_spec = installed

import torch  # noqa: E402
from quick_interpreter import replace_once_a_launch  # noqa: E402

from benchmarks.kerneling import timing  # noqa: E402
from benchmarks.kerneling.session import Lacking  # noqa: E402
from benchmarks.ranker_kerneling import cells, shapes  # noqa: E402
from penstock.ranker.engine.untrained import ModelShape  # noqa: E402

TINY = ModelShape(64, 32, 48, 2, 2, 1, 16)

if __name__ == "__main__":
    replace_once_a_launch()
    timing.WARM = 1
    cells.REPEATS = 1
    asked = (
        shapes.Asked("text", 5, 7, 3),
        shapes.Asked("text_900", 4, 30, 2),
        shapes.Asked("embedding_items", 4, 2, 3, queries=2, embedded=True),
    )
    tried = {"0.6B": TINY, "375M": replace(TINY, num_hidden_layers=1)}
    session = cells.Session(
        torch.device("cpu"), runs=1, seconds=0.5, shapes=tried, asked=asked, candidates=4, budget=64
    )
    session.roofline(64)
    found, needs = {}, {}
    for cell in cells.CELLS.values():
        try:
            found |= cell(session)
        except Lacking as error:
            needs |= error.rows
    strangers = sorted({name.split(".")[0] for name in sys.modules} & set(ABSENT[1:]))
    whole = {"found": found, "needs": needs, "cells": session.cells, "beside": strangers}
    Path(sys.argv[1]).write_text(json.dumps(whole), encoding="utf-8")
