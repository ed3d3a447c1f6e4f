"""One phase as it runs: the producer in its own process, rows and alerts watched from outside, CPU counted by part."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.streaming import judge, usage
from benchmarks.streaming.plan import Phase
from penstock.infra.demo.watch import freshness_ms
from penstock.infra.kafka_clients import Tail
from penstock.infra.settings import Settings
from penstock.retrieval.client import RetrievalClient
from penstock.schemas.events import Alert
from penstock.schemas.framing import topic_codec
from penstock.schemas.grpc_avro import CallError
from penstock.schemas.topics import ALERTS

ROOT = Path(__file__).resolve().parents[2]
LOOK_EVERY_S = 0.2
SAMPLED = 4  # one posting in so many is followed: looking must not cost what it measures
ROWS_A_LOOK = 200


class ProducerFailed(Exception):
    """The producer process ended with an error: its own words are on stderr."""


@dataclass(slots=True)
class Producer:
    """A producer at work. `sent` is what it said last; written by one thread of its own."""

    process: subprocess.Popen[str]
    sent: int = 0
    said: dict[str, float] = field(default_factory=dict)
    done: threading.Event = field(default_factory=threading.Event)

    def wait(self, timeout: float) -> None:
        """Until everything is on the broker. Raises ProducerFailed."""
        if not self.done.wait(timeout) or self.process.wait(timeout) != 0:
            raise ProducerFailed(f"exit status {self.process.poll()} after {self.sent} records")


@contextmanager
def producing(phase: Phase, data: Path, stack: Path) -> Iterator[Producer]:
    """The producer, from its first record on; killed at the end if it still runs."""
    command = [sys.executable, "-m", "benchmarks.streaming.produce", phase.dumps()]
    process = subprocess.Popen(
        [*command, "--data", str(data.resolve()), "--stack", str(stack)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    producer = Producer(process)
    assert process.stdout is not None
    process.stdout.readline()  # it has read its postings and begins

    def listen() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            producer.said = json.loads(line)
            producer.sent = int(producer.said["sent"])
        producer.done.set()

    threading.Thread(target=listen, name="producer", daemon=True).start()
    try:
        yield producer
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


class Searchable(threading.Thread):
    """Follows one new posting in SAMPLED until it is searchable, and how long that took from its Kafka timestamp.

    A row that was refined before it was looked at says when the refinement came, not the first version: it is counted
    in `missed` instead.
    """

    def __init__(self, retrieval: RetrievalClient, ids: list[tuple[int, str]], producer: Producer) -> None:
        """`ids` with their positions among the phase's events, in order."""
        super().__init__(name="searchable", daemon=True)
        self._retrieval = retrieval
        self._ids = ids
        self._producer = producer
        self._stopping = threading.Event()
        self.samples: list[float] = []
        self.without_vector = 0
        self.missed = 0
        self.trouble = ""

    @property
    def waiting(self) -> int:
        return len(self._ids) - len(self.samples) - self.missed

    def run(self) -> None:
        waiting: list[str] = []
        begun = 0
        while not self._stopping.wait(LOOK_EVERY_S):
            while begun < len(self._ids) and self._ids[begun][0] < self._producer.sent:
                waiting.append(self._ids[begun][1])
                begun += 1
            try:
                found = {row.posting_id: row for row in judge.rows(self._retrieval, waiting[:ROWS_A_LOOK])}
            except CallError as error:
                self.trouble = str(error)
                continue
            left = []
            for each in waiting[:ROWS_A_LOOK]:
                row = found.get(each)
                if row is None or row.update is None:
                    left.append(each)
                elif (fresh := freshness_ms(row)) is None:
                    self.missed += 1
                else:
                    self.samples.append(fresh)
                    self.without_vector += row.update.vector is None
            waiting = waiting[ROWS_A_LOOK:] + left  # what does not come must not hide what does

    def stop(self) -> None:
        self._stopping.set()
        self.join()


class Alerts(threading.Thread):
    """Reads alerts.feed.v1 from its present end: from the posting's Kafka timestamp to the alert's `alerted_at`.

    Not to its Kafka timestamp: Flink's sink hands on that of the record it came from.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(name="alerts", daemon=True)
        self._tail = Tail(settings.kafka, [ALERTS.name])
        self._codec = topic_codec(ALERTS, settings.kafka.schema_registry)
        self._stopping = threading.Event()
        self.samples: list[float] = []
        self.ids: set[str] = set()
        self.repeated = 0  # records with an id that was there before: at least once
        self.doubled = 0  # one person told twice of one posting, under two ids: wrong
        self._told: dict[tuple[str, str, str], str] = {}
        self.deferred = 0  # quiet hours and digests: not late but asked to wait
        self.matches = 0

    def run(self) -> None:
        while not self._stopping.is_set():
            for message in self._tail.poll(0.2, most=5_000):
                alert: Alert = self._codec.decode(message.value() or b"")
                self.repeated += alert.alert_id in self.ids
                self.ids.add(alert.alert_id)
                told = (alert.person_id, alert.posting_id, alert.material_class)
                self.doubled += self._told.setdefault(told, alert.alert_id) != alert.alert_id
                self.matches += len(alert.matches)
                if alert.deliver_after is None:
                    self.samples.append(float(alert.alerted_at - alert.produced_at))
                else:
                    self.deferred += 1

    def stop(self) -> None:
        self._stopping.set()
        self.join()
        self._tail.close()


@dataclass(slots=True)
class Profile:
    """What a phase cost."""

    name: str
    items: int
    seconds: float
    cpu_s: dict[str, float]
    producer_cpu_s: float = 0.0

    def to_json(self) -> dict[str, object]:
        return {
            "phase": self.name,
            "items": self.items,
            "seconds": round(self.seconds, 1),
            "cpu_s": {part: round(each, 2) for part, each in self.cpu_s.items()},
            "cpu_ms_per_item": usage.per_item(self.cpu_s, self.items),
            "cpu_ms_per_item_total": round(1000 * sum(self.cpu_s.values()) / max(self.items, 1), 3),
            "producer_cpu_s": round(self.producer_cpu_s, 2),
        }


def row_count(retrieval: RetrievalClient) -> int:
    """Rows of all shards. Raises CallError when one does not answer."""
    return int(sum(status.numbers.get("rows", 0.0) for status in retrieval.status(10.0)))


def wait_for_rows(retrieval: RetrievalClient, wanted: int, patience_s: float) -> bool:
    """Whether so many rows are there before `patience_s` seconds bring no more."""
    best, until = -1, time.monotonic() + patience_s
    while time.monotonic() < until:
        there = row_count(retrieval)
        if there >= wanted:
            return True
        if there > best:
            best, until = there, time.monotonic() + patience_s
        time.sleep(LOOK_EVERY_S)
    return False
