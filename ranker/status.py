"""The ranker's own account of itself: ready when it can score and reaches the roles behind it.

Redis is not one of them: without it answers are dearer, not fewer, and they say so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from prometheus_client import Gauge

from penstock.ranker import shaping_status
from penstock.ranker.backends.scorer import Health
from penstock.ranker.cache import ScoreCache
from penstock.ranker.errors import RedisAway
from penstock.ranker.feature_feed import FeatureFeed
from penstock.ranker.known_answer import KnownAnswer
from penstock.ranker.redis_link import RedisLink
from penstock.ranker.scoring import Scorers
from penstock.ranker.service import RankService
from penstock.schemas.grpc_avro import CallError
from penstock.schemas.rpc import RoleStatus

QUEUE_DEPTH = Gauge("penstock_rank_queue_depth", "Rank requests that wait for a worker")
CACHE_HIT_RATIO = Gauge("penstock_score_cache_hit_ratio", "Pairs found over pairs asked, since the start")
FEATURES_LAG_SECONDS = Gauge("penstock_features_lag_seconds", "How far the feature store is behind index.update.v1")
FEATURES_LAG_OFFSETS = Gauge("penstock_features_lag_offsets", "Index updates not yet in the feature store")

ASK_S = 1.0  # seconds another role has to say how it is


class OneRole(Protocol):
    def status(self, timeout: float) -> RoleStatus: ...


class ManyRoles(Protocol):
    def status(self, timeout: float) -> Sequence[RoleStatus]: ...


@dataclass(frozen=True, slots=True)
class StatusReport:
    """Reads the parts; owns nothing."""

    service: RankService
    cache: ScoreCache
    link: RedisLink
    features: FeatureFeed
    known_answer: KnownAnswer
    scorers: Scorers
    models: OneRole
    retrieval: ManyRoles
    now_ms: Callable[[], int]
    about: Mapping[str, str]  # what the scorer is

    def status(self) -> RoleStatus:
        verdict = self.known_answer.verdict(self.service.idle_ms)
        progress = self.features.progress
        model = self.scorers.language_model
        health = model.health() if model is not None else Health()
        waits_for = "" if health.ready else f"language model: {health.reason}"
        troubles = [reason for reason in (self._models(), self._retrieval(), verdict.reason, waits_for) if reason]
        numbers = {f"{outcome}_total": float(count) for outcome, count in self.service.counts().items()}
        numbers |= {
            "queue_depth": float(self.service.depth),
            "cache_hit_rate": self.cache.hit_rate,
            "redis_up": float(self._redis_answers()),
            "features_lag_offsets": float(progress.lag_offsets),
            "features_lag_seconds": progress.lag_seconds,
            "features_written_total": float(progress.written),
            "known_answer_ok": float(verdict.ok),
            "known_answer_age_seconds": (self.now_ms() - verdict.checked_ms) / 1000,
        }
        shaping = self.service.shaping()
        numbers |= shaping_status.numbers(shaping)
        numbers |= health.numbers
        texts = {**self.about, "model_id": self.scorers.model_id, "features": progress.state}
        texts["depth_reason"] = shaping.depth_reason.value
        if model is not None:
            texts["language_model"] = health.reason or "well"
        return RoleStatus(role="ranker", ready=not troubles, reason="; ".join(troubles), numbers=numbers, texts=texts)

    def export(self) -> None:
        """Let Prometheus read the same numbers, where they are, at every scrape."""
        shaping_status.SHAPING.read = self.service.shaping
        QUEUE_DEPTH.set_function(lambda: self.service.depth)
        CACHE_HIT_RATIO.set_function(lambda: self.cache.hit_rate)
        FEATURES_LAG_SECONDS.set_function(lambda: self.features.progress.lag_seconds)
        FEATURES_LAG_OFFSETS.set_function(lambda: self.features.progress.lag_offsets)

    def _models(self) -> str:
        try:
            status = self.models.status(ASK_S)
        except CallError as error:
            return str(error)
        return "" if status.ready else f"models not ready: {status.reason}"

    def _retrieval(self) -> str:
        """Empty while some shard is ready: the others are named in each answer."""
        shards = self.retrieval.status(ASK_S)
        if any(shard.ready for shard in shards):
            return ""
        return f"no retrieval shard ready: {'; '.join(shard.reason for shard in shards)}"

    def _redis_answers(self) -> bool:
        try:
            return bool(self.link.run(lambda client: client.ping()))
        except RedisAway:
            return False
