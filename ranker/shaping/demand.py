"""What has been promised by when, and whether one more promise can be kept: the test of earliest-deadline-first.

Rule: promises that are served earliest deadline first are all kept when, for every deadline s, what is due by s fits
before s (processor demand: Liu and Layland 1973; Baruah, Rosier and Howell 1990), work that was begun counted first
since it is not interrupted. A work is counted with an overhead of its own, as if it went alone, so batches only gain.
Levels nest, the more patient the higher: the row of a level holds it and those above against the share of the engine
that these may be promised, so that what can wait never books what people will need, nor people what alerts are owed.
One more row, WHOLE, holds everything against the whole engine: it says how much time there is to spare.

Deadlines are rounded down to slots of 1/64 of the time that is left, at least 2 ms: there are some 64 slots to each
doubling of the horizon, however many works wait. Costs are whole tokens, so sums are exact and an empty slot is 0.

Each row keeps a lower bound of its latest start, the time before which the engine must begin on what is due for all to
be in time: offers move it in O(1), and it is worked out anew from the slots only when the bound says no.

Owner: one shaper; not safe for threads.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, bisect_right

import numpy as np
from numpy.typing import NDArray

WHOLE = 0
_FINEST = -9  # 2 ms, as a power of two
_PARTS = 6  # 1/64 of what is left, as a power of two
_LONG = 1_024  # slots; past it the empty ones are taken out
_BUSY_ROUNDS = 8  # each adds what is due in the time that the one before took
_EMPTY_AHEAD = 64  # slots at the front whose time has gone


class Demand:
    def __init__(self, levels: int, token_s: float) -> None:
        """`token_s`: seconds of the whole engine that a token takes. A level's row is the one after its number."""
        rows = levels + 1
        self.totals = [0.0] * rows  # tokens
        self.shares = [1.0] * rows
        self.token_s = token_s
        self._seconds = [token_s] * rows  # that a token takes of a row's share
        self._ends = array("d")  # slots, ascending
        self._rows = [array("d") for _ in range(rows)]  # tokens by slot
        self._low = [math.inf] * rows  # no greater than any slot's latest start
        self._starts: list[NDArray[np.float64] | None] = [None] * rows  # latest starts by slot; None: out of date

    @staticmethod
    def slot(deadline_s: float, now_s: float) -> float:
        """The deadline, rounded down."""
        left = deadline_s - now_s
        exponent = _FINEST if left <= 0 else max(_FINEST, math.frexp(left)[1] - 1 - _PARTS)
        return math.ldexp(math.floor(math.ldexp(deadline_s, -exponent)), exponent)

    def pace(self, token_s: float) -> None:
        """What a token takes has changed."""
        if token_s != self.token_s:
            self.token_s = token_s
            for row, share in enumerate(self.shares):
                self._seconds[row] = token_s / share
                self._outdate(row)

    def share(self, level: int, share: float) -> None:
        """Of the engine, that the level and those above it may be promised."""
        row = level + 1
        if share != self.shares[row]:
            self.shares[row] = share
            self._seconds[row] = self.token_s / share
            self._outdate(row)

    def fits(self, level: int, slot: float, cost: float, start_s: float) -> bool:
        """Whether everything stays in time with one more work, when the engine is free from `start_s`."""
        seconds, totals, lows = self._seconds, self.totals, self._low
        for row in range(1, level + 2):
            second = seconds[row]
            takes = cost * second
            if slot - totals[row] * second - takes < start_s:  # not even behind everything: look closer
                due = self._due_by(row, bisect_right(self._ends, slot))
                if slot - due * second - takes < start_s:
                    return False
            if lows[row] - takes < start_s:
                later = self._latest_starts(row)[bisect_right(self._ends, slot) :]
                if later.size and later.min() - takes < start_s:
                    return False
        return True

    def add(self, level: int, slot: float, cost: float) -> None:
        ends, rows, starts = self._ends, self._rows, self._starts
        totals, lows, seconds = self.totals, self._low, self._seconds
        at = bisect_left(ends, slot)
        if at == len(ends) or ends[at] != slot:
            ends.insert(at, slot)
            for tokens in rows:
                tokens.insert(at, 0.0)
            for row in range(level + 2, len(rows)):
                starts[row] = None
        for row in range(level + 2):
            rows[row][at] += cost
            totals[row] += cost
            starts[row] = None
            second = seconds[row]
            low = lows[row] - cost * second
            if slot - totals[row] * second < low:  # it may bind more than those before did
                own = slot - self._due_by(row, at + 1) * second
                if own < low:
                    low = own
            lows[row] = low

    def remove(self, level: int, slot: float, cost: float) -> None:
        at = bisect_left(self._ends, slot)
        rows, totals, starts = self._rows, self.totals, self._starts
        for row in range(level + 2):
            rows[row][at] -= cost
            totals[row] -= cost
            starts[row] = None
            if not totals[row]:
                self._low[row] = math.inf

    def spare(self, start_s: float, wanted_s: float) -> float:
        """How long the engine, free from `start_s`, could do something else with nothing late; at least exact up to
        `wanted_s`. Negative: something will be late."""
        if self._low[WHOLE] - start_s < wanted_s:
            self._latest_starts(WHOLE)
        return self._low[WHOLE] - start_s

    def clear_s(self, slot: float, cost: float, start_s: float, now_s: float) -> float:
        """When nothing stands in the way of such a work any more, if it keeps its distance to its deadline, nothing
        else comes and what waits is served by deadline: the end of the busy period up to the last slot that does.
        """
        second = self._seconds[1]
        short = np.nonzero(self._latest_starts(1) - cost * second < start_s)[0]
        until = max(slot, self._ends[int(short[-1])]) if short.size else slot
        for _ in range(_BUSY_ROUNDS):
            clear = start_s + self._due_by(1, bisect_right(self._ends, until)) * second
            if slot + (clear - now_s) <= until:
                return clear
            until = slot + (clear - now_s)
        return start_s + self.totals[1] * second

    def after_all(self, level: int, cost: float, start_s: float) -> float:
        """A deadline that such a work can be promised for certain: after all that its rows hold."""
        return start_s + max((self.totals[row] + cost) * self._seconds[row] for row in range(1, level + 2))

    def density(self, level: int, start_s: float) -> float:
        """The least share of the engine that serves the level and those above in time: the most of due / time left."""
        row = level + 1
        if not self.totals[row]:
            return 0.0
        starts = self._latest_starts(row)
        left = np.frombuffer(self._ends) - start_s
        due = (np.frombuffer(self._ends) - starts) * self.shares[row]  # seconds; -inf where nothing is due yet
        ahead = (left > 0) & np.isfinite(due)
        return float((due[ahead] / left[ahead]).max(initial=0.0))

    def __len__(self) -> int:
        """Slots, the empty ones included."""
        return len(self._ends)

    def _due_by(self, row: int, end: int) -> float:
        """Tokens of the first `end` slots, summed over the shorter side."""
        tokens = self._rows[row]
        if end <= len(tokens) // 2:
            return sum(tokens[:end])
        return self.totals[row] - sum(tokens[end:])

    def _latest_starts(self, row: int) -> NDArray[np.float64]:
        known = self._starts[row]
        if known is None:
            if row == WHOLE:
                self._tidy()
            due = np.cumsum(np.frombuffer(self._rows[row])) if self._ends else np.empty(0)
            known = np.frombuffer(self._ends) - due * self._seconds[row] if self._ends else due
            known[: int(np.searchsorted(due, 0.5))] = math.inf  # nothing is due before the first work's slot
            self._starts[row] = known
            self._low[row] = float(known.min(initial=math.inf))
        return known

    def _tidy(self) -> None:
        """Take empty slots out: they bind nothing that the slot before them does not."""
        tokens = self._rows[0]
        ahead = next((at for at, due in enumerate(tokens) if due), len(tokens))
        if ahead > _EMPTY_AHEAD or len(tokens) > _LONG:
            full = [at for at, due in enumerate(tokens) if due]
            self._ends = array("d", [self._ends[at] for at in full])
            self._rows = [array("d", [row[at] for at in full]) for row in self._rows]
            self._starts = [None] * len(self._rows)

    def _outdate(self, row: int) -> None:
        self._low[row] = -math.inf if self.totals[row] else math.inf
        self._starts[row] = None
