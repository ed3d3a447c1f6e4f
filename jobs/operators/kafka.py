"""Kafka's ends of a job: sources of raw bytes, sinks of (key bytes, value bytes).

The jobs run on Kafka's Java client; `settings.kafka.client` is written for librdkafka. Names that both know and read
alike are passed on, the few that differ are translated, and whatever else is there is refused when the job is
submitted, rather than ignored. `settings.kafka.java` is for this client alone and has the last word.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from confluent_kafka import Consumer, KafkaException, TopicPartition
from pyflink.common import Row, Types
from pyflink.common.serialization import ByteArraySchema, RowFieldExtractorSchema
from pyflink.common.watermark_strategy import WatermarkStrategy
from pyflink.datastream import DataStream, StreamExecutionEnvironment
from pyflink.datastream.connectors import DeliveryGuarantee
from pyflink.datastream.connectors.kafka import (
    KafkaOffsetResetStrategy,
    KafkaOffsetsInitializer,
    KafkaRecordSerializationSchema,
    KafkaSink,
    KafkaSource,
    KafkaTopicPartition,
)

from penstock.infra.settings import KafkaSettings, SettingsError
from penstock.schemas.topics import DEAD_LETTER_BYTES, Topic

ASK_S = 10.0  # how long the broker may take to answer one question about where a topic ends
PATIENCE_S, ASK_AGAIN_S = 60.0, 0.2  # and how long it may have no answer yet
# A record waits this long for company. At a few hundred a second each alone would cost the broker more than everything
# else that it does, since every consumer of the topic fetches once for each.
LINGER_MS = "10"

BYTES = Types.PRIMITIVE_ARRAY(Types.BYTE())
KEY_AND_VALUE = Types.ROW([BYTES, BYTES])

# Known to librdkafka 2.x and to Kafka's Java clients 4.x, with the same values. Not here, though both know them:
# group.id, offsets, acks and transactions, which are the jobs' own; ssl.cipher.suites, whose values differ.
_SHARED = frozenset(
    {
        "batch.size",
        "check.crcs",
        "client.dns.lookup",
        "client.id",
        "client.rack",
        "compression.type",
        "connections.max.idle.ms",
        "delivery.timeout.ms",
        "enable.metrics.push",
        "fetch.max.bytes",
        "fetch.min.bytes",
        "linger.ms",
        "max.partition.fetch.bytes",
        "metadata.max.age.ms",
        "metadata.recovery.rebootstrap.trigger.ms",
        "metadata.recovery.strategy",
        "reconnect.backoff.max.ms",
        "reconnect.backoff.ms",
        "request.timeout.ms",
        "retries",
        "retry.backoff.max.ms",
        "retry.backoff.ms",
        "sasl.kerberos.service.name",
        "sasl.mechanism",
        "security.protocol",
        "socket.connection.setup.timeout.ms",
        "ssl.endpoint.identification.algorithm",
        "ssl.key.password",
        "ssl.keystore.location",
        "ssl.keystore.password",
    }
)
_JAVA_NAMES = {
    "sasl.mechanisms": "sasl.mechanism",
    "ssl.ca.location": "ssl.truststore.location",
    "ssl.certificate.location": "ssl.keystore.location",
}
_STORE_TYPES = {
    "ssl.ca.location": ("ssl.truststore.type", "PEM"),
    "ssl.certificate.location": ("ssl.keystore.type", "PEM"),
    "ssl.keystore.location": ("ssl.keystore.type", "PKCS12"),
}
_KEYSTORE, _TRUSTSTORE, _LOGIN_MODULE = "ssl.keystore.", "ssl.truststore.", "sasl.jaas.config"
# What `kafka.java` says in Java's own terms need not be translated: librdkafka's name -> how Java's begins.
_REPLACED_BY = {
    "ssl.ca.location": _TRUSTSTORE,
    "ssl.ca.pem": _TRUSTSTORE,
    "ssl.certificate.location": _KEYSTORE,
    "ssl.certificate.pem": _KEYSTORE,
    "ssl.key.location": _KEYSTORE,
    "ssl.key.pem": _KEYSTORE,
    "ssl.keystore.location": _KEYSTORE,
    "ssl.keystore.password": _KEYSTORE,
    "ssl.cipher.suites": "ssl.cipher.suites",
    "sasl.username": _LOGIN_MODULE,
    "sasl.password": _LOGIN_MODULE,
    "sasl.oauthbearer.config": _LOGIN_MODULE,
    "sasl.oauthbearer.method": _LOGIN_MODULE,
}
_OURS = frozenset(
    {
        "acks",
        "auto.offset.reset",
        "bootstrap.servers",
        "enable.auto.commit",
        "group.id",
        "isolation.level",
        "transactional.id",
    }
)
_LOGIN = {
    "PLAIN": "org.apache.kafka.common.security.plain.PlainLoginModule",
    "SCRAM-SHA-256": "org.apache.kafka.common.security.scram.ScramLoginModule",
    "SCRAM-SHA-512": "org.apache.kafka.common.security.scram.ScramLoginModule",
}


def java_properties(kafka: KafkaSettings) -> dict[str, str]:
    """`settings.kafka` as Kafka's Java client takes it. Raises SettingsError naming what it cannot express."""
    java = {name: value.get_secret_value() for name, value in kafka.java.items()}
    ours = sorted(java.keys() & _OURS)
    if ours:
        raise SettingsError(f"kafka.java: the jobs themselves set {', '.join(ours)}: leave that out")
    given = {
        name: value
        for name, value in kafka.properties().items()
        if name != "bootstrap.servers" and not _is_replaced(name, java)
    }
    user, password = given.pop("sasl.username", None), given.pop("sasl.password", None)
    unfit = sorted(given.keys() - _SHARED - _JAVA_NAMES.keys())
    if unfit:
        raise SettingsError(
            f"kafka.client or kafka.secrets: the jobs use Kafka's Java client, which has no {', '.join(unfit)} that "
            "librdkafka shares: leave that out where jobs are submitted. For a client certificate use a PKCS#12 file "
            "in ssl.keystore.location, which both take, or give Java its own ssl.keystore.* in kafka.java"
        )
    out: dict[str, str] = {}
    for name, value in given.items():
        out[_JAVA_NAMES.get(name, name)] = value
        if name in _STORE_TYPES:
            kind, store = _STORE_TYPES[name]
            out[kind] = store
    if out.get("ssl.endpoint.identification.algorithm") == "none":
        out["ssl.endpoint.identification.algorithm"] = ""  # as Java spells it
    if user is not None:
        mechanism = java.get("sasl.mechanism", out.get("sasl.mechanism", "PLAIN"))
        if mechanism not in _LOGIN:
            raise SettingsError(
                f"kafka.client: sasl.username with mechanism {mechanism}; expected one of {', '.join(_LOGIN)}, "
                "or sasl.jaas.config in kafka.java"
            )
        out["sasl.mechanism"] = mechanism
        out["sasl.jaas.config"] = (
            f'{_LOGIN[mechanism]} required username="{_quoted(user)}" password="{_quoted(password or "")}";'
        )
    return out | java


