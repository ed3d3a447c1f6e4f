"""Where a job's Python runs: in the TaskManager's JVM when set so, an async operator in a process all the same."""

import json
import subprocess
import sys

import pytest

SCRIPT = """
import json, sys
from penstock.infra.local.jars import connector_jars
from penstock.infra.settings import FlinkSettings, Settings
from penstock.jobs import postings
from penstock.jobs.operators.environment import job_environment

out = {}
for mode in ("process", "thread"):
    settings = Settings(flink=FlinkSettings(python=mode))
    env = job_environment(settings)
    env.add_jars(*[path.as_uri() for path in connector_jars()])
    postings.build(env, settings)
    out[mode] = {}
    for node in env._j_stream_execution_environment.getStreamGraph(False).getStreamNodes().toArray():
        if (uid := node.getTransformationUID()) in sys.argv[1:]:
            out[mode][uid] = node.getOperatorFactory().getStreamOperatorClass(None).getSimpleName()
print(json.dumps(out))
"""
OURS = ("postings-decode", "postings-enrich", "enriched-decode", "postings-keep")


@pytest.fixture(scope="module")
def operators() -> dict[str, dict[str, str]]:
    """Mode -> uid -> class, from one JVM: its start is most of the time."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *OURS], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize(("mode", "kind"), [("process", "External"), ("thread", "Embedded")])
def test_state_and_decoding_are_where_it_is_set_and_async_calls_in_a_process(operators, mode, kind):
    found = operators[mode]
    assert found["postings-keep"] == f"{kind}PythonKeyedCoProcessOperator"
    assert found["postings-decode"] == found["enriched-decode"] == f"{kind}PythonProcessOperator"
    assert found["postings-enrich"].startswith("External")
