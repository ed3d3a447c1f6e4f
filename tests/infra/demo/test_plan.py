"""The plan: deterministic, complete in its trouble, and honest about what must be refused."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.infra.demo import sample
from penstock.infra.demo.accounting import Published, State, oracle
from penstock.infra.demo.plan import LATEST_EXPIRY_MS, Kind, as_given, plan
from penstock.schemas.errors import WireError
from penstock.schemas.events import Op, Posting
from penstock.schemas.validate import check_posting
from penstock.schemas.wire import codec

NOW = 1_763_700_000_000
LIFE = 365 * 86_400_000


@pytest.fixture(scope="module")
def postings():
    return sample.shipped_postings(NOW).postings


def planned(postings, **changes):
    given = {"seed": 1, "start_ms": NOW, "rate": 50.0, "count": 2_250, "max_life_ms": LIFE} | changes
    return plan(postings, **given)


def folded(events):
    return oracle(Published(e.posting_id, e.value, e.posting, e.refused) for e in events)


def test_the_same_seed_makes_the_same_plan_and_another_seed_another(postings):
    assert planned(postings) == planned(postings)
    assert planned(postings, seed=2) != planned(postings)


def test_every_kind_of_trouble_and_every_end_is_in_it(postings):
    events = planned(postings)
    assert len(events) == 2_250
    kinds = Counter(event.kind for event in events)
    assert min(kinds[kind] for kind in Kind) >= 10
    states = Counter(wanted.state for wanted in folded(events).expected(NOW + 60_000).values())
    assert min(states[state] for state in State) >= 10
    assert kinds[Kind.NEW] > len(events) / 2


@pytest.mark.parametrize("seed", range(3))
def test_what_is_said_to_be_refused_is_refused_at_that_stage_and_nothing_else(postings, seed):
    for event in planned(postings[:300], seed=seed, count=1_500):
        try:
            decoded, stage = codec(Posting).decode(event.value), None
            assert decoded == event.posting
            try:
                check_posting(decoded, now_ms=NOW, max_life_ms=LIFE)
            except WireError:
                stage = "validate"
        except WireError:
            stage = "decode"
            assert event.posting is None
        assert stage == event.refused, event.kind


def test_the_sample_is_labelled_by_how_it_was_made_and_the_rules_agree(postings):
    assert planned(postings, checked=False) == planned(postings)


def test_unchecked_postings_are_expected_to_be_accepted_whatever_the_rules_code_says():
    bad = Posting(posting_id="b", version=1, description="no title")
    assert as_given([bad], start_ms=NOW, max_life_ms=LIFE, checked=False)[0].refused is None


def test_poison_has_bytes_of_its_own(postings):
    poison = [event.value for event in planned(postings) if event.kind is Kind.POISON]
    assert len(set(poison)) == len(poison)


def test_older_versions_follow_newer_ones_and_lose(postings):
    events = planned(postings)
    newest: dict[str, int] = {}
    late = []
    for event in events:
        if event.refused is None and event.posting is not None:
            if event.kind is Kind.REORDERED and event.posting.version < newest[event.posting_id]:
                late.append(event)
            newest[event.posting_id] = max(newest.get(event.posting_id, -1), event.posting.version)
    assert len(late) >= 10
    expected = folded(events).expected(NOW)
    assert all(expected[event.posting_id].version > event.posting.version for event in late)


def test_short_expiries_fall_due_soon_after_the_last_event(postings):
    events = planned(postings)
    end = NOW + 45_000 + LATEST_EXPIRY_MS
    due = [e.posting.expires_at for e in events if e.kind is Kind.EXPIRING]
    assert due and max(due) <= end


def test_when_the_postings_run_out_updates_take_their_place(postings):
    events = planned(postings[:20], count=400)
    assert len(events) == 400
    assert Counter(event.kind for event in events)[Kind.UPDATE] > 200


@given(st.integers(0, 10_000), st.sampled_from([0.0, 10.0, 500.0]))
def test_a_plan_ends_every_id_in_one_state_whatever_its_seed(seed, rate):
    few = [Posting(posting_id=f"p{n}", version=1, title="T", description="D") for n in range(12)]
    events = plan(few, seed=seed, start_ms=NOW, rate=rate, count=120, max_life_ms=LIFE)
    expected = folded(events).expected(NOW + 3_600_000)
    assert len(events) == 120
    assert expected.keys() == {event.posting_id for event in events}


def test_a_users_postings_stay_as_they_are_and_broken_rules_are_foreseen():
    good = Posting(posting_id="a", version=5, title="T", description="D")
    bad = Posting(posting_id="b", version=1, description="no title")
    withdrawn = Posting(posting_id="c", version=1, op=Op.DELETE)
    events = as_given([good, bad, withdrawn], start_ms=NOW, max_life_ms=LIFE)
    assert [event.posting for event in events] == [good, bad, withdrawn]
    assert [event.refused for event in events] == [None, "validate", None]
    assert codec(Posting).decode(events[0].value) == good
