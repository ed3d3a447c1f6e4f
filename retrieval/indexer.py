"""index.update.v1 into the store: what postings need beyond what every log does (`follower.py`).

prepare   a posting without a vector gets the lexical plane of its words, so that words find it
account   freshness is observed, what was left out is counted, and an update's trace goes on

Where it stands: life-of-a-posting.md, step 6.
"""

from __future__ import annotations

from dataclasses import replace

import structlog
from prometheus_client import Counter

from penstock.infra import tracing
from penstock.infra.telemetry import DEGRADED, FRESHNESS_SECONDS, ids_of
from penstock.retrieval.encoder.weights import EncoderWeightsError
from penstock.retrieval.feed import Record
from penstock.retrieval.follower import DeadLetter, Follower
from penstock.retrieval.lexicon import Lexicon
from penstock.retrieval.store.records import Applied
from penstock.retrieval.store.store import Store
from penstock.schemas.events import IndexOp, IndexUpdate
from penstock.schemas.wire import Codec

log = structlog.get_logger(role="retrieval")

UPDATES = Counter("penstock_index_updates_total", "Index updates that were news, or stale", ["outcome"])


class Indexer(Follower[IndexUpdate]):
    """Fills the store of postings."""

    def __init__(
        self, store: Store, codec: Codec[IndexUpdate], dead_letter: DeadLetter, lexicon: Lexicon | None = None
    ) -> None:
        super().__init__(store, codec, dead_letter)
        self._store = store
        self._lexicon = lexicon or Lexicon()

    def prepared(self, updates: list[IndexUpdate]) -> list[IndexUpdate]:
        # An empty store takes the space of the first vector it is given: it must not be one made here.
        first = next((update.vector.space_id for update in updates if update.vector is not None), "")
        space = self._store.space_id or first
        return [self._worded(update, space) for update in updates]

    def account(self, updates: list[IndexUpdate], records: list[Record], applied: Applied) -> None:
        for position, reason in applied.without_vector:
            DEGRADED.labels("retrieval", "vector refused").inc()
            log.warning("vector refused", reason=reason, **ids_of(updates[position]))
        UPDATES.labels("accepted").inc(len(applied.accepted))
        UPDATES.labels("stale").inc(applied.stale)
        if not self.caught_up:
            return  # a replay says nothing about freshness
        for position in applied.accepted:
            update = updates[position]
            if update.op is not IndexOp.EXPIRE:
                seconds = max(0, applied.published_at - update.produced_at) / 1000
                FRESHNESS_SECONDS.labels("searchable" if update.revision <= 0 else "refined").observe(seconds)
            if tracing.exporting():
                began = records[position].timestamp_ms or update.produced_at
                ids: dict[str, str | float | None] = {
                    "posting_id": update.posting_id,
                    "version": update.version,
                    "revision": update.revision,
                }
                tracing.passed("index.apply", update.trace, began, applied.published_at, **ids)

    def _worded(self, update: IndexUpdate, space: str) -> IndexUpdate:
        if update.op is not IndexOp.UPSERT or update.vector is not None:
            return update
        try:
            vector = self._lexicon.row(update, space)
        except EncoderWeightsError as error:  # filters find it all the same
            DEGRADED.labels("retrieval", "posting without words").inc()
            log.error("posting found by filters only", posting_id=update.posting_id, error=str(error))
            return update
        if vector is not None:
            DEGRADED.labels("retrieval", "posting by words alone").inc()
        return replace(update, vector=vector)
