"""Does the shard still find what it holds? A search whose right answer is known, asked the way that callers ask.

    1. a live posting, picked from the pages without any search (store/witness.py): tenants take turns, so that no
       tenant's searches have to wait for traffic to be looked at
    2. a search of its tenant without a vector and without a filter must find something no older
    3. a search by its own vector and its own id, at the same epoch, must find that version, with the score that its
       stored planes have with themselves, computed here in float64

A shard without live postings must say so of a search of the default tenant's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np

from penstock.retrieval.encoder.planes import dense_floats, float_bytes
from penstock.retrieval.store.records import Ask, SearchResult
from penstock.retrieval.store.witness import Witness
from penstock.schemas.events import QueryVector, Vector
from penstock.schemas.filters import is_in
from penstock.schemas.rpc import Hit, Row

TOLERANCE = 1e-9  # of a score, relative
TRIES = 3  # a posting that changes between two looks is looked at again
TWINS = 16  # ids that a filter takes for one
LASTS_MS = 60_000  # how much longer a posting must live to be asked for: it shall not expire meanwhile


class Rows(Protocol):
    """What is asked of the store besides searches."""

    def pin(self) -> AbstractContextManager[Any]: ...

    def witness(self, turn: int, *, now_ms: int) -> Witness | None: ...

    def get(self, posting_ids: Sequence[str], *, now_ms: int) -> tuple[Row, ...]: ...


def wrong_answer(search: Callable[[Ask], SearchResult], rows: Rows, *, now_ms: int, turn: int) -> str:
    """What is wrong with the answers; empty when nothing is. Raises what a search raises.

    `turn`: which posting is asked for. Ask for the same until it is found.
    """
    for _ in range(TRIES):
        with rows.pin():  # what the witness is of can be read until the end
            known = rows.witness(turn, now_ms=now_ms + LASTS_MS)
            if known is None:
                return _lacks(search(Ask(None, None, 1, now_ms)), None, "")
            [row] = rows.get((known.posting_id,), now_ms=now_ms)
            if row.update is None or (row.update.version, row.update.revision) != (known.version, known.revision):
                continue  # a newer version is there by now
            tenant, vector = row.update.tenant, row.update.vector
            if wrong := _lacks(search(Ask(None, None, 1, now_ms, tenant, known.epoch)), known, tenant):
                return wrong
            query = None if vector is None else itself(vector)
            by_id = is_in("posting_id", known.posting_id)
            found = search(Ask(query, by_id, TWINS, now_ms, tenant, known.epoch))
            return _differs(found.hits, known, 0.0 if vector is None else own_score(vector))
    return ""


def _lacks(found: SearchResult, known: Witness | None, tenant: str) -> str:
    """What is wrong with the newest of a tenant's postings, `known` being one of them."""
    if len(found.hits) != min(1, found.total):
        return f"{found.total} postings pass no filter at all, but {len(found.hits)} are found"
    if known is not None and not found.hits:
        return f"tenant {tenant} holds {known.posting_id}, and a search without a filter finds nothing"
    if known is not None and found.hits[0].recency < known.recency:
        newest = found.hits[0]
        return (
            f"the newest posting of tenant {tenant} is said to be {newest.posting_id} of {newest.recency}, "
            f"{known.posting_id} is of {known.recency}"
        )
    return ""


def _differs(hits: Sequence[Hit], known: Witness, expected: float) -> str:
    """What is wrong with a posting's own hit among those of its id."""
    hit = next((hit for hit in hits if hit.posting_id == known.posting_id), None)
    if hit is None:
        return f"{known.posting_id} is not found by its own id"
    if (hit.version, hit.revision) != (known.version, known.revision):
        return (
            f"{known.posting_id} is found as version {hit.version}.{hit.revision}, "
            f"at the same epoch it was {known.version}.{known.revision}"
        )
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
