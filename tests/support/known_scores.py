"""An engine on a small backend whose score of each item is known, and one that is held inside a forward.

With `in_flight` 1 a forward is computed as it is launched, as on a CPU; with more when it is waited for, as on a
device.
"""

import threading
import time

import numpy as np

from penstock.ranker.engine.backend import Scored
from penstock.ranker.engine.plan import MalformedRequest, Request, Text

POISON = 666  # a token that breaks the forward it is in
ROT = 667  # a token that makes its item's score not finite
KILL = 668  # a token that ends the thread it is computed on
FOREIGN = 669  # a token that the backend does not know


def request(prefix, *items, interactive=True):
    return Request(tokens(prefix), tuple(Text(tokens(item)) for item in items), interactive)


def tokens(values):
    return np.array(values, dtype=np.int32)


def expected(one):
    """What PositionSum gives, without packing."""
    return [weigh(one.prefix, 0) - 2 * weigh(item.tokens, len(one.prefix)) for item in one.items]


def weigh(values, first):
    return float(np.sum(np.cos(0.1 * values) / (1 + np.arange(first, first + len(values)))))


class PositionSum:
    """A score from an item's tokens and its prefix's, each weighed by position: wrong when anything is misplaced."""

    in_flight = 1  # of all of them: see tests/ranker/engine/conftest.py

    def __init__(self):
        self.forwards = []  # launched
        self.launched = 0
        self.landed = 0  # of those launched the last that was waited for
        self.most_in_flight = 0
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.fails = set()  # which of `forwards` raise
        self.refuses = {FOREIGN}  # tokens

    def launch(self, forward):
        if not self.refuses.isdisjoint(forward.tokens.tolist()):
            raise MalformedRequest("foreign tokens")
        self.forwards.append(forward)
        if self.in_flight == 1:
            return Scored(self.logits(forward))
        self.launched += 1
        self.most_in_flight = max(self.most_in_flight, self.launched - self.landed)
        return Later(self, forward, self.launched)

    def logits(self, forward):
        number = next((at for at, one in enumerate(self.forwards) if one is forward), None)
        self.entered.release()
        assert self.gate.wait(20)
        if number in self.fails:
            raise OSError("failed")
        if POISON in forward.tokens:
            raise RuntimeError("poisoned")
        if KILL in forward.tokens:
            raise SystemExit("killed")
        weighed = np.cos(0.1 * forward.tokens) / (1 + forward.positions)
        found = []
        for (first, end), prefix in zip(forward.items.tolist(), forward.prefix_of.tolist(), strict=True):
            start, stop = forward.prefixes[prefix].tolist()
            rotten = ROT in forward.tokens[first:end]
            found.append(np.nan if rotten else weighed[start:stop].sum() - 2 * weighed[first:end].sum())
        return np.array(found, dtype=np.float64)


class Later:
    """A forward in flight, to be waited for after those that were launched before it, or not at all."""

    def __init__(self, backend, forward, number):
        self.backend, self.forward, self.number = backend, forward, number

    def wait(self):
        assert self.number > self.backend.landed, "waited for twice, or out of order"
        self.backend.landed = self.number
        return self.backend.logits(self.forward)


KNOWN = request([5, 6], [7, 8, 9], interactive=False)


def wait(pending):
    return pending.future.result(20)


def soon():
    return time.monotonic() + 20


class Held:
    """An engine whose forward thread is held inside a forward, so that what is submitted now waits."""

    def __init__(self, engines, limits=None, backend=None, **options):
        self.backend = backend or PositionSum()
        self.engine = engines(self.backend, limits, **options)
        self.backend.gate.clear()
        while self.backend.entered.acquire(blocking=False):
            pass
        self.first = self.engine.submit(request([1], [2]))
        assert self.backend.entered.acquire(timeout=20)
        self.backend.forwards.clear()

    def release(self):
        self.backend.gate.set()
