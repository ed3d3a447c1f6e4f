"""Does the shard still find what it holds? A search whose right answer is known, asked the way that callers ask.

    1. the newest posting of a tenant, which a search without a vector and without a filter must give
    2. the same by its own vector and its own id, at the same epoch: that version, with the score that its stored
       planes have with themselves, computed here in float64

A shard without postings of that tenant must find nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from penstock.retrieval.encoder.planes import dense_floats, float_bytes
from penstock.retrieval.store.errors import EpochGone
from penstock.retrieval.store.records import Ask, SearchResult
from penstock.schemas.events import QueryVector, Vector
from penstock.schemas.filters import is_in
from penstock.schemas.rpc import Row

TOLERANCE = 1e-9  # of a score, relative
TRIES = 3  # a posting that changes between two looks is looked at again
TWINS = 16  # ids that a filter takes for one


class Rows(Protocol):
    """What is asked of the store besides searches."""

    def get(self, posting_ids: Sequence[str], *, now_ms: int) -> tuple[Row, ...]: ...


def wrong_answer(search: Callable[[Ask], SearchResult], rows: Rows, *, now_ms: int, tenant: str) -> str:
    """What is wrong with the answers; empty when nothing is. Raises what a search raises."""
    for _ in range(TRIES):
        newest = search(Ask(None, None, 1, now_ms, tenant))
        if len(newest.hits) != min(1, newest.total):
            return f"{newest.total} postings pass no filter at all, but {len(newest.hits)} are found"
        if not newest.hits:
            return ""
        known = newest.hits[0]
        [row] = rows.get((known.posting_id,), now_ms=now_ms)
        if row.update is None or (row.update.version, row.update.revision) != (known.version, known.revision):
            continue  # a newer version is there by now
        vector = row.update.vector
        query = None if vector is None else itself(vector)
        one = is_in("posting_id", known.posting_id)
        try:
            found = search(Ask(query, one, TWINS, now_ms, tenant, newest.epoch))
        except EpochGone:
            continue
        hit = next((hit for hit in found.hits if hit.posting_id == known.posting_id), None)
        if hit is None:
            return f"the newest posting, {known.posting_id}, is not found by its own id"
        if (hit.version, hit.revision) != (known.version, known.revision):
            return (
                f"{known.posting_id} is found as version {hit.version}.{hit.revision}, "
                f"at the same epoch it was {known.version}.{known.revision}"
            )
        expected = 0.0 if vector is None else own_score(vector)
        if not np.isclose(hit.score, expected, rtol=TOLERANCE, atol=TOLERANCE):
            return f"{known.posting_id} scores {hit.score} with itself, expected {expected}"
    return ""


def itself(vector: Vector) -> QueryVector:
    """The query that a stored vector is."""
    lexical = None if vector.sketch is None else float_bytes(np.frombuffer(vector.sketch, np.int8).astype(np.float32))
    return QueryVector(
        space_id=vector.space_id,
        encoder_id=vector.encoder_id,
        dense=float_bytes(dense_floats(vector.dense)),
        lexical=lexical,
    )


def own_score(vector: Vector) -> float:
    """The inner product of a stored vector with itself, float64."""
    dense = dense_floats(vector.dense).astype(np.float64)
    sketch = np.frombuffer(vector.sketch or b"", np.int8).astype(np.float64)
    return float(dense @ dense + sketch @ sketch)
