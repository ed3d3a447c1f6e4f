"""What the ranker's pipeline stands in, all of it real and filled: Redis as shipped, the feature store in it, a
retrieval service behind gRPC in a process of its own, both scorers; and the judgement queries with their vectors.

The index holds real postings under many ids, their vectors by the shipped encoder with a little noise each
(searching/updates.py). Queries bring their vector, as those of the queries job do, and no filters, so that each finds
as many candidates as it asks for.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.processes import free_port
from benchmarks.ranking.models import SUMMARY_TOKENS, queries
from benchmarks.ranking.redis_process import shipped_redis
from benchmarks.searching.service import Index, index_beside
from benchmarks.searching.updates import Updates
from benchmarks.streaming.source import load
from penstock.infra.settings import RankerSettings, RedisSettings
from penstock.ranker.backends.load import load_scorers
from penstock.ranker.backends.scorer import LanguageModel
from penstock.ranker.cache import ScoreCache
from penstock.ranker.desk import make_desk
from penstock.ranker.feature_store import Batch, FeatureStore
from penstock.ranker.job import Job, Turn
from penstock.ranker.pipeline import Pipeline
from penstock.ranker.redis_link import RedisLink, connect
from penstock.ranker.scoring import Scorers
from penstock.ranker.shaping.work import Why
from penstock.retrieval.client import ModelsClient, RetrievalClient
from penstock.retrieval.encoder.embedded import EmbeddedEncoder
from penstock.schemas.events import IndexUpdate, RankQuery, RankRequest, RankResult

ROWS = 20_000
BATCH = 1_000  # updates at a time
JUDGED = 780  # queries
PREFIX = "penstock"
TENANT = "default"
PATIENCE_MS = 10_000
TOMBSTONE_MS = 60_000
LIFE_MS = 60 * 86_400_000


@dataclass(frozen=True, slots=True)
class Surroundings:
    """One thread asks and renews. `versions` [rows]: the newest of each posting."""

    settings: RankerSettings
    updates: Updates
    index: Index
    link: RedisLink
    store: FeatureStore
    retrieval: RetrievalClient
    models: ModelsClient  # nobody behind it: no query here needs any
    fused: Scorers  # the fused scorer alone
    both: Scorers  # the language model for the best
    queries: Sequence[RankQuery]
    versions: NDArray[np.int64]

    @property
    def language_model(self) -> LanguageModel:
        assert self.both.language_model is not None
        return self.both.language_model

    def cache(self, name: str) -> ScoreCache:
        """As shipped, and empty where the name is new."""
        return ScoreCache(self.link, f"{PREFIX}-{name}", self.settings.score_cache_ttl_s, time.monotonic)

    def pipeline(self, scorers: Scorers, cache: Any) -> Pipeline:
        """As the role makes it. `cache`: a ScoreCache, or what stands in for one."""
        _, pipeline = make_desk(
            self.settings,
            scorers,
            models=self.models,
            retrieval=self.retrieval,
            shards=1,
            store=self.store,
            cache=cache,
            now_ms=_now_ms,
            clock=time.monotonic,
        )
        return pipeline

    def job(self, query: int) -> Job:
        """A search that somebody waits for, as deep as the ranker's default."""
        deadline = _now_ms() + PATIENCE_MS
        request = RankRequest(request_id=f"q{query}", tenant=TENANT, deadline=deadline, query=self.queries[query])
        return Job(request, deadline)

    def renew(self, numbers: Sequence[int]) -> None:
        """The next version of each: the same posting with a vector a little changed."""
        now = _now_ms()
        self.versions[numbers] += 1
        self.publish([self._update(number, int(self.versions[number]), now) for number in numbers])

    def publish(self, updates: list[IndexUpdate]) -> None:
        """To all who follow index.update.v1."""
        self.index.apply(updates)
        self.store.write(Batch(updates, {}, {}))
        self.language_model.ingest(updates)

    def _update(self, number: int, version: int, now_ms: int) -> IndexUpdate:
        dense, sketch = self.updates.planes(number, 1, version)
        return self.updates.update(
            number, (dense[0], sketch[0]), version, posted_at=now_ms, expires_at=now_ms + LIFE_MS
        )


@contextmanager
def surroundings(
    folder: Path, data: Path, build: Path, model: Path, threads: int, rows: int = ROWS
) -> Iterator[Surroundings]:
    """`model`: the language model's directory; it computes on `threads`."""
    settings = RankerSettings(scorer="engine", model=model, threads=threads)
    updates = Updates(data, build, SUMMARY_TOKENS)
    scorers = load_scorers(settings)
    with shipped_redis(folder) as url, index_beside(rows) as index:
        link = RedisLink(connect(RedisSettings(url=url)), time.monotonic)
        around = Surroundings(
            settings=settings,
            updates=updates,
            index=index,
            link=link,
            store=FeatureStore(link, PREFIX, TOMBSTONE_MS),
            retrieval=RetrievalClient([index.address]),
            models=ModelsClient(f"127.0.0.1:{free_port()}"),
            fused=Scorers(scorers.fused),
            both=scorers,
            queries=_with_vectors(queries(data) or _titles(data)),
            versions=np.ones(rows, np.int64),
        )
        for batch in updates.batches(rows, BATCH, _now_ms()):
            around.publish(batch)
        gc.collect()
        gc.freeze()  # as the role does
        try:
            yield around
        finally:
            gc.unfreeze()
            around.language_model.close(10.0)
            around.retrieval.close()
            around.models.close()
            link.close()


def timed(pipeline: Pipeline, job: Job) -> tuple[float, RankResult]:
    """(milliseconds, what came)"""
    began = time.perf_counter()
    result = pipeline.rank(job, Turn(0.0, time.monotonic() + PATIENCE_MS / 1e3, None, Why.SUPPLY))
    return (time.perf_counter() - began) * 1e3, result


def _titles(data: Path) -> list[str]:
    """What is asked where there are no judgement queries, as many as those are."""
    return list(dict.fromkeys(posting.title for posting in load(data).postings if posting.title))[:JUDGED]


def _with_vectors(texts: Sequence[str]) -> list[RankQuery]:
    vectors = EmbeddedEncoder().encode_queries(texts)
    return [RankQuery(text=text, vector=vector) for text, vector in zip(texts, vectors, strict=True)]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
