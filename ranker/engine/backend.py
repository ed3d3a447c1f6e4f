"""What runs forwards, as the engine sees it: ranker/engine/forward.py on a CPU, ranker/engine/device.py on a device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from penstock.ranker.engine.plan import Forward


class Launched(Protocol):
    """A forward on its way."""

    def wait(self) -> NDArray[np.float64]:
        """Log-odds of yes against no, float64 [N], in the forward's order: once, from the thread that launched it.

        Raises what the device raises.
        """


class Backend(Protocol):
    """Forwards run in the order of their launches, one at a time."""

    @property
    def in_flight(self) -> int:
        """How many may be launched and not waited for."""

    def launch(self, forward: Forward) -> Launched:
        """Raises MalformedRequest, and then nothing was launched."""


@dataclass(frozen=True, slots=True)
class Scored:
    """A forward that was computed as it was launched."""

    logits: NDArray[np.float64]

    def wait(self) -> NDArray[np.float64]:
        return self.logits
