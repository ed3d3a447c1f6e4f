"""The queries job: search queries in, rank requests out.

    search.query.v1 ── decode ── understand and embed ──> rank.request.v1
                          └──> search.query.v1.dlq

Stateless. A query that the models role could not read in time goes on with its words alone, and the ranker has it
read; it is never dropped, and its deadline tells the ranker when an answer is of no more use.

    flink run -d -pym penstock.jobs.queries
"""

from __future__ import annotations

from pyflink.common import Time, Types
from pyflink.datastream import AsyncDataStream, StreamExecutionEnvironment

from penstock.infra.settings import Settings
from penstock.jobs.operators.analyze import Analyze
from penstock.jobs.operators.environment import submit
from penstock.jobs.operators.intake import DEAD_LETTERS, Intake, check_query
from penstock.jobs.operators.kafka import KEY_AND_VALUE, read, write
from penstock.schemas.topics import QUERIES, RANK_REQUESTS

JOB = "queries"
IN_FLIGHT = 16  # queries at the models role at once: in a burst the source is held back, none gives up its vector
NO_OPERATOR_TIMEOUT = Time.milliseconds(0)  # Analyze keeps its own deadline: Flink's costs a thread a record


def build(env: StreamExecutionEnvironment, settings: Settings) -> None:
    """The topology, top to bottom."""
    decoded = (
        read(env, QUERIES, settings.kafka, job=JOB, uid="queries-source")
        .process(Intake(QUERIES, check_query, settings), output_type=Types.PICKLED_BYTE_ARRAY())
        .name("decode and check queries")
        .uid("queries-decode")
    )
    requests = (
        AsyncDataStream.unordered_wait(decoded, Analyze(settings), NO_OPERATOR_TIMEOUT, IN_FLIGHT, KEY_AND_VALUE)
        .name("understand and embed")
        .uid("queries-analyze")
    )

    write(requests, RANK_REQUESTS.name, settings.kafka, uid="requests-sink")
    write(decoded.get_side_output(DEAD_LETTERS), QUERIES.dead_letters, settings.kafka, uid="queries-dead-letters-sink")


if __name__ == "__main__":
    submit(JOB, build)
