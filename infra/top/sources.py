"""Where `penstock top` looks: Prometheus endpoints of the roles, Flink's REST interface, Kafka, processes.

Each source is asked on its own thread with its own time limit, and one that fails says so in `Reading.troubles`: the
others go on. Owned by one thread.
"""

from __future__ import annotations

import functools
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import psutil
from confluent_kafka import (
    Consumer,
    ConsumerGroupTopicPartitions,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]  # not in its __all__

from penstock.infra.local import processes
from penstock.infra.local.flink import FlinkUnreachable, Rest
from penstock.infra.settings import Settings
from penstock.infra.top.reading import Lag, Reading, Usage
from penstock.infra.top.samples import Samples, from_flink, from_text
from penstock.schemas import topics

T = TypeVar("T")

ROLES = ("models", "enrich", "retrieval", "ranker", "gateway")
JOBS = ("postings", "queries", "alerts")
TIMEOUT_S = 2.0
IDS_FOR_S = 10.0  # how long the names of a task's metrics are good
IDS_A_CALL = 60
OLDEST_S = 0.3  # for the oldest unread record of a consumer that is behind
QUIET: dict[str, Any] = {"log_level": 0, "socket.timeout.ms": 2_000, "reconnect.backoff.max.ms": 1_000}
_AWAY = (KafkaError._TRANSPORT, KafkaError._TIMED_OUT, KafkaError._ALL_BROKERS_DOWN)
_WANTED = (".pendingRecords", ".currentEmitEventTimeLag", ".numRecordsIn")


