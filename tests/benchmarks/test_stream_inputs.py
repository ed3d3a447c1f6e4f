"""What the stream benchmark publishes: valid subscriptions, and the same events in the producer and in the judge."""

import subprocess
import sys
from pathlib import Path

from benchmarks.streaming.plan import Mix, Phase
from benchmarks.streaming.source import load
from benchmarks.streaming.subscriptions import subscriptions
from penstock.infra.demo import sample
from penstock.schemas.validate import check_subscription

ROOT = Path(__file__).resolve().parents[2]
EVENTS = """
import hashlib, sys
from pathlib import Path
from benchmarks.streaming.plan import Phase
from benchmarks.streaming.source import load
digest = hashlib.sha256()
for event in Phase.loads(sys.argv[1]).events(load(Path("nowhere"))):
    digest.update(event.value)
print(digest.hexdigest())
"""


def test_every_subscription_is_valid_and_of_every_kind():
    made = subscriptions(sample.shipped_postings(sample.REFERENCE_MS).postings, 500, "mark")
    assert len({one.subscription_id for one in made}) == 500
    for one in made:
        check_subscription(one)
    assert any(one.min_score is not None for one in made)
    assert any(not one.text for one in made) and any(one.text for one in made)


def test_the_producer_s_process_publishes_what_the_judge_expects():
    """The producer is another process that starts later: an event that had its clock in it would be judged wrong."""
    import hashlib

    phase = Phase("mark", Mix.MIXED, rate=200.0, count=300, start_ms=1_790_000_000_000, max_life_ms=90 * 86_400_000)
    digest = hashlib.sha256()
    for event in phase.events(load(Path("nowhere"))):
        digest.update(event.value)
    other = subprocess.run(
        [sys.executable, "-c", EVENTS, phase.dumps()], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    assert other.stdout.strip() == digest.hexdigest()
