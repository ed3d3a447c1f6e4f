"""Which system a command talks to: the local stack of a data directory, or one somebody runs themselves."""

from __future__ import annotations

import os
from pathlib import Path


def configured_elsewhere() -> bool:
    """Whether addresses are given by PENSTOCK_CONFIG or by variables, and not by a local stack's own file."""
    return "PENSTOCK_CONFIG" in os.environ or any(
        name.startswith("PENSTOCK_KAFKA__") or (name.startswith("PENSTOCK_R") and "__" in name) for name in os.environ
    )


def stack_runs(directory: Path) -> bool:
    """Whether a stack is up in `directory`, in health or not."""
    if not directory.is_dir():
        return False
    from penstock.infra.local.stack import Stack  # imports psutil and more: only when asked

    return Stack(directory).running()
