"""Kill any one process in the middle of the demo, run `penstock up`, and nothing is lost and nothing is wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from confluent_kafka import Consumer, KafkaException, TopicPartition
from system import eventually

from penstock.schemas.topics import POSTINGS

SECONDS = 8
RATE = 40
PENSTOCK = str(Path(sys.executable).parent / "penstock")


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


@pytest.mark.timeout(240)
@pytest.mark.parametrize("part", ["models", "retrieval", "ranker", "taskmanager", "jobmanager", "redis", "kafka"])
def test_nothing_is_lost_and_nothing_is_wrong(part, machinery, system, tmp_path):
    environment = {**os.environ, "PENSTOCK_DATA_DIR": str(machinery.stack.layout.root)}
    report, log = tmp_path / "report.json", tmp_path / "demo.log"
    before = published(system)
    with log.open("w") as out:
        demo = subprocess.Popen(
            [PENSTOCK, "demo", "--seconds", str(SECONDS), "--rate", str(RATE), "--report", str(report)],
            env=environment,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        eventually(lambda: published(system) >= before + SECONDS * RATE // 3, "a third of the demo is published")
        assert demo.poll() is None, log.read_text()
        killed = machinery.pid(part)
        machinery.kill(part)
        up = subprocess.run([PENSTOCK, "up"], env=environment, capture_output=True, text=True, timeout=150, check=False)
        assert up.returncode == 0, up.stdout + up.stderr
        assert machinery.pid(part) != killed
        code = demo.wait(150)
    finally:
        demo.kill()
        demo.wait()
    said = log.read_text()
    assert code == 0, said
    outcome = json.loads(report.read_text())
    assert (outcome["lost"], outcome["wrong"]) == (0, 0), said
    assert outcome["published"] >= SECONDS * RATE * 0.9
    ends = sum(outcome[end] for end in ("live", "deleted", "expired", "rejected"))
    assert ends > 0
    assert outcome["dead_lettered"] > 0
