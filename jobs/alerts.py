"""The alerts job: subscriptions become standing queries, and who is to be told of a posting is told once.

    alerts.subscription.v1 ── decode ──┬── read words ── keep newest ──> alerts.query.v1
                                       └───────────────┐
    index.update.v1 ── percolate ─────┐                ▼
                                      ├── person ── deliver ──> alerts.feed.v1
    rank.result.v1 ── take scores ────┘                └──> rank.request.v1
                          └──> *.dlq

A subscription is decoded and checked; its person knows it at once, the retrieval shards once its words were read. A
new or materially changed posting is put to all shards, and each person it matches weighs it: silenced, alerted, or
first scored by the ranker, where the subscription has a min_score. Nothing of that wait is kept in Flink: the rank
request carries all of it and the result brings it back.

Caps are counted in Redis when an alert leaves. Ids are made of content, so that a replay says the same again.

    flink run -d -pym penstock.jobs.alerts
"""

from __future__ import annotations

from collections.abc import Callable

from pyflink.common import Time, Types
from pyflink.datastream import AsyncDataStream, StreamExecutionEnvironment
from pyflink.datastream.connectors.kafka import KafkaOffsetsInitializer

from penstock.infra.settings import Settings
from penstock.jobs.operators.deliver import QUESTIONS, Deliver
from penstock.jobs.operators.environment import submit
from penstock.jobs.operators.identity import person_key
from penstock.jobs.operators.intake import DEAD_LETTERS, Intake
from penstock.jobs.operators.kafka import KEY_AND_VALUE, from_here, from_the_beginning, read, write
from penstock.jobs.operators.percolate import Percolate
from penstock.jobs.operators.scores import TakeScores
from penstock.jobs.operators.subscriptions import KeepSubscriptions, ReadWords, check_subscription
from penstock.schemas.topics import ALERTS, INDEX, RANK_REQUESTS, RANK_RESULTS, STANDING_QUERIES, SUBSCRIPTIONS, Topic

JOB = "alerts"
IN_FLIGHT = 256  # postings at the shards at once: more than a call takes, so that full batches form behind full batches
WORDS_IN_FLIGHT = 64  # subscriptions at the models role at once
NO_OPERATOR_TIMEOUT = Time.milliseconds(0)  # each keeps its own deadline: Flink's costs a thread a record

Start = Callable[[Topic], KafkaOffsetsInitializer]


def build(env: StreamExecutionEnvironment, settings: Settings, here: Start | None = None) -> None:
    """The topology, top to bottom. `here`: where a topic begins whose past is not alerted about (`from_here`)."""
    kafka = settings.kafka

    def present_end(topic: Topic) -> KafkaOffsetsInitializer:
        return from_here(topic, kafka, job=JOB)

    here = here or present_end

    subscriptions = (
        # They are this job's memory of who wants what: without a checkpoint all of them are read again.
        read(env, SUBSCRIPTIONS, kafka, job=JOB, uid="subscriptions-source", start=from_the_beginning())
        .process(Intake(SUBSCRIPTIONS, check_subscription, settings), output_type=Types.PICKLED_BYTE_ARRAY())
        .name("decode and check subscriptions")
        .uid("subscriptions-decode")
    )
    # In order: of two contents under one version, the one published first stands.
    queries = (
        AsyncDataStream.ordered_wait(
            subscriptions, ReadWords(settings), NO_OPERATOR_TIMEOUT, WORDS_IN_FLIGHT, Types.PICKLED_BYTE_ARRAY()
        )
        .name("read words")
        .uid("subscriptions-words")
        .key_by(lambda arrival: arrival.subscription.subscription_id, key_type=Types.STRING())
        .process(KeepSubscriptions(settings), output_type=KEY_AND_VALUE)
        .name("keep the newest, compile")
        .uid("subscriptions-keep")
    )

    matched = (
        AsyncDataStream.unordered_wait(
            read(env, INDEX, kafka, job=JOB, uid="index-source", start=here(INDEX)),
            Percolate(settings),
            NO_OPERATOR_TIMEOUT,
            IN_FLIGHT,
            Types.PICKLED_BYTE_ARRAY(),
        )
        .name("percolate")
        .uid("percolate")
    )
    scored = (
        read(env, RANK_RESULTS, kafka, job=JOB, uid="results-source", start=here(RANK_RESULTS))
        .process(TakeScores(settings), output_type=Types.PICKLED_BYTE_ARRAY())
        .name("take scores")
        .uid("results-decode")
    )
    alerts = (
        matched.union(scored)
        .key_by(lambda candidate: candidate[0], key_type=Types.STRING())
        .connect(
            subscriptions.key_by(
                lambda arrival: person_key(arrival.subscription.tenant, arrival.subscription.person_id),
                key_type=Types.STRING(),
            )
        )
        .process(Deliver(settings), output_type=KEY_AND_VALUE)
        .name("weigh, cap, deliver")
        .uid("deliver")
    )

    write(queries, STANDING_QUERIES.name, kafka, uid="queries-sink")
    write(alerts, ALERTS.name, kafka, uid="alerts-sink")
    write(alerts.get_side_output(QUESTIONS), RANK_REQUESTS.name, kafka, uid="requests-sink")
    refused = subscriptions.get_side_output(DEAD_LETTERS).union(queries.get_side_output(DEAD_LETTERS))
    write(refused, SUBSCRIPTIONS.dead_letters, kafka, uid="subscriptions-dead-letters-sink")
    write(scored.get_side_output(DEAD_LETTERS), RANK_RESULTS.dead_letters, kafka, uid="results-dead-letters-sink")


if __name__ == "__main__":
    submit(JOB, build)
