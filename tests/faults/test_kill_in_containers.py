"""The broker and the TaskManager, killed in their containers in the middle of the demo: nothing lost, nothing wrong."""

import json
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

pytestmark = pytest.mark.installation("containers")


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


@pytest.mark.timeout(400)
@pytest.mark.parametrize("victim", ["taskmanager", "kafka"])
def test_nothing_is_lost_and_nothing_is_wrong(victim, machinery, system, tmp_path):
    report, log = tmp_path / "report.json", tmp_path / "demo.log"
    before = published(system)
    command = [PENSTOCK, "demo", "--on-configured", "--seconds", str(SECONDS), "--rate", str(RATE), "--report", report]
    with log.open("w") as out:
        demo = subprocess.Popen(command, env=machinery.environment(), stdout=out, stderr=subprocess.STDOUT)
    try:
        eventually(lambda: published(system) >= before + SECONDS * RATE // 3, "a third of the demo is published")
        assert demo.poll() is None, log.read_text()
        killed = machinery.lives(victim)
        machinery.kill(victim)
        assert machinery.lives(victim) == []
        machinery.heal()
        assert machinery.lives(victim) not in ([], killed)
        code = demo.wait(200)
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
    assert outcome["queries"]["answered"] == outcome["queries"]["published"] > 0, "every query has its answer"
