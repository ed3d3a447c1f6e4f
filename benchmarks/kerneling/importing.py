"""Our kernels from a checkout that nobody installed: a machine with a GPU has torch, triton and numpy, and no more."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def from_checkout() -> None:
    """`penstock.kernels` is the checkout's folder, unless an installation already answers to the name."""
    if importlib.util.find_spec("penstock") is None:
        package = types.ModuleType("penstock")
        package.__path__ = [str(ROOT)]
        sys.modules["penstock"] = package
