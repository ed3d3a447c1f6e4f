"""What arrives, and the depth at which it takes the target share of the engine: the feed-forward of depth.py.

Rule: works over time, both forgotten exponentially (SLOW_S) and read as they were at the last arrival: so evenly
spaced arrivals give a rate that stands still. Between arrivals it falls as if one came at this moment. When the same
over FAST_S is further above than chance would have it, two and a half standard deviations of a Poisson count, the load
has risen and the fast one is believed. That it has fallen is believed slowly: down at once, up with patience.

With f tokens a second whatever the depth, c tokens a second for each candidate deep, r the share of the engine that
what can wait needs beyond its own arrivals, and s seconds a token: depth = ((target − r) / s − f) / c.

Units: tokens, seconds, candidates. Owner: one shaper; not safe for threads.
"""

from __future__ import annotations

import math

FAST_S = 0.25
SLOW_S = 0.6
_CHANCE = 2.5  # standard deviations


class _Mean:
    """Decayed sums of time, works, fixed tokens and tokens a candidate."""

    def __init__(self, over_s: float) -> None:
        self.over_s = over_s
        self.sums = (0.0, 0.0, 0.0, 0.0)

    def came(self, gap_s: float, fixed: float, item: float) -> None:
        kept = math.exp(-gap_s / self.over_s)
        time_s, works, fixeds, items = self.sums
        self.sums = (kept * time_s + gap_s, kept * works + 1.0, kept * fixeds + fixed, kept * items + item)

    def rate(self, since_s: float) -> float:
        """Works a second, `since_s` after the last."""
        time_s, works = self.sums[:2]
        if not works:
            return 0.0
        kept = math.exp(-since_s / self.over_s)
        until_now = (kept * works + 1.0) / max(kept * time_s + since_s, 1e-9)
        return min(works / max(time_s, 1e-9), until_now)


class Arrivals:
    """Rates of one group of works: works, tokens whatever the depth, and tokens for each candidate deep, a second."""

    def __init__(self, now_s: float, times: float = 1.0) -> None:
        """`times` as long as the constants say the means look back."""
        self._fast, self._slow = _Mean(times * FAST_S), _Mean(times * SLOW_S)
        self._last_s = now_s
        self.works = self.fixed = self.item = 0.0

    def came(self, now_s: float, fixed: float, item: float) -> None:
        gap_s = max(now_s - self._last_s, 0.0)
        self._last_s = now_s
        self._fast.came(gap_s, fixed, item)
        self._slow.came(gap_s, fixed, item)

    def step(self, now_s: float) -> None:
        """Work the rates out."""
        since_s = now_s - self._last_s
        fast, slow = self._fast, self._slow
        rate, quick = slow.rate(since_s), fast.rate(since_s)
        chance = _CHANCE * math.sqrt(quick / 2 * (1 / fast.over_s + 1 / slow.over_s))
        if quick - rate > chance:
            ratio = slow.over_s / fast.over_s  # as if the slow one had seen this rate all along
            slow.sums = tuple(ratio * one for one in fast.sums)  # type: ignore[assignment]  # four stay four
            rate = quick
        _, works, fixed, item = slow.sums
        self.works = rate
        self.fixed = rate * fixed / works if works else 0.0
        self.item = rate * item / works if works else 0.0


def feed_forward(share: float, token_s: float, fixed: float, item: float) -> float:
    """Candidates; infinity where nothing arrives whose depth matters, 0 where there is not even room for prefixes.

    `share` of the engine may be taken; `fixed` and `item` are rates as in Arrivals.
    """
    room = share / token_s - fixed
    if room <= 0:
        return 0.0
    return room / item if item > 0 else math.inf
