"""The jobs as Flink would run them: every operator named, with a uid of its own, and nothing that could reorder."""

import json
import subprocess
import sys

import pytest

SCRIPT = """
import json, sys
from pyflink.java_gateway import get_gateway
from penstock.infra.local.jars import connector_jars
from penstock.infra.settings import Settings
from penstock.jobs import alerts, postings, queries
from penstock.jobs.operators.environment import job_environment
from penstock.jobs.operators.kafka import from_committed

out = {}
for job in (alerts, postings, queries):
    settings = Settings()
    env = job_environment(settings)
    env.add_jars(*[path.as_uri() for path in connector_jars()])
    if job is alerts:  # its starting offsets come from a broker
        job.build(env, settings, here=lambda topic: from_committed())
    else:
        job.build(env, settings)
    graph = env._j_stream_execution_environment.getStreamGraph(False)
    nodes = []
    for node in graph.getStreamNodes().toArray():
        edges = [edge.getPartitioner().toString() for edge in node.getOutEdges().toArray()]
        nodes.append({"uid": node.getTransformationUID(), "name": node.getOperatorName(), "out": edges})
    out[job.JOB] = nodes
print(json.dumps(out))
"""


@pytest.fixture(scope="module")
def topologies() -> dict:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize("job", ["alerts", "postings", "queries"])
def test_every_operator_of_ours_has_a_uid_of_its_own(topologies, job):
    # What PyFlink adds by itself (routing of side outputs, key extraction) keeps no state and has no uid.
    uids = [node["uid"] for node in topologies[job] if node["uid"]]
    assert len(set(uids)) == len(uids)
    expected = {
        "alerts": {
            "subscriptions-source", "subscriptions-decode", "subscriptions-words", "subscriptions-keep",
            "index-source", "percolate", "results-source", "results-decode", "deliver", "queries-sink", "alerts-sink",
            "requests-sink", "subscriptions-dead-letters-sink", "results-dead-letters-sink",
        },
        "postings": {
            "postings-source", "postings-decode", "postings-enrich", "enriched-source", "enriched-decode",
            "postings-keep", "index-sink", "enrich-sink", "postings-dead-letters-sink", "enriched-dead-letters-sink",
        },
        "queries": {
            "queries-source", "queries-decode", "queries-analyze", "requests-sink", "queries-dead-letters-sink",
        },
    }[job]  # fmt: skip
    # A sink becomes several nodes with uids of their own behind the one it was given.
    assert expected <= set(uids) | {uid.removesuffix("-writer") for uid in uids}, uids


@pytest.mark.parametrize(("job", "writer"), [("postings", "postings-keep"), ("alerts", "subscriptions-keep")])
def test_nothing_reorders_behind_the_single_writer(topologies, job, writer):
    keep = next(node for node in topologies[job] if node["uid"] == writer)
    assert set(keep["out"]) == {"FORWARD"}
