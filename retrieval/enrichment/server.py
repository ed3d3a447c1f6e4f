"""`penstock serve enrich`: the slow lane, one process of it.

    posting.enrich.v1 ─┬─ heal    (bare ones, at once, the fast lane's table)  ─┬─> posting.enriched.v1
                       └─ refine  (all, slowly, the transformer)               ─┘

Each loop is a consumer group of its own, so a backlog of refinements keeps no posting without a vector. The whole
process yields to everybody else where the machine lets it. Ready means that both loops move and a forward of each
encoder gave a finite unit vector a short while ago.
"""

from __future__ import annotations

import gc
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence

import grpc
import psutil
import structlog
from prometheus_client import Gauge

from penstock.infra.settings import Settings
from penstock.infra.telemetry import DEGRADED
from penstock.retrieval.encoder.enriching import Encode, Made, Summarizer, check_unit, enrichments
from penstock.retrieval.encoder.interface import Encoder
from penstock.retrieval.encoder.planes import dense_floats
from penstock.retrieval.enrichment.loop import ROLE, EnrichLoop, Lane
from penstock.retrieval.enrichment.pace import TokenBucket
from penstock.retrieval.enrichment.priority import go_idle
from penstock.schemas import grpc_avro, topics
from penstock.schemas.events import PostingText
from penstock.schemas.framing import topic_codec
from penstock.schemas.kafka import KafkaSink, KafkaSource, Rebalance, Sink, Source
from penstock.schemas.rpc import EnrichWorkers, RoleStatus, StatusRequest

log = structlog.get_logger(role=ROLE)

HEAL_BATCH = 64  # about 100 ms of table and summary
PROVEN_S = 30.0  # a forward this recent proves health
STOP_S = 5.0
# A long backlog stays at the broker: two consumers with librdkafka's own bound would hold 128 MB of it.
CLIENT = {"queued.max.messages.kbytes": "2048", "fetch.message.max.bytes": "524288"}

LAG = Gauge("penstock_enrich_lag_offsets", "Enrichment requests not yet read", ["loop"])
RATE = Gauge("penstock_enrich_rate_per_second", "Answers a second over the last half minute", ["loop"])

_PROBE = "Cares for patients on a medical ward, shift"

