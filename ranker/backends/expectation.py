"""What the dense product of a pair is likely to be, from its words, where there is none to compute.

A posting that no model has read yet has no dense plane, nor has a query while the models role is away. Counting an
unknown product as 0 would say that the pair has nothing in common: probabilities would be far too low, and a fresh
posting would stand below worse ones. Weights: dense_expectation.json, made by training/dense_expectation.py.
"""

from __future__ import annotations

import json
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from penstock.ranker.backends.features import FEATURES
from penstock.ranker.errors import UnfitScorer

FILE = "dense_expectation.json"
_DENSE, _LENGTH, _BY_LENGTH = (FEATURES.index(name) for name in ("dense", "query_length", "dense_by_length"))


class DenseExpectation:
    """Immutable once made; safe to share between threads."""

    def __init__(self, source: bytes, name: str) -> None:
        """Raises UnfitScorer saying what is wrong with the file."""
        self.source = source
        try:
            content = json.loads(source)
            self._of = [FEATURES.index(feature) for feature in content["of"]]
            self._weights = np.array(content["weights"], dtype=np.float64)
            self._intercept = float(content["intercept"])
            if self._weights.shape != (len(self._of),) or not np.isfinite([*self._weights, self._intercept]).all():
                raise ValueError("one finite weight a feature is expected")
        except (ValueError, KeyError, TypeError) as error:
            raise UnfitScorer(
                f"{name} is no expectation of dense products ({type(error).__name__}: {error}): install the whole "
                "wheel again, or make it with training/dense_expectation.py"
            ) from error

    @classmethod
    def shipped(cls) -> DenseExpectation:
        """The one in this package. Raises UnfitScorer."""
        file = resources.files("penstock.ranker.backends") / FILE
        try:
            return cls(file.read_bytes(), str(file))
        except OSError as error:
            raise UnfitScorer(
                f"{file} is missing: install the whole wheel, or run training/dense_expectation.py"
            ) from error

    def fill(self, values: NDArray[np.float64], unknown: NDArray[np.bool_]) -> None:
        """Puts the expectation into rows of features [n, F] where the product is unknown [n]."""
        rows = values[unknown]
        dense = np.clip(rows[:, self._of] @ self._weights + self._intercept, 0.0, 1.0)
        rows[:, _DENSE] = dense
        rows[:, _BY_LENGTH] = dense * rows[:, _LENGTH]
        values[unknown] = rows