def _is_replaced(name: str, java: Mapping[str, str]) -> bool:
    """Whether `kafka.java` says the same in Java's own terms."""
    return name in _REPLACED_BY and any(key.startswith(_REPLACED_BY[name]) for key in java)


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def from_committed() -> KafkaOffsetsInitializer:
    """Where a job begins that has no checkpoint: at its group's committed offsets, else at the beginning."""
    return KafkaOffsetsInitializer.committed_offsets(KafkaOffsetResetStrategy.EARLIEST)


def from_the_beginning() -> KafkaOffsetsInitializer:
    """Likewise, for a compacted topic whose newest records are the job's state: all of it, whatever was committed."""
    return KafkaOffsetsInitializer.earliest()


def from_here(topic: Topic, kafka: KafkaSettings, *, job: str) -> KafkaOffsetsInitializer:
    """Likewise, for a topic whose past is not this job's affair: at the committed offsets, else at its present end.

    The end is looked up now, by whoever submits: a job that fails over before its first checkpoint begins again at the
    same records, where "latest" would have moved on past some. Partitions added later are read from their beginning.
    """
    consumer = Consumer(kafka.properties() | {"group.id": _group(kafka, job), "enable.auto.commit": False})
    give_up = time.monotonic() + PATIENCE_S
    try:
        while True:
            try:
                positions = _positions(consumer, topic)
                break
            except KafkaException as error:
                # A broker that has just begun has no coordinator for the group yet.
                if not error.args[0].retriable() or time.monotonic() > give_up:
                    raise SettingsError(
                        f"kafka.bootstrap_servers: {kafka.bootstrap_servers} does not say where {topic.name} ends "
                        f"({error}): submit from where the brokers are reachable"
                    ) from error
            time.sleep(ASK_AGAIN_S)
    finally:
        consumer.close()
    offsets = {KafkaTopicPartition(topic.name, partition): offset for partition, offset in positions.items()}
    return KafkaOffsetsInitializer.offsets(offsets, KafkaOffsetResetStrategy.EARLIEST)


