"""The total order of hits: score, then the id's stable hash. The same on every shard, after every restart.

A search without a vector scores every posting 0 and puts recency between the two. Invariant: the order is a function
of ids and stored values alone, never of where a row lies or when it arrived.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from penstock.schemas.rpc import Hit


def stable_hash(posting_id: str) -> int:
    """64 unsigned bits of blake2b over the id's UTF-8 bytes: what breaks ties, smallest first."""
    data = posting_id.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def merge(hits: Iterable[Hit], k: int, *, by_recency: bool) -> tuple[Hit, ...]:
    """The best `k` of hits from several shards, in the total order. `by_recency`: the search had no vector."""
    if by_recency:
        ordered = sorted(hits, key=lambda hit: (-hit.score, -hit.recency, stable_hash(hit.posting_id), hit.posting_id))
    else:
        ordered = sorted(hits, key=lambda hit: (-hit.score, stable_hash(hit.posting_id), hit.posting_id))
    return tuple(ordered[:k])
