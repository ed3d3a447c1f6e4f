"""The models role: texts to vectors, summaries and understood queries, batched across callers.

Life of a call: gRPC thread -> cache -> its lane (queries before fresh postings before refinement) -> reply. One item
that cannot be encoded is answered without a vector and counted; it never fails its batch. Ready means that a forward
of a fixed text just gave a finite unit vector, and health repeats that forward when no other work has proven it.

Where it stands: life-of-a-posting.md, step 3.
"""

from __future__ import annotations

import gc
import itertools
import os
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import grpc
import numpy as np
import psutil
import structlog

from penstock.infra.settings import Settings
from penstock.infra.telemetry import DEGRADED, STAGE_SECONDS
from penstock.retrieval.encoder.enriching import Summarizer, check_unit, each, enrichments
from penstock.retrieval.encoder.interface import Encoder
from penstock.retrieval.encoder.lanes import Lane, LaneLimits, Precedence
from penstock.retrieval.encoder.planes import dense_floats
from penstock.retrieval.understanding.interface import Understander
from penstock.schemas import grpc_avro
from penstock.schemas.events import Enrichment, PostingText, QueryVector, Understood, Vector
from penstock.schemas.grpc_avro import NotReady, Refused
from penstock.schemas.rpc import (
    AnalyzeQueriesReply,
    AnalyzeQueriesRequest,
    EnrichPostingsReply,
    EnrichPostingsRequest,
    Method,
    Models,
    QueryAnalysis,
    RoleStatus,
    StatusRequest,
)
from penstock.schemas.validate import text_hash

ROLE = "models"
WORKERS = 32  # gRPC threads; most of them wait for a lane
CACHED = 8_192  # enrichments kept, about 3 KB each
PROVEN_S = 10.0  # a forward this recent proves health
PROBE_TIMEOUT_S = 5.0

_PROBE_QUERY = "registered nurse"
_PROBE_POSTING = PostingText(title="Registered Nurse", description="Cares for patients on a medical ward.")


