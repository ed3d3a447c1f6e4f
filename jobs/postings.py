"""The postings job: posting events in, index updates out.

    jobs.posting.v1 ── decode ── enrich ──┐
                          │               keep ──> index.update.v1
    posting.enriched.v1 ─ decode ─────────┘ │ └──> posting.enrich.v1
                          └──> *.dlq <──────┘

A posting is decoded and checked, gets its vector and summary from the fast lane, and reaches the keyed operator that
alone writes index updates. Nothing between that operator and its sink may reorder, since the topic is compacted.

    flink run -d -pym penstock.jobs.postings
"""

from __future__ import annotations

from pyflink.common import Time, Types
from pyflink.datastream import AsyncDataStream, StreamExecutionEnvironment

from penstock.infra.settings import Settings
from penstock.jobs.operators.enrich import Enrich
from penstock.jobs.operators.environment import in_process, run_python_as_set, submit
from penstock.jobs.operators.intake import DEAD_LETTERS, Intake, check_enriched, check_posting
from penstock.jobs.operators.kafka import KEY_AND_VALUE, read, write
from penstock.jobs.operators.keep import ENRICH_REQUESTS, Keep
from penstock.schemas.topics import ENRICH, ENRICHED, INDEX, POSTINGS

JOB = "postings"
# Postings in the fast lane at once. In a burst the source is held back here, by no more than the models role does
# within its deadline: a longer line would only make postings give up their vectors.
IN_FLIGHT = 64
NO_OPERATOR_TIMEOUT = Time.milliseconds(0)  # Enrich keeps its own deadline: Flink's costs a thread a record


def build(env: StreamExecutionEnvironment, settings: Settings) -> None:
    """The topology, top to bottom."""
    kafka = settings.kafka
    run_python_as_set(env, settings)

    decoded = (
        read(env, POSTINGS, kafka, job=JOB, uid="postings-source")
        .process(Intake(POSTINGS, check_posting, settings), output_type=Types.PICKLED_BYTE_ARRAY())
        .name("decode and check postings")
        .uid("postings-decode")
    )
    # In order: of two contents under one version, the one published first stands, also when a crash has it replayed.
    # It costs nothing, since an async operator of PyFlink hands on nothing new before its bundle is done anyway.
    with in_process(env):
        enriched = (
            AsyncDataStream.ordered_wait(
                decoded, Enrich(settings), NO_OPERATOR_TIMEOUT, IN_FLIGHT, Types.PICKLED_BYTE_ARRAY()
            )
            .name("enrich, fast lane")
            .uid("postings-enrich")
        )
    answers = (
        read(env, ENRICHED, kafka, job=JOB, uid="enriched-source")
        .process(Intake(ENRICHED, check_enriched, settings), output_type=Types.PICKLED_BYTE_ARRAY())
        .name("decode and check answers of the slow lane")
        .uid("enriched-decode")
    )
    updates = (
        enriched.key_by(lambda arrival: arrival.posting.posting_id, key_type=Types.STRING())
        .connect(answers.key_by(lambda answer: answer.posting_id, key_type=Types.STRING()))
        .process(Keep(settings), output_type=KEY_AND_VALUE)
        .name("keep the newest, expire the old")
        .uid("postings-keep")
    )

    write(updates, INDEX.name, kafka, uid="index-sink")
    write(updates.get_side_output(ENRICH_REQUESTS), ENRICH.name, kafka, uid="enrich-sink")
    refused = decoded.get_side_output(DEAD_LETTERS).union(updates.get_side_output(DEAD_LETTERS))
    write(refused, POSTINGS.dead_letters, kafka, uid="postings-dead-letters-sink")
    write(answers.get_side_output(DEAD_LETTERS), ENRICHED.dead_letters, kafka, uid="enriched-dead-letters-sink")


if __name__ == "__main__":
    submit(JOB, build)
