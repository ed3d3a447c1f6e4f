"""posting.enrich.v1 in, posting.enriched.v1 out: one loop, in batches, at least once.

    1. pace      no more than the bucket allows; meanwhile the partitions are paused and the group is kept
    2. poll      a batch
    3. decode    a poison record becomes a dead letter
    4. choose    what this loop is for, without what has expired or been superseded
    5. enrich    vector, summary, item text; a text that cannot be encoded becomes a dead letter
    6. answer    keyed by posting, and wait until the broker has everything
    7. commit    the batch

Whatever fails between 2 and 7 leaves the batch uncommitted: it is read again, and the postings job drops answers that
it has had. Two such loops make the role: one heals postings that have no vector, at once; one refines all, slowly.

Where it stands: life-of-a-posting.md, step 8.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import structlog
from prometheus_client import Counter

from penstock.infra import tracing
from penstock.infra.telemetry import DEAD_LETTERS, DEGRADED
from penstock.retrieval.encoder.enriching import Made
from penstock.retrieval.enrichment.choose import choose
from penstock.retrieval.enrichment.pace import TokenBucket
from penstock.retrieval.enrichment.rate import Rate
from penstock.schemas import topics
from penstock.schemas.dead_letters import dead_letter
from penstock.schemas.errors import MalformedRecord, WireError
from penstock.schemas.events import DeadLetter, EnrichedPosting, EnrichRequest, PostingText
from penstock.schemas.kafka import Rebalance, Record, Sink, Source
from penstock.schemas.wire import Codec, codec

ROLE = "enrich"
log = structlog.get_logger(role=ROLE)

ANSWERED = Counter("penstock_enrich_answers_total", "Answers delivered to posting.enriched.v1", ["loop"])
SKIPPED = Counter("penstock_enrich_skipped_total", "Requests that needed no answer", ["loop", "why"])

POLL_S = 0.5  # a record that comes ends the wait at once
LAG_EVERY_S = 1.0
REOPEN_AFTER_S = 1.0
DELIVER_S = 30.0
STUCK_AFTER_S = 120.0  # a batch at idle priority on a busy machine takes its time


class Undelivered(Exception):
    """The broker did not take every answer of a batch: the batch is done again."""


@dataclass(frozen=True, slots=True)
class Lane:
    """What one loop is for."""

    name: str
    heals: bool  # only what was published without a vector; what is wrong with a request is the other loop's to say
    make: Callable[[Sequence[PostingText]], list[Made]]
    batch: int
    bucket: TokenBucket


@dataclass(slots=True)
class Tally:
    """Since the start. Written by the loop, read by anybody."""

    answered: int = 0
    skipped: int = 0
    refused: int = 0
    lag: int = 0
    trouble: str = "not reading yet"  # why it is not at work; empty while it is
    beat: float = 0.0  # `clock` when it last moved


@dataclass(frozen=True, slots=True)
class _Message:
    topic: str
    key: bytes | None
    value: bytes
    instead: bytes | None = None  # what to send when this cannot be delivered


class EnrichLoop:
    """Owns its source and offsets; `run` on one thread. `now_ms` epoch milliseconds, `clock` monotonic seconds."""

    def __init__(
        self,
        lane: Lane,
        open_source: Callable[[Rebalance], Source],
        sink: Sink,
        requests: Codec[EnrichRequest],
        answers: Codec[EnrichedPosting],
        now_ms: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.lane = lane
        self.tally = Tally(beat=clock())
        self.rate = Rate()
        self._open_source = open_source
        self._sink = sink
        self._requests = requests
        self._answers = answers
        self._now_ms = now_ms
        self._clock = clock
        self._lost: set[int] = set()  # partitions taken away since the last poll began, and not given back
        self._rebalance = Rebalance(self._lost.difference_update, self._lost.update)
        self._paused = False
        self._lag_at = float("-inf")

    def run(self, stop: threading.Event) -> None:
        """Until `stop` is set. What goes wrong is said and tried again from what was committed."""
        while not stop.is_set():
            try:
                self._read(stop)
            except Exception as error:  # broker, registry, encoder: nothing of it may end the loop or lose a request
                DEGRADED.labels(ROLE, f"{self.lane.name} loop").inc()
                self.tally.trouble = f"{type(error).__name__}: {error}"
                log.error("loop starts again", loop=self.lane.name, error=self.tally.trouble)
                stop.wait(REOPEN_AFTER_S)

    def not_at_work(self) -> str:
        """Why this loop does nothing though it should; empty when all is well."""
        still = self._clock() - self.tally.beat
        if still > STUCK_AFTER_S:
            return f"the {self.lane.name} loop has not moved for {still:.0f} s"
        return f"the {self.lane.name} loop: {self.tally.trouble}" if self.tally.trouble else ""

    def _read(self, stop: threading.Event) -> None:
        source = self._open_source(self._rebalance)
        self._paused = False
        try:
            while not stop.is_set():
                self.step(source)
                self.tally.trouble = ""
        finally:
            source.close()

    def step(self, source: Source) -> None:
        """One turn of the loop: a batch at most."""
        self.tally.beat = now = self._clock()
        if now - self._lag_at >= LAG_EVERY_S:
            self._lag_at = now
            self.tally.lag = source.lag()
        bucket = self.lane.bucket
        room = min(self.lane.batch, bucket.available(now))
        if room < 1:
            self._pause(source, True)
            source.poll(1, min(POLL_S, bucket.wait_s(now)))
            return
        self._pause(source, False)
        self._lost.clear()
        records = [record for record in source.poll(room, POLL_S) if record.partition not in self._lost]
        if records:
            self._answer(records)
            source.commit(_next(records))

    def _pause(self, source: Source, wanted: bool) -> None:
        if wanted != self._paused:
            self._paused = wanted
            (source.pause if wanted else source.resume)()

    # --- a batch -----------------------------------------------------------------------------------------------------

    def _answer(self, records: Sequence[Record]) -> None:
        out: list[_Message] = []
        origins: list[Record] = []
        requests: list[EnrichRequest] = []
        for record in records:
            try:
                requests.append(self._decoded(record))
                origins.append(record)
            except WireError as error:
                out += self._refused(record, "decode", error)
        choice = choose(requests, self._now_ms())
        wanted = self._mine(choice.chosen, requests)
        began_ms = self._now_ms()
        made = self.lane.make([requests[position].text for position in wanted]) if wanted else []
        self.lane.bucket.spend(len(wanted))
        answers = 0
        skipped = {
            "expired": len(self._mine(choice.expired, requests)),
            "superseded": len(self._mine(choice.superseded, requests)),
            "no_words": 0,
        }
        for position, one in zip(wanted, made, strict=True):
            if one.error is not None:
                out += self._refused(origins[position], "encode", one.error)
            elif one.enrichment.vector is None:
                skipped["no_words"] += 1
            else:
                out.append(self._answer_message(requests[position], one, began_ms))
                answers += 1
        self._deliver(out)
        self._account(answers, len(out) - answers, skipped)

    def _mine(self, positions: Sequence[int], requests: Sequence[EnrichRequest]) -> list[int]:
        return [position for position in positions if requests[position].bare or not self.lane.heals]

    def _decoded(self, record: Record) -> EnrichRequest:
        if record.value is None:
            raise MalformedRecord("no value: a request is a record, there is nothing to delete here")
        return self._requests.decode(record.value)

    def _answer_message(self, request: EnrichRequest, made: Made, began_ms: int) -> _Message:
        stage, until = f"enrich.{self.lane.name}", self._now_ms()
        answer = EnrichedPosting(
            posting_id=request.posting_id,
            version=request.version,
            tenant=request.tenant,
            text_hash=request.text_hash,
            enrichment=made.enrichment,
            heals=self.lane.heals,
            trace=tracing.passed(stage, request.trace, began_ms, until, posting_id=request.posting_id),
        )
        return _Message(topics.ENRICHED.name, topics.ENRICHED.key(answer).encode(), self._answers.encode(answer))

    def _refused(self, record: Record, stage: str, error: Exception) -> list[_Message]:
        """The dead letter; nothing from the loop that heals, since both read every request."""
        return [] if self.lane.heals else [self._dead_letter(record, stage, error)]

    def _dead_letter(self, record: Record, stage: str, error: Exception) -> _Message:
        DEAD_LETTERS.labels(topics.ENRICH.name, stage, type(error).__name__).inc()
        log.warning("request refused", partition=record.partition, offset=record.offset, error=str(error))
        raw = record.value or b""
        letter = dead_letter(
            topics.ENRICH,
            key=record.key,
            raw=raw,
            stage=stage,
            error=error,
            failed_at=self._now_ms(),
            produced_at=record.timestamp_ms,
        )
        where = f"partition {record.partition}, offset {record.offset}"
        without = replace(
            letter, raw=b"", message=f"{error} [its {len(raw)} bytes do not fit here; they are at {where}]"
        )
        encode = codec(DeadLetter).encode_unbounded
        return _Message(topics.ENRICH.dead_letters, record.key, encode(letter), encode(without))

    def _deliver(self, messages: Sequence[_Message]) -> None:
        """Returns once the broker has all of them. Raises Undelivered."""
        failed = self._sent(messages)
        again = [replace(message, value=message.instead) for message, _ in failed if message.instead is not None]
        if len(again) < len(failed):
            raise Undelivered("; ".join(error for _, error in failed))
        if again and (failed := self._sent(again)):
            raise Undelivered("; ".join(error for _, error in failed))

    def _sent(self, messages: Sequence[_Message]) -> list[tuple[_Message, str]]:
        """Those that were not delivered, and why."""
        outcome: dict[int, str | None] = {}
        for number, message in enumerate(messages):

            def report(error: str | None, number: int = number) -> None:
                outcome[number] = error

            self._sink.send(message.topic, message.key, message.value, report)
        give_up = time.monotonic() + DELIVER_S
        while len(outcome) < len(messages) and (left := give_up - time.monotonic()) > 0:
            self._sink.flush(left)
        late = f"no word from the broker within {DELIVER_S:.0f} s"
        said = {number: outcome.get(number, late) for number in range(len(messages))}
        return [(messages[number], error) for number, error in said.items() if error is not None]

    def _account(self, answered: int, refused: int, skipped: dict[str, int]) -> None:
        self.tally.answered += answered
        self.tally.refused += refused
        self.tally.skipped += sum(skipped.values())
        self.rate.add(answered, self._clock())
        ANSWERED.labels(self.lane.name).inc(answered)
        for why, count in skipped.items():
            SKIPPED.labels(self.lane.name, why).inc(count)


def _next(records: Sequence[Record]) -> dict[int, int]:
    """The next offset of each partition read."""
    out: dict[int, int] = {}
    for record in records:
        out[record.partition] = max(out.get(record.partition, 0), record.offset + 1)
    return out
