"""The front of every job: raw bytes become a checked event, or a dead letter that delays nobody.

Where it stands: life-of-a-posting.md, step 2; life-of-a-query.md, step 2.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import structlog
from pyflink.common import Row
from pyflink.datastream import OutputTag
from pyflink.datastream.functions import ProcessFunction, RuntimeContext

from penstock.infra.settings import Settings
from penstock.infra.telemetry import ids_of
from penstock.jobs.operators.kafka import KEY_AND_VALUE
from penstock.jobs.operators.metrics import counters
from penstock.jobs.operators.posting_state import Arrival
from penstock.jobs.operators.worker import begin, passed
from penstock.schemas import validate
from penstock.schemas.dead_letters import dead_letter
from penstock.schemas.errors import InvalidRecord, MalformedRecord, OversizedRecord, UnknownSchema
from penstock.schemas.events import DeadLetter, EnrichedPosting, Op, Posting, SearchQuery
from penstock.schemas.framing import topic_codec
from penstock.schemas.topics import DEAD_LETTER_BYTES, Topic, topic_named
from penstock.schemas.wire import MAX_RECORD_BYTES, Codec, codec

log = structlog.get_logger()

E = TypeVar("E")

# What may be wrong with a record. Anything else (a registry that is away) is not the record's fault: the job fails
# over and reads the record again.
REFUSED = (MalformedRecord, UnknownSchema, OversizedRecord, InvalidRecord)
# A rank request is its query and what understanding adds, and must fit a record too.
MAX_QUERY_RECORD_BYTES = MAX_RECORD_BYTES // 2
# What a dead-letter topic takes, less Kafka's own overhead. A topic of a team's own may admit larger records than ours
# do: then the letter says so without the bytes, since a sink that refuses it would have the job read it for ever.
LARGEST_LETTER = DEAD_LETTER_BYTES - (64 << 10)
DEAD_LETTERS = OutputTag("dead-letters", KEY_AND_VALUE)
COUNTED = ("accepted", "refused", "unknown_symbols")

Check = Callable[[Any, bytes, int, int, Settings], Any]  # (event, raw, produced_at, now, settings) -> what goes on


class TooOld(InvalidRecord):
    """An event from before the tombstone window: whether its id was deleted since is no longer known."""


def check_posting(event: Posting, raw: bytes, produced_at: int, now_ms: int, settings: Settings) -> Arrival:
    """A posting that keeps the rules, as the keyed operator takes it."""
    rules = settings.postings
    validate.check_posting(event, now_ms=now_ms, max_life_ms=rules.max_life_ms)
    if produced_at < now_ms - rules.tombstone_window_ms:
        days = rules.tombstone_window_ms / 86_400_000
        raise TooOld(
            "timestamp",
            produced_at,
            f"at most {days:g} days old (postings.tombstone_window_ms): publish it again with a higher version",
        )
    text = validate.text_of(event) if event.op is Op.UPSERT else None
    return Arrival(
        posting=event,
        raw=raw,
        produced_at=produced_at,
        event_hash=validate.event_hash(event),
        text=text,
        text_hash=validate.text_hash(text) if text is not None else None,
    )


def check_enriched(event: EnrichedPosting, raw: bytes, produced_at: int, now_ms: int, settings: Settings) -> Any:
    validate.check_enriched(event)
    return event


def check_query(
    event: SearchQuery, raw: bytes, produced_at: int, now_ms: int, settings: Settings
) -> tuple[SearchQuery, int]:
    if len(raw) > MAX_QUERY_RECORD_BYTES:
        raise OversizedRecord(
            f"{len(raw)} bytes, at most {MAX_QUERY_RECORD_BYTES} in a query: fewer values in its filters"
        )
    validate.check_query(event)
    return event, produced_at


def take(
    topic: Topic,
    decoder: Codec[Any],
    check: Check,
    raw: bytes,
    produced_at: int | None,
    now_ms: int,
    settings: Settings,
) -> tuple[Any, DeadLetter | None]:
    """(what goes on, None) or (None, the dead letter) of one record. Pure but for the codec's caches."""
    stage, key, trace = "decode", None, None
    try:
        event = decoder.decode(raw)
        key, trace = topic.key(event), getattr(event, "trace", None)
        stage = "validate"
        return check(event, raw, now_ms if produced_at is None else produced_at, now_ms, settings), None
    except REFUSED as error:
        letter = dead_letter(
            topic,
            # PyFlink's Kafka source hands no key over; that of a readable event is in the event.
            key=key.encode("utf-8", "surrogatepass") if key is not None else None,
            raw=raw,
            stage="order" if isinstance(error, TooOld) else stage,
            error=error,
            produced_at=produced_at,
            failed_at=now_ms,
            trace=trace,
        )
        return None, letter


def dead_letter_row(letter: DeadLetter) -> Row:
    """A dead letter for a sink. Single-object encoded everywhere: whoever reads it may not have the registry."""
    value = codec(DeadLetter).encode_unbounded(letter)
    if len(value) > LARGEST_LETTER:
        digest = hashlib.blake2b(letter.raw, digest_size=16).hexdigest()
        note = f"{letter.message} [its {len(letter.raw)} bytes do not fit a dead letter; blake2b-128 {digest}]"
        value = codec(DeadLetter).encode_unbounded(replace(letter, raw=b"", message=note))
    return Row(letter.key or b"", value)


class Intake(ProcessFunction):  # type: ignore[misc]  # pyflink carries no types
    """Decodes and checks the records of one topic; refused ones leave by the side output DEAD_LETTERS."""

    def __init__(self, topic: Topic, check: Check, settings: Settings) -> None:
        self._topic_name = topic.name
        self._check = check
        self._settings = settings

    def open(self, runtime_context: RuntimeContext) -> None:
        self._topic = topic_named(self._topic_name)
        self._codec = topic_codec(self._topic, self._settings.kafka.schema_registry)
        counted = counters(begin(runtime_context, self._settings), "intake", COUNTED, topic=self._topic_name)
        self._accepted, self._refused, self._unknown_symbols = (counted[name] for name in COUNTED)
        self._stage = f"decode {self._topic_name}"

    def process_element(self, value: bytes, ctx: ProcessFunction.Context) -> Iterator[Any]:
        raw = bytes(value) if value is not None else b""
        now, produced_at = int(time.time() * 1000), ctx.timestamp()
        event, letter = take(self._topic, self._codec, self._check, raw, produced_at, now, self._settings)
        if letter is None:
            self._accepted.inc()
            self._unknown_symbols.inc(len(self._codec.unknown_symbols(raw)))
            yield passed(event, self._stage, now if produced_at is None else produced_at)
        else:
            self._refused.inc()
            log.warning(
                "record refused",
                topic=letter.topic,
                stage=letter.stage,
                error=letter.message,
                key=letter.key.decode(errors="replace") if letter.key is not None else None,
                **ids_of(letter),
            )
            yield DEAD_LETTERS, dead_letter_row(letter)
