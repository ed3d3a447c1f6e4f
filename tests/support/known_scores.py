"""An engine on a small backend whose score of each item is known, and one that is held inside a forward."""

import threading
import time

import numpy as np

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

    def __init__(self):
        self.forwards = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.fails = set()  # which of `forwards` raise
        self.refuses = {FOREIGN}  # tokens

    def logits(self, forward):
        self.forwards.append(forward)
        number = len(self.forwards) - 1
        self.entered.release()
        assert self.gate.wait(20)
        if number in self.fails:
            raise OSError("failed")
        if not self.refuses.isdisjoint(forward.tokens.tolist()):
            raise MalformedRequest("foreign tokens")
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


KNOWN = request([5, 6], [7, 8, 9], interactive=False)


def wait(pending):
    return pending.future.result(20)


def soon():
    return time.monotonic() + 20


class Held:
    """An engine whose forward thread is held inside a forward, so that what is submitted now waits."""

    def __init__(self, engines, limits=None, **options):
        self.backend = PositionSum()
        self.engine = engines(self.backend, limits, **options)
        self.backend.gate.clear()
        while self.backend.entered.acquire(blocking=False):
            pass
        self.first = self.engine.submit(request([1], [2]))
        assert self.backend.entered.acquire(timeout=20)
        self.backend.forwards.clear()

    def release(self):
        self.backend.gate.set()
