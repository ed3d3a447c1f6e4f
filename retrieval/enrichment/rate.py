"""How many a second, over the last while. Pure; the time is passed in, monotonic seconds."""

from __future__ import annotations

from collections import deque

WINDOW_S = 30.0


class Rate:
    """Written by one thread; `per_s` may be read from another."""

    def __init__(self, window_s: float = WINDOW_S) -> None:
        self._window_s = window_s
        self._done: deque[tuple[float, int]] = deque()

    def add(self, count: int, now_s: float) -> None:
        if count:
            self._done.append((now_s, count))
        while self._done and self._done[0][0] <= now_s - self._window_s:
            self._done.popleft()

    def per_s(self, now_s: float) -> float:
        """Mean over the window that ends now."""
        return sum(count for at, count in tuple(self._done) if at > now_s - self._window_s) / self._window_s
