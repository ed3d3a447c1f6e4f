"""Kill any one process in the middle of the demo, run `penstock up`, and nothing is lost and nothing is wrong."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from confluent_kafka import Consumer, KafkaException, TopicPartition
from system import eventually

from penstock.ranker.feature_store import FeatureStore
from penstock.ranker.redis_link import RedisLink, connect
from penstock.schemas.rpc import GetRequest, RowState
from penstock.schemas.topics import INDEX, POSTINGS

SECONDS = 8
RATE = 40
PATIENCE_S = "180"  # without progress: a crowded machine takes a minute or two to start three jobs anew
PENSTOCK = str(Path(sys.executable).parent / "penstock")
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


def published(system) -> int:
    """How many records the postings topic has ever had; -1 while the broker does not say."""
    consumer = Consumer(system.settings.kafka.properties() | {"group.id": "watch"})
    try:
        partitions = consumer.list_topics(POSTINGS.name, timeout=5).topics[POSTINGS.name].partitions
        return sum(consumer.get_watermark_offsets(TopicPartition(POSTINGS.name, p), timeout=5)[1] for p in partitions)
    except KafkaException:
        return -1
    finally:
        consumer.close()


def what_the_feature_store_lacks(system) -> list[str] | None:
    """Ids whose features are not those of the index; None while the ranker still reads."""
    status = system.ranker.status(timeout=5)
    if not status.ready or status.numbers["features_lag_offsets"] > 0:
        return None
    settings = system.settings
    link = RedisLink(connect(settings.redis), time.monotonic)
    store = FeatureStore(link, settings.redis.prefix, settings.postings.tombstone_window_ms)
    ids = sorted({update.posting_id for update in system.read(INDEX)})
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
    report, log = tmp_path / "report.json", tmp_path / "demo.log"
    before = published(system)
    with log.open("w") as out:
        demo = subprocess.Popen(
            [
                PENSTOCK,
                "demo",
                "--seconds",
                str(SECONDS),
                "--rate",
                str(RATE),
                "--report",
                str(report),
                "--patience",
                PATIENCE_S,
            ],
            env=environment,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        eventually(lambda: published(system) >= before + SECONDS * RATE // 3, "a third of the demo is published")
        assert demo.poll() is None, log.read_text()
        killed = machinery.pids(victim)
        machinery.kill(victim)
        up = subprocess.run([PENSTOCK, "up"], env=environment, capture_output=True, text=True, timeout=240, check=False)
        assert up.returncode == 0, up.stdout + up.stderr
        eventually(lambda: machinery.pids(victim), f"{victim} is back")
        assert not set(machinery.pids(victim)) & set(killed)
        code = demo.wait(400)
    finally:
        demo.kill()
        demo.wait()
    said = log.read_text()
    assert code == 0, said
    outcome = json.loads(report.read_text())
    assert (outcome["lost"], outcome["wrong"]) == (0, 0), said
    assert outcome["published"] >= SECONDS * RATE * 0.9
    for end in ("live", "deleted", "expired", "rejected", "dead_lettered"):
        assert outcome[end] > 0, f"{end}: the run had nothing of it to get wrong"
    alerts = outcome["alerts"]
    assert alerts["expected"] > 0, "there were alerts to lose"
    assert (alerts["lost"], alerts["wrong"]) == (0, 0), said
    assert outcome["queries"]["answered"] == outcome["queries"]["published"] > 0, "every query has its answer"
    # The slow lane goes on refining what the demo published, and each look must fall between two of its answers.
    lacks = eventually(
        lambda: ([],) if what_the_feature_store_lacks(system) == [] else None, "features of every row", timeout=240
    )
    assert lacks == ([],)
