"""Which log a source says it reads. The broker's answers are played: librdkafka's mock broker describes no topic."""

from concurrent.futures import Future
from types import SimpleNamespace

import pytest
from confluent_kafka import KafkaError, KafkaException

from penstock.infra.settings import KafkaSettings
from penstock.schemas import kafka
from penstock.schemas.kafka import KafkaSource, Rebalance


class Broker:
    """What `AdminClient` would be told; `topic_id` None: nobody answers."""

    def __init__(self, topic_id):
        self.topic_id = topic_id
        self.asked = 0

    def describe_topics(self, topics, request_timeout):
        self.asked += 1
        answer = Future()
        if self.topic_id is None:
            answer.set_exception(KafkaException(KafkaError(KafkaError._TIMED_OUT)))
        else:
            answer.set_result(SimpleNamespace(topic_id=self.topic_id))
        return dict.fromkeys(topics.topic_names, answer)

    def list_topics(self, topic, timeout):
        return SimpleNamespace(cluster_id="cluster")


@pytest.fixture
def source_of(monkeypatch, free_port):
    """Makes a source whose broker answers as told."""
    made = []

    def make(broker):
        monkeypatch.setattr(kafka, "AdminClient", lambda properties: broker)
        settings = KafkaSettings(bootstrap_servers=f"127.0.0.1:{free_port()}")
        made.append(KafkaSource(settings, "t", "g", Rebalance(lambda places: None, lambda places: None)))
        return made[-1]

    yield make
    for source in made:
        source.close()


def test_a_topic_made_anew_is_another_log(source_of, monkeypatch):
    broker = Broker("first")
    source = source_of(broker)
    assert source.log_name() == source.log_name() == "cluster/first"
    assert broker.asked == 1
    monkeypatch.setattr(source, "_ask_at", 0.0)  # ASK_AGAIN_S later
    broker.topic_id = "second"
    assert source.log_name() == "cluster/second"


def test_a_broker_that_is_away_leaves_the_last_answer(source_of, monkeypatch):
    broker = Broker(None)
    source = source_of(broker)
    assert source.log_name() is None
    broker.topic_id = "first"
    assert source.log_name() == "cluster/first"
    broker.topic_id = None
    monkeypatch.setattr(source, "_ask_at", 0.0)
    assert source.log_name() == "cluster/first"
    assert broker.asked == 3