def _positions(consumer: Consumer, topic: Topic) -> dict[int, int]:
    """Partition -> committed offset, or else its end. Raises KafkaException."""
    partitions = consumer.list_topics(topic.name, timeout=ASK_S).topics[topic.name].partitions
    asked = [TopicPartition(topic.name, number) for number in partitions]
    positions = {}
    for each in consumer.committed(asked, timeout=ASK_S) if asked else ():
        low, high = consumer.get_watermark_offsets(TopicPartition(topic.name, each.partition), timeout=ASK_S)
        positions[each.partition] = max(low, each.offset if each.offset >= 0 else high)
    return positions


def read(
    env: StreamExecutionEnvironment,
    topic: Topic,
    kafka: KafkaSettings,
    *,
    job: str,
    uid: str,
    start: KafkaOffsetsInitializer | None = None,
) -> DataStream:
    """The raw values of a topic, from `start` (or `from_committed`) unless the job comes with a checkpoint.

    Records keep their Kafka timestamp. There are no watermarks: nothing here waits on event time.
    """
    source = (
        KafkaSource.builder()
        .set_bootstrap_servers(kafka.bootstrap_servers)
        .set_topics(topic.name)
        .set_group_id(_group(kafka, job))
        .set_starting_offsets(start if start is not None else from_committed())
        .set_value_only_deserializer(ByteArraySchema())
        .set_properties(java_properties(kafka))
        .build()
    )
    stream = env.from_source(source, WatermarkStrategy.no_watermarks(), f"read {topic.name}", type_info=BYTES)
    return stream.name(f"read {topic.name}").uid(uid)


def _group(kafka: KafkaSettings, job: str) -> str:
    return f"{kafka.group_prefix}-{job}"


def keyed_bytes(key: str, value: bytes) -> Row:
    """A record for `write`."""
    return Row(key.encode("utf-8"), value)


def write(stream: DataStream, name: str, kafka: KafkaSettings, *, uid: str) -> None:
    """Send a stream of (key bytes, value bytes) to the topic called `name`, at least once, in order."""
    records = (
        KafkaRecordSerializationSchema.builder()
        .set_topic(name)
        .set_key_serialization_schema(RowFieldExtractorSchema(0))
        .set_value_serialization_schema(RowFieldExtractorSchema(1))
        .build()
    )
    builder = (
        KafkaSink.builder()
        .set_bootstrap_servers(kafka.bootstrap_servers)
        .set_record_serializer(records)
        .set_delivery_guarantee(DeliveryGuarantee.AT_LEAST_ONCE)
    )
    properties = {
        "linger.ms": LINGER_MS,
        "acks": "all",
        "max.request.size": str(DEAD_LETTER_BYTES),
        **java_properties(kafka),
    }
    for key, value in properties.items():
        builder.set_property(key, value)
    stream.sink_to(builder.build()).name(f"write {name}").uid(uid)
