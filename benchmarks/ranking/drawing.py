"""Which query is asked next, where some are asked far more often than others."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def zipf(count: int, exponent: float) -> NDArray[np.float64]:
    """The chance of each of `count`, the likeliest first; [count]."""
    weights = np.arange(1, count + 1, dtype=np.float64) ** -exponent
    chances: NDArray[np.float64] = weights / weights.sum()
    return chances
