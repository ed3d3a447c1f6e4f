"""Forwards through a backend as the engine takes them: as many in flight as it holds, read in their order."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from penstock.ranker.engine.backend import Backend
from penstock.ranker.engine.plan import Forward, Request, plan, unpack


def computed(backend: Backend, forwards: Iterable[Forward]) -> list[npt.NDArray[np.float64]]:
    """Logits of each; one is asked for only when there is room for it."""
    ahead = iter(forwards)
    flying = deque(backend.launch(forward) for forward in itertools.islice(ahead, backend.in_flight))
    found = []
    while flying:
        found.append(flying.popleft().wait())
        flying.extend(backend.launch(forward) for forward in itertools.islice(ahead, 1))
    return found


def score(backend: Backend, requests: list[Request], budget: int) -> npt.NDArray[np.float64]:
    """Logits of all items, in the requests' order; planning is part of it."""
    forwards = plan(requests, budget, budget)
    return np.concatenate(unpack(requests, forwards, computed(backend, forwards)))
