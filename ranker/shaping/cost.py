"""What a batch takes: seconds = overhead + per token · tokens, learnt from what batches took.

Rule: recursive least squares with exponential forgetting (Åström and Wittenmark, Adaptive Control, 2nd ed., section
2.2), residuals weighed relative to the prediction, so that long batches do not drown short ones. Two residuals in a
row on one side and past SURPRISE of the usual spread are a change of the engine, not noise: the covariance is then
blown up (covariance resetting, ibid. section 11.5) and the next few batches decide. Both coefficients stay within SPAN
of the prior, and the covariance within its start, so sizes that are all alike cannot blow it up.

Units: seconds and tokens. Owner: one shaper; not safe for threads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

FORGET = 0.97  # what is left of a batch's weight when the next one ends: some thirty batches are remembered
SPREAD_FORGET = 0.9
SURPRISE = 3.0  # spreads; a residual past them, twice in a row on one side, is a change
LEAST_SPREAD = 0.02  # relative: clocks and other tenants of the machine
FIRST_SPREAD = 0.2  # of a prior that nothing has confirmed
CHANGED = 1.15  # a surprise is a change only where it is at least this factor
SPAN = 100.0  # a coefficient is between prior / SPAN and prior · SPAN
TRUSTED_AFTER = 8  # batches


@dataclass(frozen=True, slots=True)
class Prior:
    """What is believed before the first batch; measured when the engine starts."""

    overhead_s: float  # seconds a batch
    token_s: float  # seconds a token

    def __post_init__(self) -> None:
        if not (self.overhead_s >= 0 and self.token_s > 0 and math.isfinite(self.overhead_s + self.token_s)):
            raise ValueError(
                f"prior of {self.overhead_s} s a batch and {self.token_s} s a token: expected at least 0 and more than "
                "0, both finite; measure a short and a long batch"
            )


class CostModel:
    """Seconds of a batch by its tokens."""

    def __init__(self, prior: Prior, usual_tokens: float) -> None:
        """`usual_tokens` of a batch set the scale on which the two coefficients are comparable."""
        self.overhead_s = prior.overhead_s
        self.token_s = prior.token_s
        self.spread = FIRST_SPREAD  # relative, of residuals: root of their forgotten mean square
        self.batches = 0
        self._prior = prior
        self._scale = max(usual_tokens, 1.0)
        usual_s = prior.overhead_s + prior.token_s * self._scale
        self._loose = (usual_s**2, usual_s**2)  # variances of the start: as large as a usual batch
        self._covariance = (self._loose[0], 0.0, self._loose[1])  # of (overhead, token · scale)
        self._surprises = 0  # in a row; the sign is the side

    def predict(self, tokens: float) -> float:
        return self.overhead_s + self.token_s * tokens

    @property
    def confidence(self) -> float:
        """0 to 1: how close predictions were to what batches took, once there were some."""
        return self.batches / (self.batches + TRUSTED_AFTER) / (1.0 + self.spread)

    def observed(self, tokens: float, seconds: float) -> None:
        """A batch of so many tokens took so long. What is no duration is passed over."""
        if not (seconds > 0 and math.isfinite(seconds)) or tokens < 0:
            return
        predicted = max(self.predict(tokens), 1e-9)
        residual = (seconds - predicted) / predicted
        if self._is_change(seconds / predicted, residual):
            self._covariance = (self._loose[0], 0.0, self._loose[1])
        self._learn(tokens / self._scale, seconds, predicted)
        self.spread = math.sqrt(SPREAD_FORGET * self.spread**2 + (1 - SPREAD_FORGET) * min(abs(residual), 1.0) ** 2)
        self.batches += 1

    def _is_change(self, factor: float, residual: float) -> bool:
        large = abs(residual) > SURPRISE * max(self.spread, LEAST_SPREAD) or factor > 2.0 or factor < 0.5
        if not large or 1 / CHANGED < factor < CHANGED:
            self._surprises = 0
            return False
        side = 1 if residual > 0 else -1
        self._surprises = self._surprises + side if self._surprises * side > 0 else side
        return abs(self._surprises) >= 2

    def _learn(self, x: float, seconds: float, predicted: float) -> None:
        a, b, c = self._covariance
        noise = (LEAST_SPREAD * predicted) ** 2
        gain_0, gain_1 = a + b * x, b + c * x
        total = FORGET * noise + gain_0 + gain_1 * x
        gain_0, gain_1 = gain_0 / total, gain_1 / total
        error = seconds - predicted
        overhead = self.overhead_s + gain_0 * error
        token = self.token_s + gain_1 * error / self._scale
        least, most = self._prior.token_s / SPAN, self._prior.token_s * SPAN
        if overhead < 0:  # on the boundary the rest of the error belongs to the tokens
            overhead, token = 0.0, (seconds / (x * self._scale) if x > 0 else token)
        self.overhead_s = min(overhead, SPAN * max(self._prior.overhead_s, self._prior.token_s * self._scale))
        self.token_s = min(max(token, least), most)
        h0, h1 = a + b * x, b + c * x
        a, b, c = (a - gain_0 * h0) / FORGET, (b - gain_0 * h1) / FORGET, (c - gain_1 * h1) / FORGET
        over = max(a / self._loose[0], c / self._loose[1], 1.0)
        self._covariance = (a / over, b / over, c / over)