OpenSource = Callable[[str, Rebalance], Source]  # group, callbacks


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Worker:
    """The role without its listener. Owns the loops' threads between `start` and `close`."""

    def __init__(
        self,
        settings: Settings,
        *,
        encoder: Encoder,
        summarizer: Summarizer,
        open_source: OpenSource,
        make_sink: Callable[[], Sink],
        priority: tuple[str, str] = ("normal", "not asked for"),
    ) -> None:
        """`priority`: what `go_idle` reached and why no better."""
        own = settings.enrich
        self._encoder = encoder
        self._fast: Encode = encoder.encode_postings
        self._refine: Encode = getattr(encoder, "refine_postings", encoder.encode_postings)
        self._summarizer = summarizer
        self._priority = priority
        self._process = psutil.Process()
        self._probes = itertools.count(1)
        self._proving = threading.Lock()
        self._proven = float("-inf")  # monotonic seconds of the newest good forwards
        self._reason = "warming up"  # why it is not ready; empty when it is
        registry = settings.kafka.schema_registry
        requests, answers = topic_codec(topics.ENRICH, registry), topic_codec(topics.ENRICHED, registry)

        def loop(lane: Lane, group: str) -> EnrichLoop:
            return EnrichLoop(lane, lambda back: open_source(group, back), make_sink(), requests, answers, now_ms)

        began = time.monotonic()
        self.heal = loop(
            Lane("heal", True, self._healing, HEAL_BATCH, TokenBucket(0, HEAL_BATCH, began)), f"{own.group}-heal"
        )
        self.refine = loop(
            Lane("refine", False, self._refining, own.batch, TokenBucket(own.max_per_s, own.batch, began)), own.group
        )
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=one.run, args=(self._stop,), name=one.lane.name, daemon=True)
            for one in (self.heal, self.refine)
        ]

    def start(self) -> None:
        """Proves every path once, then starts the loops. Raises BadForward or whatever the encoder raises."""
        self._forward()
        for one in (self.heal, self.refine):
            _export(one)
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Ends the loops, each after the batch that it is at, within STOP_S; what is left is read again."""
        self._stop.set()
        give_up = time.monotonic() + STOP_S
        for thread in self._threads:
            if thread.ident is not None:  # it was started
                thread.join(max(0.0, give_up - time.monotonic()))

    def status(self, _request: StatusRequest, _context: grpc.ServicerContext) -> RoleStatus:
        if self._reason or time.monotonic() - self._proven > PROVEN_S:
            self._probe()
        reasons = [self._reason, self.heal.not_at_work(), self.refine.not_at_work()]
        reason = "; ".join(why for why in reasons if why)
        heal, refine = self.heal.tally, self.refine.tally
        numbers = {
            "lag": float(refine.lag),
            "heal_lag": float(heal.lag),
            "healed": float(heal.answered),
            "refined": float(refine.answered),
            "skipped": float(refine.skipped),
            "refused": float(refine.refused),
            "rate_per_s": self.refine.rate.per_s(time.monotonic()),
            "resident_bytes": float(self._process.memory_info().rss),
            "proven_seconds_ago": time.monotonic() - self._proven,
        }
        texts = {
            "encoder_id": getattr(self._encoder, "refined_encoder_id", self._encoder.encoder_id),
            "heal_encoder_id": self._encoder.encoder_id,
            "space_id": self._encoder.space_id,
            "summarizer_id": self._summarizer.summarizer_id,
            "priority": ": ".join(part for part in self._priority if part),
        }
        return RoleStatus(role=ROLE, ready=not reason, reason=reason, numbers=numbers, texts=texts)

    def _healing(self, postings: Sequence[PostingText]) -> list[Made]:
        return enrichments(self._fast, self._summarizer, postings, ROLE)

    def _refining(self, postings: Sequence[PostingText]) -> list[Made]:
        made = enrichments(self._refine, self._summarizer, postings, ROLE)
        if any(one.enrichment.vector is not None for one in made):
            self._proven = time.monotonic()  # the work itself proves health
            self._reason = ""
        return made

    def _probe(self) -> None:
        """Forwards now; their failure makes the role not ready. One caller at a time: the others see its outcome."""
        with self._proving:
            if not self._reason and time.monotonic() - self._proven <= PROVEN_S:
                return
            try:
                self._forward()
            except Exception as error:  # whatever it is, health must say so and go on
                DEGRADED.labels(ROLE, "unhealthy").inc()
                self._reason = f"a forward of a fixed text failed: {type(error).__name__}: {error}"
                log.error("not ready", reason=self._reason)

    def _forward(self) -> None:
        # Never the same text: a cached vector proves nothing.
        posting = PostingText(title="Registered Nurse", description=f"{_PROBE} {next(self._probes)}.")
        for encode, what in ((self._fast, "a posting"), (self._refine, "a refined posting")):
            check_unit(dense_floats(encode([posting])[0].dense), what)
        self._summarizer.item_text(posting, self._summarizer.summarize(posting))
        self._proven = time.monotonic()
        self._reason = ""


def _export(loop: EnrichLoop) -> None:
    """Let Prometheus read a loop's numbers where they are, at every scrape."""
    LAG.labels(loop.lane.name).set_function(lambda: loop.tally.lag)
    RATE.labels(loop.lane.name).set_function(lambda: loop.rate.per_s(time.monotonic()))


def serve(
    settings: Settings, stop: threading.Event, *, make_encoder: Callable[[], Encoder], summarizer: Summarizer
) -> None:
    """Blocks until `stop`. Raises PortInUse, BadForward and what making the encoder raises."""
    own = settings.enrich
    priority = go_idle() if own.idle else ("normal", "enrich.idle is off")
    if own.idle and priority[1]:
        DEGRADED.labels(ROLE, "not idle").inc()
        log.warning("priority", reached=priority[0], because=priority[1])
    sys.setswitchinterval(0.001)  # a heal should not wait 5 ms for each turn beside a refinement
    encoder = make_encoder()
    torch = sys.modules.get("torch")
    if torch is not None:  # an encoder that uses it has imported it
        torch.set_num_threads(own.threads)
    worker = Worker(
        settings,
        encoder=encoder,
        summarizer=summarizer,
        open_source=lambda group, back: KafkaSource(settings.kafka, topics.ENRICH.name, group, back, CLIENT),
        make_sink=lambda: KafkaSink(settings.kafka),
        priority=priority,
    )
    listener = grpc_avro.serve(own.listen, {EnrichWorkers.STATUS: worker.status}, workers=2)
    try:
        worker.start()
        gc.collect()
        gc.freeze()  # weights and tables live as long as the process: no collection should walk them
        log.info("ready", listen=own.listen, encoder=encoder.encoder_id, priority=priority[0], pid=os.getpid())
        stop.wait()
    finally:
        worker.close()
        listener.stop(1.0).wait()
