"""Which system a command talks to: the local stack of a data directory, or one somebody runs themselves."""

from __future__ import annotations

import os
from pathlib import Path

# Where Kafka's clients go may take more than an address (TLS, credentials): all of its section counts.
_KAFKA = "PENSTOCK_KAFKA__"
_ADDRESSES = {
    "PENSTOCK_CONFIG",
    "PENSTOCK_REDIS__URL",
    "PENSTOCK_RETRIEVAL__LISTEN",
    "PENSTOCK_RETRIEVAL__SHARDS",
    "PENSTOCK_RANKER__LISTEN",
    "PENSTOCK_RANKER__ADDRESS",
}


def configured_elsewhere() -> bool:
    """Whether addresses are given by PENSTOCK_CONFIG or by variables, and not by a local stack's own file.

    Variables that say how a part works (PENSTOCK_RANKER__SCORER, PENSTOCK_RETRIEVAL__THREADS) name no system.
    """
    return any(name in _ADDRESSES or name.startswith(_KAFKA) for name in os.environ)


def stack_runs(directory: Path) -> bool:
    """Whether a stack is up in `directory`, in health or not."""
    if not directory.is_dir():
        return False
    from penstock.infra.local.stack import Stack  # imports psutil and more: only when asked

    return Stack(directory).running()
