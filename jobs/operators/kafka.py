"""Kafka's ends of a job: sources of raw bytes, sinks of (key bytes, value bytes).

The jobs run on Kafka's Java client; `settings.kafka.client` is written for librdkafka. Where the two name a property
alike (security.protocol, sasl.mechanism, …) it is passed on; the few that differ are translated below, and one that
has no counterpart is refused when the job is submitted, rather than ignored.
"""

from __future__ import annotations

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
)

from penstock.infra.settings import KafkaSettings, SettingsError
from penstock.schemas.topics import DEAD_LETTER_BYTES, Topic

BYTES = Types.PRIMITIVE_ARRAY(Types.BYTE())
KEY_AND_VALUE = Types.ROW([BYTES, BYTES])

_JAVA_NAMES = {
    "sasl.mechanisms": "sasl.mechanism",
    "ssl.ca.location": "ssl.truststore.location",
    "ssl.certificate.location": "ssl.keystore.location",
    "ssl.key.password": "ssl.key.password",
}
_PEM = {"ssl.ca.location": "ssl.truststore.type", "ssl.certificate.location": "ssl.keystore.type"}
_LIBRDKAFKA_ONLY = ("ssl.key.location", "ssl.ca.pem", "ssl.certificate.pem", "ssl.key.pem", "oauthbearer.config")
_LOGIN = {
    "PLAIN": "org.apache.kafka.common.security.plain.PlainLoginModule",
    "SCRAM-SHA-256": "org.apache.kafka.common.security.scram.ScramLoginModule",
    "SCRAM-SHA-512": "org.apache.kafka.common.security.scram.ScramLoginModule",
}


def java_properties(kafka: KafkaSettings) -> dict[str, str]:
    """`settings.kafka` as Kafka's Java client takes it. Raises SettingsError for what it cannot express."""
    given = kafka.properties()
    given.pop("bootstrap.servers")
    unfit = sorted(given.keys() & set(_LIBRDKAFKA_ONLY))
    if unfit:
        raise SettingsError(
            f"kafka.client: {', '.join(unfit)} exists only in librdkafka, and the jobs use Kafka's Java client: "
            "put certificate and key into one PEM file and name it in ssl.certificate.location"
        )
    user, password = given.pop("sasl.username", None), given.pop("sasl.password", None)
    out = {_JAVA_NAMES.get(name, name): value for name, value in given.items()}
    out |= {_PEM[name]: "PEM" for name in given if name in _PEM}
    if user is not None:
        mechanism = out.get("sasl.mechanism", "PLAIN")
        if mechanism not in _LOGIN:
            raise SettingsError(
                f"kafka.client: sasl.username with mechanism {mechanism}; expected one of {', '.join(_LOGIN)}"
            )
        out["sasl.jaas.config"] = (
            f'{_LOGIN[mechanism]} required username="{_quoted(user)}" password="{_quoted(password or "")}";'
        )
    return out


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def read(env: StreamExecutionEnvironment, topic: Topic, kafka: KafkaSettings, *, job: str, uid: str) -> DataStream:
    """The raw values of a topic, from the group's committed offsets or else from the beginning.

    Records keep their Kafka timestamp. There are no watermarks: nothing here waits on event time.
    """
    source = (
        KafkaSource.builder()
        .set_bootstrap_servers(kafka.bootstrap_servers)
        .set_topics(topic.name)
        .set_group_id(f"{kafka.group_prefix}-{job}")
        .set_starting_offsets(KafkaOffsetsInitializer.committed_offsets(KafkaOffsetResetStrategy.EARLIEST))
        .set_value_only_deserializer(ByteArraySchema())
        .set_properties({"fetch.max.wait.ms": "50", **java_properties(kafka)})
        .build()
    )
    stream = env.from_source(source, WatermarkStrategy.no_watermarks(), f"read {topic.name}", type_info=BYTES)
    return stream.name(f"read {topic.name}").uid(uid)


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
    properties = {"linger.ms": "0", "acks": "all", "max.request.size": str(DEAD_LETTER_BYTES), **java_properties(kafka)}
    for key, value in properties.items():
        builder.set_property(key, value)
    stream.sink_to(builder.build()).name(f"write {name}").uid(uid)
