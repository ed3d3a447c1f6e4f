"""How deep to rank, for everyone alike: feed-forward from load and cost, corrected by a PI-D loop on the predicted
delay.

Rule, every `PERIOD_S`, on the logarithm of the depth u (depths multiply cost, so a step of u is one step of load):

    f  = ln(feed-forward), within ln of the bounds; down at once, up no faster than the slew; low-passed where it is
         within _LEAP of what it was, which may be chance in arrivals or services
    u* = f + P · e + I − D · dy/dt          e = (target − y) / target, within [−1, ½]
    u  = u*, within ln of the bounds
    I += dt · (e / T_i + (u − u*) / T_t)

y is the predicted delay, low-passed. The derivative is of the measurement, so a new target makes no kick. The last
term of I is anti-windup by back-calculation (Åström and Hägglund, Advanced PID Control, 2006, section 3.5): while a
bound holds u, I follows instead of growing. New bounds move f to the nearer bound at most, and from there by the slew:
bumpless. Down at once and up slowly, since too deep costs deadlines, and too shallow some relevance only.

Feed-forward is the depth at which what arrives takes the target share of the engine (ranker/shaping/load.py). It does
the bulk; the loop mends its error, and P and e are small so that it does not overshoot: a long queue alone lowers the
depth by 2 % at once. What guards deadlines is the slack (ranker/shaping/demand.py), not this loop.

Units: seconds, candidates. Owner: one shaper; not safe for threads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from penstock.ranker.shaping.work import Why

PERIOD_S = 0.1
SLEW_UP = 3.0  # natural logarithms a second: from 131 to 1,000 in 0.7 s
_P = 0.02
_LEAST_E, _MOST_E = -1.0, 0.5  # an empty queue does not say how far below the load is
_T_I = 300.0  # seconds
_T_T = 0.5  # seconds
_D = 0.02  # seconds
_SMOOTH = 0.9  # of the delay and its derivative, what is kept each period: batches begin and end
_LEAP = 0.3  # of the logarithm: a third deeper
_CALM_S = 0.4  # seconds, of the low pass
_STILL = 0.04  # of the logarithm: a smaller change is none
_LEAST_I, _MOST_I = -0.5, 0.02  # upwards it gives back what the target share keeps free, no more


@dataclass(frozen=True, slots=True)
class DepthBounds:
    """Candidates."""

    floor: int
    start: int
    ceiling: int

    def __post_init__(self) -> None:
        if not 1 <= self.floor <= self.start <= self.ceiling:
            raise ValueError(
                f"depths {self.floor}, {self.start} and {self.ceiling}: expected 1 <= floor <= start <= ceiling"
            )


class DepthController:
    def __init__(self, bounds: DepthBounds, target_s: float, now_s: float) -> None:
        """`target_s`: the predicted delay that is held where the load lets it."""
        if not target_s > 0:
            raise ValueError(f"target delay of {target_s} s: expected more than 0")
        self.bounds = bounds
        self.target_s = target_s
        self.reason = Why.LOAD
        self._log = math.log(bounds.start)
        self._feed = self._log
        self._integral = 0.0
        self._delay: float | None = None
        self._rise = 0.0  # dy/dt
        self._now_s = now_s

    @property
    def depth(self) -> float:
        return math.exp(self._log)

    def rebound(self, bounds: DepthBounds) -> None:
        """Other bounds from here on; the depth goes on from where it is, or from the nearer bound."""
        self.bounds = bounds
        low, high = math.log(bounds.floor), math.log(bounds.ceiling)
        self._log = min(max(self._log, low), high)
        self._feed = min(max(self._feed, low), high)

    def step(self, now_s: float, delay_s: float, feed_forward: float) -> float:
        """The depth from now on. `feed_forward`: candidates, any positive number; infinity where nothing arrives."""
        dt = now_s - self._now_s
        if dt <= 0:
            return self.depth
        self._now_s = now_s
        low, high = math.log(self.bounds.floor), math.log(self.bounds.ceiling)
        # Held within the bounds and slewed before the loop is added, so that neither winds the integral up.
        feed = math.log(min(max(feed_forward, self.bounds.floor), self.bounds.ceiling))
        calm = abs(feed - self._feed) < _LEAP
        self._feed += min(feed - self._feed, SLEW_UP * dt) * (min(dt / _CALM_S, 1.0) if calm else 1.0)
        before = delay_s if self._delay is None else self._delay
        delay_s = self._delay = _SMOOTH * before + (1 - _SMOOTH) * delay_s
        self._rise = (delay_s - before) / dt
        error = min(max((self.target_s - delay_s) / self.target_s, _LEAST_E), _MOST_E)
        wanted = self._feed + _P * error + self._integral - _D * min(max(self._rise, -1.0), 1.0)
        given = min(max(wanted, low), high)
        self._integral += dt * error / _T_I + min(dt / _T_T, 1.0) * (given - wanted)
        self._integral = min(max(self._integral, _LEAST_I), _MOST_I)
        if abs(given - self._log) >= _STILL or given in (low, high):
            self._log = given
        self.reason = Why.FLOOR if given <= low else Why.CEILING if given >= high else Why.LOAD
        return self.depth
