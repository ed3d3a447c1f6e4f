"""What a batch takes: seconds = overhead + per token · tokens, learnt from what batches took.

Rule: recursive least squares with forgetting (Åström and Wittenmark, Adaptive Control, 2nd ed., section 2.2), a
residual weighed relative to the prediction, so that long batches do not drown short ones. What is forgotten is only
what the newest batch speaks of (directional forgetting: Bittanti, Bolzern and Campi 1990), so sizes that are all alike
do not undo what is known of others. Two residuals in a row on one side and past SURPRISE of the usual spread are a
change of the engine and no noise: a slow engine is slow in everything, so both coefficients are scaled by them, and
what is believed from there on is loose along that factor and tight beside it (covariance resetting, ibid. section
11.5). One alone is an outlier: nothing is learnt from it but spread, and `caution` says by how much the next batch had
better be shorter. The first TRUSTED_AFTER batches are all learnt from. What overhead and tokens are to each other is
held near the prior's until batches of many sizes say otherwise: a few noisy ones tell nothing of it. Both coefficients
stay within SPAN of the prior.

Units: seconds and tokens. Owner: one shaper; not safe for threads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

FORGET = 0.985  # what is left of a batch's weight when the next one ends: some sixty batches are remembered
SPREAD_FORGET = 0.9
SURPRISE = 3.0  # spreads; a residual past them, twice in a row on one side, is a change
LEAST_SPREAD = 0.02  # relative: clocks and other tenants of the machine
FIRST_SPREAD = 0.2  # of a prior that nothing has confirmed
NOISE = 0.05  # relative, of what a batch takes: only what it is beside the variances below matters
_OWN = 0.3  # of the cost of a token, beside the factor that both coefficients have in common
_OVERHEAD = 0.1  # of a usual batch's tokens: how far the overhead may be from its part in the prior
_OVERHEAD_AFTER = 0.02  # likewise, after the engine has changed
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
        o, t = prior.overhead_s, prior.token_s * self._scale
        self._loose = (2 * o * o + (_OVERHEAD * t) ** 2, (1 + _OWN**2) * t * t)  # variances of the start
        self._covariance = (self._loose[0], o * t, self._loose[1])  # of (overhead, token · scale)
        self._surprises = 0  # in a row; the sign is the side
        self._factor = 1.0  # of the first of them

    def predict(self, tokens: float) -> float:
        return self.overhead_s + self.token_s * tokens

    @property
    def confidence(self) -> float:
        """0 to 1: how close predictions were to what batches took, once there were some."""
        return self.batches / (self.batches + TRUSTED_AFTER) / (1.0 + self.spread)

    @property
    def caution(self) -> float:
        """By how much slower than predicted the engine is, should the last batch be no outlier; at least 1."""
        return self._factor if self._surprises > 0 and self._factor > 1.0 else 1.0

    def observed(self, tokens: float, seconds: float) -> None:
        """A batch of so many tokens took so long. What is no duration is passed over."""
        if not (seconds > 0 and math.isfinite(seconds)) or tokens < 0:
            return
        predicted = max(self.predict(tokens), 1e-9)
        residual = (seconds - predicted) / predicted
        surprises = self._surprises_with(residual) if self.batches >= TRUSTED_AFTER else 0  # at first all is learnt
        if surprises == 1:
            self._factor = seconds / predicted
        elif surprises > 1:
            factor = math.sqrt(self._factor * seconds / predicted)
            self._set(self.overhead_s * factor, self.token_s * factor)
            # Both by the same factor, which two batches have told; a little beside it, in each on its own.
            o, t = self.overhead_s, self.token_s * self._scale
            k = NOISE**2 / 2
            self._covariance = (k * o * o + (_OVERHEAD_AFTER * t) ** 2, k * o * t, (1 + _OWN**2) * k * t * t)
            self._surprises = 0
        if surprises != 1:
            self._learn(tokens / self._scale, seconds)
        self.spread = math.sqrt(SPREAD_FORGET * self.spread**2 + (1 - SPREAD_FORGET) * min(abs(residual), 1.0) ** 2)
        self.batches += 1

    def _surprises_with(self, residual: float) -> int:
        """How many of them there were in a row, on this side, with this one."""
        factor = 1.0 + residual
        usual = abs(residual) <= SURPRISE * max(self.spread, LEAST_SPREAD) and 0.5 <= factor <= 2.0
        if usual or 1 / CHANGED < factor < CHANGED:
            self._surprises = 0
        else:
            side = 1 if residual > 0 else -1
            self._surprises = self._surprises + side if self._surprises * side > 0 else side
        return abs(self._surprises)

    def _learn(self, x: float, seconds: float) -> None:
        a, b, c = self._covariance
        predicted = self.overhead_s + self.token_s * self._scale * x
        error, noise = seconds - predicted, (NOISE * predicted) ** 2
        g0, g1 = a + b * x, b + c * x
        along = g0 + g1 * x
        if along <= 0:
            return
        step = error / FORGET / (noise + along / FORGET)
        overhead, token = self.overhead_s + step * g0, self.token_s + step * g1 / self._scale
        if overhead < 0 and x > 0:  # what it is below belongs to the tokens: the prediction for this size stays
            overhead, token = 0.0, token + overhead / (x * self._scale)
        self._set(overhead, token)
        change = (1 / FORGET - 1) / along - 1 / (FORGET**2 * (noise + along / FORGET))
        a, b, c = a + change * g0 * g0, b + change * g0 * g1, c + change * g1 * g1
        over = max(a / self._loose[0], c / self._loose[1], 1.0)
        self._covariance = (a / over, b / over, c / over)

    def _set(self, overhead_s: float, token_s: float) -> None:
        prior = self._prior
        self.overhead_s = min(max(overhead_s, 0.0), SPAN * max(prior.overhead_s, prior.token_s * self._scale))
        self.token_s = min(max(token_s, prior.token_s / SPAN), prior.token_s * SPAN)
