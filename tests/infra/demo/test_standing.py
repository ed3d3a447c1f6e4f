"""The demo's subscriptions: whole, valid, and showing what subscriptions can say."""

from penstock.infra.demo import sample
from penstock.infra.demo.standing import COUNT, removals, subscriptions
from penstock.schemas.events import Op
from penstock.schemas.topics import SUBSCRIPTIONS
from penstock.schemas.wire import codec


def shipped():
    postings = sample.shipped_postings(sample.REFERENCE_MS).postings
    return subscriptions(sample.shipped_queries(), postings, run_id="run", tenant="default")


def test_the_sample_makes_150_of_every_kind():
    made = shipped()
    assert len(made) == COUNT == len({one.subscription_id for one in made})
    assert len({one.person_id for one in made}) < COUNT, "some people have more than one"
    assert any(one.min_score is not None for one in made)
    assert any(one.max_per_day is not None for one in made)
    assert any(one.quiet_hours is not None for one in made)
    assert any(not one.text and one.filters is not None for one in made)
    assert any(one.text and one.filters is not None for one in made)
    assert made == shipped(), "the same every time"
    for one in made:
        assert codec(SUBSCRIPTIONS.record).decode(codec(SUBSCRIPTIONS.record).encode(one)) == one


def test_removals_end_each_of_them():
    made = shipped()
    ended = removals(made)
    assert [(one.subscription_id, one.version, one.op) for one in ended] == [
        (one.subscription_id, 2, Op.DELETE) for one in made
    ]
    assert all(ended[n].person_id == made[n].person_id for n in range(COUNT))


def test_other_tenants_queries_make_none():
    assert subscriptions([sample.query("a", "x", "small")], (), run_id="run", tenant="default") == ()
    assert len(subscriptions([sample.query("a", "x")], (), run_id="run", tenant="default", count=3)) == 3
