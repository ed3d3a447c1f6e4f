"""Topics as schemas/topics.py promises them: created where they are missing, compared where they exist."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # re-exported without saying so
    AdminClient,
    ConfigResource,
    NewTopic,
    ResourceType,
)

from penstock.infra.settings import KafkaSettings
from penstock.schemas.topics import TOPICS, Topic, dead_letter_topic

TIMEOUT = 30.0  # seconds for one request to the broker


class TopicsError(Exception):
    """The broker refused: names the topic and why."""


@dataclass(frozen=True, slots=True)
class TopicsReport:
    """What was done and what is not as promised (which is the operator's to decide, never changed here)."""

    created: tuple[str, ...]
    differences: tuple[str, ...]


def all_topics() -> tuple[Topic, ...]:
    """Every topic, each followed by its dead letters."""
    return tuple(both for topic in TOPICS for both in (topic, dead_letter_topic(topic)))


def ensure_topics(
    kafka: KafkaSettings, *, timeout: float = TIMEOUT, clock: Callable[[], float] = time.monotonic
) -> TopicsReport:
    """Create what is missing and compare the rest. Harmless to repeat. Raises TopicsError."""
    admin = AdminClient({**kafka.properties(), "log_level": 0})
    wanted = {topic.name: topic for topic in all_topics()}
    deadline = clock() + timeout
    existing = _existing(admin, timeout)
    missing = [topic for name, topic in wanted.items() if name not in existing]
    created = _create(admin, missing, kafka.replication_factor, timeout) if missing else ()
    while missing_leader := [name for name in wanted if not _existing(admin, timeout).get(name)]:
        if clock() > deadline:
            raise TopicsError(f"no leader for {', '.join(missing_leader)} after {timeout:.0f} s")
    kept = {name: wanted[name] for name in wanted if name in existing}
    return TopicsReport(created, _differences(admin, kept, existing, timeout) if kept else ())


def missing_topics(kafka: KafkaSettings, timeout: float = 5.0) -> list[str]:
    """Names of topics that do not exist. Raises TopicsError when the broker does not answer."""
    existing = _existing(AdminClient({**kafka.properties(), "log_level": 0}), timeout)
    return [topic.name for topic in all_topics() if topic.name not in existing]


def compare(topic: Topic, partitions: int, config: Mapping[str, str]) -> list[str]:
    """How an existing topic differs from its promise, for people."""
    out = []
    if partitions != topic.partitions:
        out.append(f"{topic.name} has {partitions} partitions, {topic.partitions} are promised")
    for key, promised in topic.config().items():
        given = config.get(key)
        if given is not None and set(given.split(",")) != set(promised.split(",")):
            out.append(f"{topic.name} has {key}={given}, {promised} is promised")
    return out


def _existing(admin: AdminClient, timeout: float) -> dict[str, int]:
    """Topic -> number of partitions that have a leader."""
    try:
        metadata = admin.list_topics(timeout=timeout)
    except KafkaException as error:
        raise TopicsError(f"the broker does not answer: {error.args[0].str()}") from error
    return {
        name: sum(1 for partition in topic.partitions.values() if partition.leader >= 0)
        for name, topic in metadata.topics.items()
    }


def _create(admin: AdminClient, topics: list[Topic], replication: int, timeout: float) -> tuple[str, ...]:
    created = []
    new = [
        NewTopic(t.name, num_partitions=t.partitions, replication_factor=replication, config=t.config()) for t in topics
    ]
    for name, future in admin.create_topics(new, operation_timeout=timeout, request_timeout=timeout).items():
        try:
            future.result()
            created.append(name)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:  # another process was quicker
                raise TopicsError(f"cannot create topic {name}: {error.args[0].str()}") from error
    return tuple(created)


def _differences(
    admin: AdminClient, topics: Mapping[str, Topic], partitions: Mapping[str, int], timeout: float
) -> tuple[str, ...]:
    resources = [ConfigResource(ResourceType.TOPIC, name) for name in topics]
    out: list[str] = []
    for resource, future in admin.describe_configs(resources, request_timeout=timeout).items():
        try:
            config = {key: str(entry.value) for key, entry in future.result().items()}
        except KafkaException as error:
            raise TopicsError(f"cannot read topic {resource.name}: {error.args[0].str()}") from error
        out += compare(topics[resource.name], partitions[resource.name], config)
    return tuple(sorted(out))
