"""How fast a loop may work: a token bucket. Pure; the time is passed in, monotonic seconds."""

from __future__ import annotations


class TokenBucket:
    """`rate` tokens a second, at most `burst` saved up. Used by one thread. A rate of 0 means no bound."""

    def __init__(self, rate: float, burst: int, now_s: float) -> None:
        self._rate = rate
        self._burst = float(max(1, burst))
        self._tokens = self._burst
        self._at = now_s

    def available(self, now_s: float) -> int:
        """Whole tokens there are now."""
        if self._rate <= 0:
            return int(self._burst)
        self._tokens = min(self._burst, self._tokens + max(0.0, now_s - self._at) * self._rate)
        self._at = max(self._at, now_s)
        # Sums of many small times: what lacks a billionth of a token is one.
        return int(self._tokens + 1e-9)

    def spend(self, count: int) -> None:
        """Takes tokens that `available` gave."""
        if self._rate > 0:
            self._tokens = max(0.0, self._tokens - count)

    def wait_s(self, now_s: float) -> float:
        """How long until there is a whole token."""
        return 0.0 if self.available(now_s) else (1.0 - self._tokens) / self._rate
