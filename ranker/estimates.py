"""What a request will cost and what depth is worth to it, before anything of it was retrieved.

Queries follow Zipf's law, so most were asked before: of those their own candidates, margins, prefix and share of cache
hits are expected again. Of the others the mean of what was served lately is.

Costs are the dearest scorer's tokens. Without a language model, or with one that counts no tokens, a token is one
candidate, and whatever a request costs besides is in the cost model's overhead.

Safe to share between threads; the lock is held to look up and to note, never while anything is computed.

Where it stands: life-of-a-query.md, step 4.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from penstock.ranker import policy
from penstock.ranker.policy import DepthLimits
from penstock.ranker.shaping.depth import DepthBounds
from penstock.ranker.shaping.work import Work
from penstock.schemas.events import RankClass, RankRequest
from penstock.schemas.wire import codec

KNOWN = 4_096  # queries that are remembered
FOLLOW = 0.05  # of the newest request in a mean
MOST_BESIDE = 1 / 3  # of the time to a deadline, that is left for what happens beside the language model


@dataclass(frozen=True, slots=True)
class Seen:
    """What serving a request showed."""

    there: int  # candidates that there are, ranked or not
    margins: NDArray[np.float64]  # [ranked], what each added to the answer, the most first
    hits: float | None = None  # of the pairs that the dearest scorer was asked for, the share in cache; None: no pairs
    tokens: tuple[float, float] | None = None  # of the query's side, and of a candidate; None: nothing was computed
    beside_s: float = 0.0  # that it took beside the dearest scorer: retrieval, features, cache, the cheap scorer


@dataclass(slots=True)
class _Known:
    """What is expected of a query."""

    there: int
    margins: NDArray[np.float64]
    fixed: float
    hits: float | None  # None: it was served once, and never out of the cache
    served_s: float


class Estimates:
    def __init__(
        self,
        depths: DepthBounds,
        limits: DepthLimits,
        *,
        dear: bool,
        tokens: tuple[float, float] = (0.0, 1.0),
        kept_s: float = 900.0,
        clock: Callable[[], float],
    ) -> None:
        """`dear`: there is a language model, and depth is how many of the best it scores. `tokens` are those of the
        query's side and of a candidate, before any was served. `kept_s`: how long scores stay in the cache.
        """
        self._depths = depths
        self._limits = limits
        self._dear = dear
        self._kept_s = kept_s
        self._clock = clock
        self._codec = codec(RankRequest)
        self._lock = threading.Lock()
        self._known: OrderedDict[Hashable, _Known] = OrderedDict()
        self._fixed, self._item = tokens
        self._first_hits = self._again_hits = 0.0
        self._beside = 0.0  # seconds, mean and mean distance from it
        self._spread = 0.0
        flat = np.ones(max(depths.ceiling, limits.ceiling))
        self._margins = dict.fromkeys(RankClass, flat)

    def work(self, number: int, request: RankRequest, arrived_s: float, deadline_s: float) -> Work:
        """Raises InvalidRecord for a cursor that is none."""
        window = policy.decide_window(request, self._limits)
        # The engine is not held meanwhile. Cold first requests take long, so no more than a part is believed.
        deadline_s -= min(self._beside + self._spread, MOST_BESIDE * max(0.0, deadline_s - arrived_s))
        known, fixed, item, hits, margins = self._expected(request, arrived_s)
        there = window.stop - window.start
        if known is not None:
            there = max(0, min(there, known.there - window.start))
        floor = self._depths.floor
        if self._dear:
            wanted = min(there, self._depths.ceiling)
            if window.lm_items is not None:  # the page goes on in its block
                wanted = floor = min(window.lm_items, wanted)
        else:
            wanted = there
            floor = max(floor, request.page.size)
            if request.candidates is not None or request.page.cursor is not None:
                floor = wanted
        if not request.query.text.strip() and request.query.vector is None:  # nothing to score by
            fixed, hits = 0.0, 1.0
            wanted = 0 if self._dear else wanted
        if len(margins) < wanted:  # those that nobody has ranked yet: no better than the last that was
            margins = np.pad(margins, (0, wanted - len(margins)), constant_values=margins[-1] if len(margins) else 1.0)
        return Work(
            number,
            request.tenant,
            request.class_,
            arrived_s,
            deadline_s,
            fixed,
            item,
            wanted,
            floor,
            margins[:wanted],
            hits,
            self._identity(request),
        )

    @property
    def beside_s(self) -> float:
        """Seconds that a request takes on the mean beside the language model; 0 where there is none: it all counts."""
        return self._beside

    @property
    def deepest(self) -> float:
        """Tokens of one request as deep as the setting allows."""
        return self._fixed + self._item * self._depths.ceiling

    def served(self, request: RankRequest, seen: Seen) -> None:
        """Learn from an answer."""
        key, now_s = _query(request), self._clock()
        kept = len(seen.margins)
        row = np.zeros_like(self._margins[request.class_])
        row[:kept] = seen.margins[: len(row)]
        with self._lock:
            before = self._known.pop(key, None)
            again = before is not None and now_s - before.served_s < self._kept_s
            if seen.hits is not None:
                if again:
                    self._again_hits += FOLLOW * (seen.hits - self._again_hits)
                else:
                    self._first_hits += FOLLOW * (seen.hits - self._first_hits)
            if self._dear:
                self._spread += FOLLOW * (abs(seen.beside_s - self._beside) - self._spread)
                self._beside += FOLLOW * (seen.beside_s - self._beside)
            fixed = self._fixed if before is None else before.fixed
            if seen.tokens is not None:
                fixed = seen.tokens[0]
                self._fixed += FOLLOW * (fixed - self._fixed)
                self._item += FOLLOW * (seen.tokens[1] - self._item)
            mean = self._margins[request.class_]
            self._margins[request.class_] = mean + FOLLOW * (row - mean)
            self._known[key] = _Known(seen.there, seen.margins, fixed, seen.hits if again else None, now_s)
            if len(self._known) > KNOWN:
                self._known.popitem(last=False)

    def _expected(
        self, request: RankRequest, now_s: float
    ) -> tuple[_Known | None, float, float, float, NDArray[np.float64]]:
        """What is known of the query, tokens of its side and of a candidate, share of hits, margins."""
        key = _query(request)
        with self._lock:
            known = self._known.get(key)
            if known is None:
                return None, self._fixed, self._item, self._first_hits, self._margins[request.class_]
            self._known.move_to_end(key)
            cached = now_s - known.served_s < self._kept_s
            again = self._again_hits if known.hits is None else known.hits
            return known, known.fixed, self._item, again if cached else self._first_hits, known.margins

    def _identity(self, request: RankRequest) -> str:
        """Equal for requests that have the same answer."""
        alone = replace(request, request_id="", class_=RankClass.UNKNOWN, deadline=0, echo=None, trace=None)
        alone = replace(alone, produced_at=None)
        return hashlib.blake2b(self._codec.encode_unbounded(alone), digest_size=16).hexdigest()


def _query(request: RankRequest) -> Hashable:
    """Equal for requests that rank the same candidates."""
    return request.tenant, request.query, request.candidates
