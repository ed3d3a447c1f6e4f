"""`penstock serve ranker`: one desk, fed by Kafka and gRPC, and the loop that fills the feature store.

    gRPC Rank ─────────┐
    gRPC RankStream ───┼─> shaper -> threads -> pipeline -> answer (gRPC reply, or rank.result.v1)
    rank.request.v1 ───┘
    index.update.v1 ────> feature store in Redis

Every waiting gRPC caller and every stream holds a thread of the listener, which has more of them than the queue has
places and than there may be streams: so what the shaper holds is the only queue, and it refuses at once.
"""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Callable

import grpc
import structlog

from penstock.infra.settings import Settings
from penstock.ranker.backends.load import described, load_scorers
from penstock.ranker.cache import ScoreCache
from penstock.ranker.calls import rank_handler
from penstock.ranker.desk import make_desk
from penstock.ranker.feature_feed import FeatureFeed
from penstock.ranker.feature_store import FeatureStore
from penstock.ranker.known_answer import KnownAnswer
from penstock.ranker.rank_streams import MAX_STREAMS, RankStreams
from penstock.ranker.redis_link import RedisLink, connect
from penstock.ranker.request_feed import RequestFeed
from penstock.ranker.status import StatusReport
from penstock.retrieval.client import ModelsClient, RetrievalClient, shard_addresses
from penstock.schemas import grpc_avro, topics
from penstock.schemas.framing import topic_codec
from penstock.schemas.grpc_avro import Handler
from penstock.schemas.kafka import KafkaSink, KafkaSource
from penstock.schemas.rpc import Method, Ranker, RoleStatus, StatusRequest

log = structlog.get_logger(role="ranker")

SPARE_THREADS = (
    8  # of the listener, beyond one for every place in the queue, thread of the desk and stream: status, refusals
)
STOP_S = 10.0
SWITCH_S = 0.001  # a forward on the processor does not wait 5 ms for each of its turns beside the threads of requests


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def serve(settings: Settings, stop: threading.Event) -> None:
    """Blocks until `stop` is set, then answers what it has taken in. Raises UnfitScorer, PortInUse."""
    sys.setswitchinterval(SWITCH_S)
    ranker = settings.ranker
    scorers = load_scorers(ranker)
    model = scorers.language_model
    known_answer = KnownAnswer(scorers, now_ms)
    link = RedisLink(connect(settings.redis), time.monotonic)
    background_link = RedisLink(connect(settings.redis), time.monotonic)
    prefix = settings.redis.prefix
    window_ms = settings.postings.tombstone_window_ms
    cache = ScoreCache(link, prefix, ranker.score_cache_ttl_s, time.monotonic)
    models = ModelsClient(settings.models.dial)
    shards = shard_addresses(settings.retrieval)
    retrieval = RetrievalClient(shards)
    service, pipeline = make_desk(
        ranker,
        scorers,
        models=models,
        retrieval=retrieval,
        shards=len(shards),
        store=FeatureStore(link, prefix, window_ms),
        cache=cache,
        now_ms=now_ms,
        clock=time.monotonic,
    )
    features = FeatureFeed(
        FeatureStore(background_link, prefix, window_ms),
        lambda rebalance: KafkaSource(settings.kafka, topics.INDEX.name, f"{ranker.group}-features", rebalance),
        topic_codec(topics.INDEX, settings.kafka.schema_registry),
        now_ms,
        time.monotonic,
        model.ingest if model is not None else None,
    )
    sink = KafkaSink(settings.kafka)
    requests = RequestFeed(
        service,
        pipeline.check,
        lambda rebalance: KafkaSource(settings.kafka, topics.RANK_REQUESTS.name, ranker.group, rebalance),
        sink,
        max(1, ranker.max_queue // 2),
        topic_codec(topics.RANK_REQUESTS, settings.kafka.schema_registry),
        topic_codec(topics.RANK_RESULTS, settings.kafka.schema_registry),
        now_ms,
    )
    about = described(ranker)
    report = StatusReport(service, cache, link, features, known_answer, scorers, models, retrieval, now_ms, about)
    report.export()
    streams = RankStreams(service, pipeline.check, ranker.max_queue, now_ms)
    handlers: dict[Method, Handler] = {
        Ranker.RANK: rank_handler(service, pipeline.check, now_ms),
        Ranker.RANK_STREAM: streams.rank,
        Ranker.STATUS: _status_handler(report),
    }
    # What is there now stays: the garbage collector need not walk it again.
    gc.collect()
    gc.freeze()
    listener_threads = ranker.max_queue + service.threads + MAX_STREAMS + SPARE_THREADS
    listener = grpc_avro.serve(ranker.listen, handlers, workers=listener_threads)
    threads = [
        threading.Thread(target=run, args=(stop,), name=name, daemon=True)
        for name, run in (("rank-requests", requests.run), ("features", features.run))
    ]
    service.start()
    for thread in threads:
        thread.start()
    log.info("ranker ready", listen=ranker.listen, model=scorers.model_id, depth=ranker.depth)
    try:
        stop.wait()
    finally:
        gc.unfreeze()
        stop.set()
        stopped = listener.stop(STOP_S)
        streams.close()
        for thread in threads:
            thread.join(STOP_S)
        service.close(STOP_S)
        stopped.wait(STOP_S)
        if model is not None:
            model.close(STOP_S)
        for closable in (models, retrieval, link, background_link):
            closable.close()
        log.info("ranker stopped", **service.counts())


def _status_handler(report: StatusReport) -> Callable[[StatusRequest, grpc.ServicerContext], RoleStatus]:
    return lambda _request, _context: report.status()
