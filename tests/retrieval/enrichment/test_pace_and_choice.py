"""The decisions of the slow lane as functions of plain values: how fast, which requests, at what priority."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.retrieval.enrichment.choose import choose
from penstock.retrieval.enrichment.pace import TokenBucket
from penstock.retrieval.enrichment.priority import go_idle
from penstock.retrieval.enrichment.rate import Rate
from penstock.schemas.events import EnrichRequest, PostingText

NOW = 1_000


def request(posting_id="p", version=1, text="", expires_at=None):
    body = PostingText(title=text or f"v{version}", description="d")
    return EnrichRequest(posting_id=posting_id, version=version, text_hash=body.title, text=body, expires_at=expires_at)


@given(
    st.floats(0.01, 1_000),
    st.integers(1, 50),
    st.lists(st.floats(0.0, 5.0), max_size=40),
)
def test_no_more_is_spent_than_the_rate_and_the_burst_allow(rate, burst, pauses):
    now, spent = 100.0, 0
    bucket = TokenBucket(rate, burst, now)
    for pause in pauses:
        now += pause
        there = bucket.available(now)
        assert 0 <= there <= burst
        bucket.spend(there)
        spent += there
        assert spent <= burst + (now - 100.0) * rate + 1e-6


@given(st.floats(0.01, 1_000), st.integers(1, 50))
def test_after_the_wait_there_is_a_token(rate, burst):
    bucket = TokenBucket(rate, burst, 0.0)
    bucket.spend(burst)
    wait = bucket.wait_s(0.0)
    assert wait > 0
    assert bucket.available(wait / 2) == 0
    assert bucket.available(wait) == 1
    assert bucket.wait_s(wait) == 0.0


def test_without_a_rate_there_is_always_a_batch():
    bucket = TokenBucket(0.0, 8, 0.0)
    bucket.spend(8)
    assert bucket.available(0.0) == 8
    assert bucket.wait_s(0.0) == 0.0


def test_expired_and_superseded_requests_are_left_out():
    batch = [
        request("a", 1),
        request("b", 1, expires_at=NOW),
        request("a", 2),
        request("c", 1, expires_at=NOW + 1),
        request("c", 1, expires_at=NOW + 1),  # said twice: after a crash of the job
    ]
    choice = choose(batch, NOW)
    assert (choice.chosen, choice.expired, choice.superseded) == ((2, 4), (1,), (0, 3))


def test_one_version_with_two_texts_keeps_both():
    """Which of them stands is the postings job's to know."""
    assert choose([request("a", 1, "x"), request("a", 1, "y")], NOW).chosen == (0, 1)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 4), st.sampled_from([None, NOW, NOW + 1]))))
def test_every_position_has_one_fate_and_the_newest_living_one_is_never_dropped(drawn):
    batch = [request(name, version, expires_at=expires) for name, version, expires in drawn]
    choice = choose(batch, NOW)
    assert sorted((*choice.chosen, *choice.expired, *choice.superseded)) == list(range(len(batch)))
    for name in {each.posting_id for each in batch}:
        newest = max(each.version for each in batch if each.posting_id == name)
        alive = [
            each
            for each in batch
            if each.posting_id == name and each.version == newest and (each.expires_at or NOW + 1) > NOW
        ]
        chosen = [batch[at] for at in choice.chosen if batch[at].posting_id == name]
        assert [each.version for each in chosen] == ([newest] if alive else [])


def test_a_rate_is_of_the_last_while():
    rate = Rate(10.0)
    rate.add(30, 100.0)
    rate.add(20, 105.0)
    assert rate.per_s(105.0) == 5.0
    assert rate.per_s(112.0) == 2.0
    assert rate.per_s(200.0) == 0.0


def refuse(*_):
    raise PermissionError("not here")


@pytest.mark.parametrize(
    ("schedule", "nice", "reached", "because"),
    [
        (lambda: None, refuse, "SCHED_IDLE", ""),
        (refuse, lambda by: by, "nice 19", "not here"),
        (refuse, refuse, "normal", "nice: not here"),
    ],
)
def test_the_lowest_priority_that_the_machine_gives(schedule, nice, reached, because):
    got, why = go_idle(schedule, nice)
    assert got == reached
    assert because in why
    assert bool(why) == bool(because)
