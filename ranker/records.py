"""The postings behind a request's candidates, read when first needed: feature store first, retrieval's rows after.

A record that is not of the version retrieval scored may be used when it is newer (its score is then not kept); an older
one is not. A posting that was deleted since is gone and is not ranked. Used by one thread, for one request.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from penstock.infra.telemetry import DEGRADED
from penstock.ranker.candidates import Retrieval
from penstock.ranker.errors import RedisAway
from penstock.ranker.feature_store import FeatureStore
from penstock.schemas.events import IndexOp, IndexUpdate
from penstock.schemas.rpc import GetRequest, Hit, RowState


class Records:
    """Owns what was read for one request. `degraded` names each fallback taken."""

    def __init__(
        self, store: FeatureStore, retrieval: Retrieval, hits: Sequence[Hit], remaining_s: Callable[[], float]
    ) -> None:
        self._store = store
        self._retrieval = retrieval
        self._hits = hits
        self._remaining_s = remaining_s
        self._read: dict[int, IndexUpdate | None] = {}
        self.degraded: list[str] = []

    def get(self, positions: Sequence[int]) -> list[IndexUpdate | None]:
        """One a position of `hits`, None where the posting is gone. Raises CallError when retrieval does not answer."""
        wanted = [at for at in positions if at not in self._read]
        if wanted:
            self._fill(wanted)
        return [self._read[at] for at in positions]

    def is_exact(self, position: int) -> bool:
        """Whether the record read is the version that retrieval scored."""
        update = self._read.get(position)
        return update is not None and _stamp(update) == _stamp(self._hits[position])

    def _fill(self, wanted: list[int]) -> None:
        behind: list[int] = []
        held = self._from_store(wanted)
        for at, update in zip(wanted, held, strict=True):
            if update is None or _stamp(update) < _stamp(self._hits[at]):
                behind.append(at)
            else:
                self._read[at] = update if update.op is IndexOp.UPSERT else None
        if not behind:
            return
        if len(behind) < len(wanted) or not self.degraded:
            self.degraded.append(
                f"features: {len(behind)} of {len(wanted)} postings read from retrieval, not the store"
            )
        DEGRADED.labels("ranker", "features from retrieval").inc()
        names = tuple(self._hits[at].posting_id for at in behind)
        reply = self._retrieval.get(GetRequest(posting_ids=names), self._remaining_s())
        self.degraded.extend(reply.degraded)
        for at, row in zip(behind, reply.rows, strict=True):
            self._read[at] = row.update if row.state is RowState.LIVE else None

    def _from_store(self, wanted: list[int]) -> list[IndexUpdate | None]:
        try:
            return self._store.read([self._hits[at].posting_id for at in wanted])
        except RedisAway as error:
            DEGRADED.labels("ranker", "feature store").inc()
            self.degraded.append(f"feature store: {error}; postings read from retrieval")
            return [None] * len(wanted)


def _stamp(of: IndexUpdate | Hit) -> tuple[int, int]:
    return of.version, of.revision