class Sources:
    """`close` it when done."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        # Loopback must not go through a proxy that the environment names.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._rest = Rest(settings.flink.rest, TIMEOUT_S)
        self._ids: dict[str, tuple[float, list[str]]] = {}
        properties = {**QUIET, **settings.kafka.properties()}
        self._admin = AdminClient(properties)
        self._reader = Consumer(
            {
                **properties,
                "group.id": f"{settings.kafka.group_prefix}-top",
                "enable.auto.commit": False,
                "fetch.max.bytes": 1 << 20,
                "queued.max.messages.kbytes": 1_024,
            }
        )
        self._pool = ThreadPoolExecutor(len(ROLES) + 3, thread_name_prefix="top")

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)  # nobody may hold the clients when they go
        self._reader.close()

    def look(self) -> Reading:
        """Everything, now. Never raises for what a source does wrong."""
        troubles: dict[str, str] = {}

        def asked(name: str, ask: Callable[[], T], nothing: T) -> Callable[[], T]:
            def run() -> T:
                try:
                    return ask()
                except Exception as error:  # whatever it is, its row says so and the others are shown
                    troubles[name] = _short(error)
                    return nothing

            return run

        roles = {role: self._pool.submit(asked(role, functools.partial(self._role, role), None)) for role in ROLES}
        no_jobs: dict[str, Samples] = {}
        no_log: tuple[dict[str, int], dict[tuple[str, str], Lag]] = ({}, {})
        no_usage: dict[str, Usage] = {}
        jobs = self._pool.submit(asked("jobmanager", functools.partial(self._jobs, troubles), no_jobs))
        log = self._pool.submit(asked("kafka", self._kafka, no_log))
        usage = self._pool.submit(asked("processes", self._usage, no_usage))
        metrics = {role: found for role, coming in roles.items() if (found := coming.result()) is not None}
        ends, lags = log.result()
        return Reading(
            at=time.monotonic(),
            metrics={**metrics, **jobs.result()},
            ends=ends,
            lags=lags,
            usage=usage.result(),
            troubles=troubles,
        )

    def _role(self, role: str) -> Samples | None:
        port: int = getattr(self._settings.metrics, role)
        if not port:
            raise ValueError(f"no endpoint: metrics.{role} is 0")
        with self._opener.open(f"http://{self._settings.metrics.host}:{port}/metrics", timeout=TIMEOUT_S) as reply:
            return from_text(reply.read().decode())

    # --- Flink ---------------------------------------------------------------------------------------------------

    def _jobs(self, troubles: dict[str, str]) -> dict[str, Samples]:
        newest: dict[str, dict[str, Any]] = {}
        for job in self._rest.get("/jobs/overview")["jobs"]:
            name = str(job["name"]).removeprefix("penstock ")
            if name in JOBS and job["start-time"] >= newest.get(name, job)["start-time"]:
                newest[name] = job
        for name in JOBS:
            if name not in newest:
                troubles[name] = "not submitted"
            elif newest[name]["state"] != "RUNNING":
                troubles[name] = str(newest[name]["state"]).lower()
        return {name: self._job(job["jid"]) for name, job in newest.items()}

    def _job(self, job_id: str) -> Samples:
        values: list[tuple[str, float]] = []
        for vertex in self._rest.get(f"/jobs/{job_id}")["vertices"]:
            path = f"/jobs/{job_id}/vertices/{vertex['id']}/subtasks/metrics"
            ids = self._metric_ids(path)
            for start in range(0, len(ids), IDS_A_CALL):
                wanted = ",".join(ids[start : start + IDS_A_CALL])
                found = self._rest.get(f"{path}?agg=sum&get={wanted}")
                values += [(str(each["id"]), float(each["sum"])) for each in found]
        return from_flink(values)

    def _metric_ids(self, path: str) -> list[str]:
        until, ids = self._ids.get(path, (0.0, []))
        if time.monotonic() >= until:
            every = [str(each["id"]) for each in self._rest.get(path)]
            ids = [name for name in every if ".penstock." in name or name.endswith(_WANTED)]
            self._ids[path] = (time.monotonic() + IDS_FOR_S, ids)
        return ids

    # --- Kafka ---------------------------------------------------------------------------------------------------

    def _kafka(self) -> tuple[dict[str, int], dict[tuple[str, str], Lag]]:
        metadata = self._admin.list_topics(timeout=TIMEOUT_S).topics
        names = [topic.name for topic in topics.TOPICS if topic.name in metadata]
        every = [TopicPartition(name, number) for name in names for number in metadata[name].partitions]
        newest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
        coming = self._admin.list_offsets(
            dict.fromkeys(every, newest),
            isolation_level=IsolationLevel.READ_UNCOMMITTED,
            request_timeout=TIMEOUT_S,
        )
        highs = {(at.topic, at.partition): future.result().offset for at, future in coming.items()}
        ends = {name: sum(end for (topic, _), end in highs.items() if topic == name) for name in names}
        lags = {}
        for group, topic in self._followed():
            if topic in ends and (lag := self._lag(group, topic, highs)) is not None:
                lags[group, topic] = lag
        return ends, lags

    def _followed(self) -> list[tuple[str, str]]:
        """(group, topic) of every consumer that commits."""
        settings = self._settings
        own = (
            ("postings", topics.POSTINGS),
            ("queries", topics.QUERIES),
            ("alerts", topics.INDEX),
            (settings.enrich.group, topics.ENRICH),
            (f"{settings.enrich.group}-heal", topics.ENRICH),
            (settings.ranker.group, topics.RANK_REQUESTS),
        )
        return [(f"{settings.kafka.group_prefix}-{group}", topic.name) for group, topic in own]

    def _lag(self, group: str, topic: str, highs: Mapping[tuple[str, int], int]) -> Lag | None:
        asked = ConsumerGroupTopicPartitions(group)
        coming = self._admin.list_consumer_group_offsets([asked], request_timeout=TIMEOUT_S)
        committed = {
            at.partition: at.offset for at in coming[group].result().topic_partitions or () if at.topic == topic
        }
        if not any(offset >= 0 for offset in committed.values()):
            return None  # nobody has ever read it as this group
        behind = {
            number: end - max(committed.get(number, 0), 0) for (name, number), end in highs.items() if name == topic
        }
        records = sum(max(0, each) for each in behind.values())
        if not records:
            return Lag(0, 0.0)
        furthest = max(behind, key=lambda number: behind[number])
        return Lag(records, self._age(TopicPartition(topic, furthest, max(committed.get(furthest, 0), 0))))

    def _age(self, place: TopicPartition) -> float | None:
        """Seconds since the record there was written; None when it does not come in time."""
        self._reader.assign([place])
        try:
            message = self._reader.poll(OLDEST_S)
        finally:
            self._reader.unassign()
        if message is None or message.error() is not None:
            return None
        return max(0.0, time.time() - message.timestamp()[1] / 1000)

    # --- this machine --------------------------------------------------------------------------------------------

    def _usage(self) -> dict[str, Usage]:
        root = self._settings.data_dir.resolve()
        out: dict[str, Usage] = {}
        if not (root / "run").is_dir():
            return out
        for process in processes.members(root):
            try:
                part = processes.part_of(process, root) or "supervisord"
                times, held = process.cpu_times(), out.get(part, Usage(0, 0.0))
                rss = held.rss_bytes + process.memory_info().rss
                out[part] = Usage(rss, held.cpu_seconds + times.user + times.system)
            except (psutil.Error, OSError):
                continue  # ended meanwhile
        return out


def _short(error: BaseException) -> str:
    """For a cell of a table."""
    if isinstance(error, urllib.error.URLError):
        reason = error.reason
        return str(reason.strerror or reason).lower() if isinstance(reason, OSError) else str(reason)
    if isinstance(error, KafkaException):
        cause = error.args[0]
        away = isinstance(cause, KafkaError) and cause.code() in _AWAY
        return "kafka does not answer" if away else str(error)
    if isinstance(error, FlinkUnreachable):
        return "flink does not answer"
    return str(error) or type(error).__name__
