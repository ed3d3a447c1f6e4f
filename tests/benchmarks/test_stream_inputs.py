"""What the stream benchmark publishes: every subscription is one that the alerts job takes."""

import importlib.util
from pathlib import Path

from penstock.infra.demo import sample
from penstock.schemas.validate import check_subscription

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "streaming" / "subscriptions.py"


def test_every_subscription_is_valid_and_of_every_kind():
    spec = importlib.util.spec_from_file_location("stream_subscriptions", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.subscriptions(sample.shipped_postings(sample.REFERENCE_MS).postings, 500, "mark")
    assert len({one.subscription_id for one in made}) == 500
    for one in made:
        check_subscription(one)
    assert any(one.min_score is not None for one in made)
    assert any(not one.text for one in made) and any(one.text for one in made)
