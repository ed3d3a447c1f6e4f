"""Event topics are framed for the registry where there is one; dead letters never are."""

from registry_server import RegistryServer

from penstock.infra.kafka_clients import topic_codec as for_clients
from penstock.infra.settings import KafkaSettings
from penstock.schemas import topics
from penstock.schemas.events import DeadLetter, IndexOp, IndexUpdate
from penstock.schemas.framing import topic_codec
from penstock.schemas.wire import SINGLE_OBJECT_MARK, codec

LETTER = DeadLetter(
    topic="index.update.v1", raw=b"r", stage="index", error_class="MalformedRecord", message="m", failed_at=1
)


def test_without_a_registry_everything_is_single_object():
    assert topic_codec(topics.INDEX, {}) is codec(IndexUpdate)


def test_with_a_registry_events_carry_its_id_and_come_back():
    update = IndexUpdate(posting_id="p", version=1, op=IndexOp.DELETE, produced_at=1)
    with RegistryServer() as registry:
        data = topic_codec(topics.INDEX, registry.config).encode(update)
        assert data[:5] == b"\x00\x00\x00\x00\x01"
        assert topic_codec(topics.INDEX, registry.reader).decode(data) == update
        assert for_clients(KafkaSettings(schema_registry=registry.config), topics.INDEX).decode(data) == update


def test_dead_letters_are_single_object_even_where_a_registry_is_set_and_away():
    for topic in topics.TOPICS:
        data = topic_codec(topics.dead_letter_topic(topic), {"url": "http://127.0.0.1:1"}).encode(LETTER)
        assert data[:2] == SINGLE_OBJECT_MARK
        assert codec(DeadLetter).decode(data) == LETTER