class ModelsService:
    """Handlers of the role. Owns its lanes and the cache (under its lock); `close()` ends the lanes."""

    def __init__(
        self,
        settings: Settings,
        *,
        encoder: Encoder,
        understander: Understander,
        summarizer: Summarizer,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`clock` gives seconds since the epoch, for queries that name a time."""
        self._encoder = encoder
        self._understander = understander
        self._summarizer = summarizer
        self._clock = clock
        self._refine: Callable[[Sequence[PostingText]], list[Vector]] = getattr(
            encoder, "refine_postings", encoder.encode_postings
        )
        self._cache: OrderedDict[tuple[str, bool], Enrichment] = OrderedDict()
        self._cache_lock = threading.Lock()
        self._hits = 0
        self._process = psutil.Process()
        self._reason = "warming up"  # why it is not ready; empty when it is
        self._warm = False
        self._probes = itertools.count(1)
        self._proven = 0.0  # monotonic seconds of the newest good forward
        batch, pending = settings.models.max_batch, settings.models.max_queue
        order = Precedence()
        self._queries: Lane[str, QueryVector | Exception] = Lane(
            "queries", 0, LaneLimits(batch, pending, 0.001, batch, 0.0), order, self._encode_queries
        )
        # Between chunks a waiting query goes first. On a CPU eight postings are some 12 ms of table and summary, two
        # some 100 ms of transformer; on an accelerator only full batches are worth their launch.
        slow = 2 if settings.models.device == "cpu" else batch
        quick = 8 if hasattr(encoder, "refine_postings") else slow
        self._fresh: Lane[PostingText, Enrichment] = Lane(
            "postings", 1, LaneLimits(batch, pending, 0.002, quick, 0.03), order, self._enrich_fresh
        )
        self._refined: Lane[PostingText, Enrichment] = Lane(
            "refine", 2, LaneLimits(batch, pending, 0.002, slow, 0.25), order, self._enrich_refined
        )

    # --- handlers ------------------------------------------------------------------------------------------------

    def enrich(self, request: EnrichPostingsRequest, context: grpc.ServicerContext) -> EnrichPostingsReply:
        """Raises NotReady, Refused, TimeoutError."""
        self._check_ready()
        keys = [(text_hash(posting), request.refine) for posting in request.postings]
        known = self._cached(keys)
        fresh = {key: posting for key, posting in zip(keys, request.postings, strict=True) if key not in known}
        lane = self._refined if request.refine else self._fresh
        made = _wait(lane.submit(list(fresh.values()), context.is_active), context)
        answers = {**known, **dict(zip(fresh, made, strict=True))}
        self._remember({key: answers[key] for key in fresh if answers[key].vector is not None})
        return EnrichPostingsReply(enrichments=tuple(answers[key] for key in keys))

    def analyze(self, request: AnalyzeQueriesRequest, context: grpc.ServicerContext) -> AnalyzeQueriesReply:
        """Raises NotReady, Refused, TimeoutError."""
        self._check_ready()
        coming = self._queries.submit(list(request.texts), context.is_active)
        with STAGE_SECONDS.labels(ROLE, "understand").time():
            understood = [self._understand(text) for text in request.texts]
        analyses = []
        for vector, read in zip(_wait(coming, context), understood, strict=True):
            # One text's trouble, which the lane has counted and logged, is not its neighbours'.
            analyses.append(QueryAnalysis(vector=None if isinstance(vector, Exception) else vector, understood=read))
        return AnalyzeQueriesReply(analyses=tuple(analyses))

    def status(self, request: StatusRequest, context: grpc.ServicerContext) -> RoleStatus:
        if self._warm and (self._reason or time.monotonic() - self._proven > PROVEN_S):
            self.probe()
        lanes: tuple[Lane[Any, Any], ...] = (self._queries, self._fresh, self._refined)
        numbers = {f"{lane.name}_waiting": float(lane.pending) for lane in lanes}
        numbers |= {f"{lane.name}_done": float(lane.done) for lane in lanes}
        numbers |= {
            "cache_hits": float(self._hits),
            "cached": float(len(self._cache)),
            "resident_bytes": float(self._process.memory_info().rss),
            "proven_seconds_ago": time.monotonic() - self._proven,
        }
        texts = {
            "encoder_id": self._encoder.encoder_id,
            "space_id": self._encoder.space_id,
            "summarizer_id": self._summarizer.summarizer_id,
        }
        return RoleStatus(role=ROLE, ready=not self._reason, reason=self._reason, numbers=numbers, texts=texts)

    # --- health --------------------------------------------------------------------------------------------------

    def warm_up(self) -> None:
        """Every path once, outside the lanes. Raises BadForward or whatever the encoder raises."""
        check_unit(dense_floats(self._encoder.encode_postings([_PROBE_POSTING])[0].dense), "a posting of the warm-up")
        check_unit(dense_floats(self._refine([_PROBE_POSTING])[0].dense), "a refined posting of the warm-up")
        check_unit(
            np.frombuffer(self._encoder.encode_queries([_PROBE_QUERY])[0].dense, "<f4"), "a query of the warm-up"
        )
        self._summarizer.item_text(_PROBE_POSTING, self._summarizer.summarize(_PROBE_POSTING))
        self._understander.understand("nurse in Columbus, Ohio", now_ms=0)
        self._warm = True
        self._succeeded()

    def probe(self) -> None:
        """A real forward, now, through the lane that people wait for; its failure makes the role not ready."""
        text = f"{_PROBE_QUERY} {next(self._probes)}"  # never the same: a cached vector proves nothing
        try:
            vector = self._queries.submit([text]).result(PROBE_TIMEOUT_S)[0]
            if isinstance(vector, Exception):
                raise vector
            check_unit(np.frombuffer(vector.dense, "<f4"), "a query")
        except Refused:
            return  # as many wait as may: that is load, and the work itself proves health
        except Exception as error:  # whatever it is, health must say so and go on
            self._failed(f"a forward of a fixed text failed: {type(error).__name__}: {error}")
        else:
            self._succeeded()

    def _succeeded(self) -> None:
        self._proven = time.monotonic()
        self._reason = ""

    def _failed(self, reason: str) -> None:
        DEGRADED.labels(ROLE, "unhealthy").inc()
        structlog.get_logger(role=ROLE).error("not ready", reason=reason)
        self._reason = reason

    @property
    def ready(self) -> bool:
        return not self._reason

    def _check_ready(self) -> None:
        if self._reason:
            raise NotReady(f"the models role is not ready: {self._reason}")

    # --- work of the lanes ---------------------------------------------------------------------------------------

    def _encode_queries(self, texts: list[str]) -> list[QueryVector | Exception]:
        out = each(self._encoder.encode_queries, texts, "encode_query", ROLE)
        if any(not isinstance(vector, Exception) for vector in out):
            self._proven = time.monotonic()
        return out

    def _enrich_fresh(self, postings: list[PostingText]) -> list[Enrichment]:
        return self._enrich(self._encoder.encode_postings, postings)

    def _enrich_refined(self, postings: list[PostingText]) -> list[Enrichment]:
        return self._enrich(self._refine, postings)

    def _enrich(
        self, encode: Callable[[Sequence[PostingText]], list[Vector]], postings: list[PostingText]
    ) -> list[Enrichment]:
        return [made.enrichment for made in enrichments(encode, self._summarizer, postings, ROLE)]

    def _understand(self, text: str) -> tuple[Understood, ...]:
        try:
            return self._understander.understand(text, now_ms=int(self._clock() * 1000))
        except Exception as error:  # a search without filters is better than none
            DEGRADED.labels(ROLE, "understand").inc()
            structlog.get_logger(role=ROLE).exception("query not understood", text=text, error=repr(error))
            return ()

    # --- cache ---------------------------------------------------------------------------------------------------

    def _cached(self, keys: list[tuple[str, bool]]) -> dict[tuple[str, bool], Enrichment]:
        found = {}
        with self._cache_lock:
            for key in keys:
                if key in self._cache:
                    self._cache.move_to_end(key)
                    found[key] = self._cache[key]
            self._hits += len(found)
        return found

    def _remember(self, made: dict[tuple[str, bool], Enrichment]) -> None:
        with self._cache_lock:
            self._cache.update(made)
            while len(self._cache) > CACHED:
                self._cache.popitem(last=False)

    def close(self) -> None:
        self._warm = False
        self._reason = "stopping"
        for lane in (self._queries, self._fresh, self._refined):
            lane.close()


def _wait(coming: Future[list[Any]], context: grpc.ServicerContext) -> list[Any]:
    left: float | None = context.time_remaining()
    try:
        return coming.result(left)
    except TimeoutError as error:
        raise TimeoutError(str(error) or f"not done in the {left:.3f} s that the caller left") from error


def serve(
    settings: Settings,
    stop: threading.Event,
    *,
    encoder: Encoder,
    understander: Understander,
    summarizer: Summarizer,
) -> None:
    """Blocks until `stop`. Raises PortInUse, BadForward and what the encoder raises on its first forward."""
    import torch  # this role's alone: the module is also read by tests and tools that hold no model

    torch.set_num_threads(settings.models.threads)
    # A query's forward takes the interpreter lock some hundred times: it must not wait 5 ms for each.
    sys.setswitchinterval(0.001)
    log = structlog.get_logger(role=ROLE)
    service = ModelsService(settings, encoder=encoder, understander=understander, summarizer=summarizer)
    handlers: dict[Method, grpc_avro.Handler] = {
        Models.ENRICH: service.enrich,
        Models.ANALYZE: service.analyze,
        Models.STATUS: service.status,
    }
    server = grpc_avro.serve(settings.models.listen, handlers, workers=WORKERS)
    try:
        service.warm_up()
        gc.collect()
        gc.freeze()  # weights and tables live as long as the process: no collection should walk them
        log.info("ready", listen=settings.models.listen, encoder=encoder.encoder_id, pid=os.getpid())
        stop.wait()
    finally:
        server.stop(grace=2.0).wait()
        service.close()
