"""Kill any one process in the middle of the demo, run `penstock up`, and nothing is lost and nothing is wrong."""

import os
import subprocess
import time
from contextlib import suppress

import pytest
from demo_under_fault import PENSTOCK, survives
from system import eventually

from penstock.ranker.errors import RedisAway
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


def agreeing(system, store: FeatureStore, ids: list[str]) -> set[str]:
    """Which of these have the features of what the index holds, or are no longer in it."""
    features = dict(zip(ids, store.read(ids), strict=True))
    found = set()
    for start in range(0, len(ids), 500):
        for row in system.retrieval.get(GetRequest(posting_ids=tuple(ids[start : start + 500])), timeout=30).rows:
            held, update = features[row.posting_id], row.update
            if row.state is not RowState.LIVE or (
                held is not None and (held.version, held.revision) == (update.version, update.revision)
            ):
                found.add(row.posting_id)
    return found


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
    # The slow lane goes on refining what the demo published, so no one look finds all of them still: each has to agree
    # once after the fault. It adds no ids, so those are read once.
    lacking = {update.posting_id for update in system.read(INDEX)}
    assert lacking
    link = RedisLink(connect(system.settings.redis), time.monotonic)
    store = FeatureStore(link, system.settings.redis.prefix, system.settings.postings.tombstone_window_ms)

    def nothing_lacks():
        with suppress(RedisAway):  # the link asks again by itself
            lacking.difference_update(agreeing(system, store, sorted(lacking)))
        return not lacking

    eventually(nothing_lacks, "features of every row", timeout=240)
    link.close()
