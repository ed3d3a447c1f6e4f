"""Kill any one process in the middle of the demo, run `penstock up`, and nothing is lost and nothing is wrong."""

import os
import subprocess
import time

import pytest
from demo_under_fault import PENSTOCK, survives
from system import eventually

from penstock.ranker.feature_store import FeatureStore
from penstock.ranker.redis_link import RedisLink, connect
from penstock.schemas.rpc import GetRequest, RowState
from penstock.schemas.topics import INDEX

# "workers" are the Python processes under the TaskManager; everything else is a part of the stack by name.
VICTIMS = [
    "models",
    "enrich",
    "retrieval",
    "ranker",
    "taskmanager",
    "workers",
    "jobmanager",
    "redis",
    "kafka",
    "supervisord",
]

pytestmark = pytest.mark.installation("embedded")


def what_the_feature_store_lacks(system, ids: list[str]) -> list[str] | None:
    """Which of these have features that are not those of the index; None while the ranker still reads."""
    status = system.ranker.status(timeout=5)
    if not status.ready or status.numbers["features_lag_offsets"] > 0:
        return None
    settings = system.settings
    link = RedisLink(connect(settings.redis), time.monotonic)
    store = FeatureStore(link, settings.redis.prefix, settings.postings.tombstone_window_ms)
    features = dict(zip(ids, store.read(ids), strict=True))
    link.close()
    rows = [row for n in range(0, len(ids), 500) for row in system.retrieval.get(
        GetRequest(posting_ids=tuple(ids[n : n + 500])), timeout=30).rows]  # fmt: skip
    assert len([row for row in rows if row.state is RowState.LIVE]) > 0
    wrong = []
    for row in rows:
        held = features[row.posting_id]
        key = (row.update.version, row.update.revision) if row.update is not None else None
        if row.state is RowState.LIVE and (held is None or (held.version, held.revision) != key):
            wrong.append(row.posting_id)
    return wrong


@pytest.mark.timeout(600)
@pytest.mark.parametrize("victim", VICTIMS)
def test_nothing_is_lost_and_nothing_is_wrong(victim, machinery, system, tmp_path):
    environment = {**os.environ, "PENSTOCK_DATA_DIR": str(machinery.stack.layout.root)}

    def killed_and_up_again():
        killed = machinery.pids(victim)
        machinery.kill(victim)
        up = subprocess.run([PENSTOCK, "up"], env=environment, capture_output=True, text=True, timeout=240, check=False)
        assert up.returncode == 0, up.stdout + up.stderr
        eventually(lambda: machinery.pids(victim), f"{victim} is back")
        assert not set(machinery.pids(victim)) & set(killed)

    survives(killed_and_up_again, system, environment, tmp_path)
    # The slow lane goes on refining what the demo published, and each look must fall between two of its answers: it
    # adds no ids, so those are read once.
    ids = sorted({update.posting_id for update in system.read(INDEX)})
    lacks = eventually(
        lambda: ([],) if what_the_feature_store_lacks(system, ids) == [] else None, "features of every row", timeout=240
    )
    assert lacks == ([],)
