"""How subscriptions become standing queries, for any order of events, with the models role away or not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.infra.settings import Settings
from penstock.jobs.operators import subscription_state as state_machine
from penstock.jobs.operators.intake import MAX_QUERY_RECORD_BYTES, take
from penstock.jobs.operators.subscription_state import SubscriptionArrival, compiled, on_analysis, on_timer
from penstock.jobs.operators.subscriptions import check_subscription
from penstock.schemas import filters, validate
from penstock.schemas.events import FilterKind, Op, QueryVector, Subscription, SubscriptionState, Understood
from penstock.schemas.filters import is_in
from penstock.schemas.rpc import QueryAnalysis
from penstock.schemas.states import HeldSubscription
from penstock.schemas.topics import SUBSCRIPTIONS
from penstock.schemas.wire import codec

NOW, WINDOW, THRESHOLD = 1_000_000, 500_000, 0.45
VECTOR = QueryVector(space_id="s", encoder_id="e", dense=b"abcd")
READ = QueryAnalysis(vector=VECTOR)


def subscription(version=1, **changes) -> Subscription:
    fields = {"subscription_id": "s", "person_id": "p", "text": "nurse"} | changes
    return Subscription(version=version, **fields)


def arrival(event: Subscription, analysis=READ) -> SubscriptionArrival:
    analysis = analysis if state_machine.needs_words_read(event) else None
    return SubscriptionArrival(event, b"raw", NOW - 10, validate.event_hash(event), analysis)


def on(held, event, analysis=READ, now=NOW):
    out = state_machine.on_subscription(held, arrival(event, analysis), now, THRESHOLD, WINDOW)
    if out.state is not None:
        packed = codec(HeldSubscription)
        assert packed.decode_unbounded(packed.encode_unbounded(out.state)) == out.state
    return out


def test_words_become_a_vector_a_threshold_and_filters_beside_the_own():
    remote = Understood(label="remote", span="remote", filter=is_in("remote", "REMOTE"))
    ohio = Understood(label="in Ohio", span="Ohio", filter=is_in("location.region", "OH"), needs_values=True)
    no = Understood(label="no", span="no", filter=is_in("company", "x"), applied=False)
    event = subscription(filters=is_in("category", "c"), min_score=0.5, trace="t")
    query = on(None, event, QueryAnalysis(vector=VECTOR, understood=(remote, ohio, no))).query
    assert (query.op, query.vector, query.threshold, query.min_score) == (Op.UPSERT, VECTOR, 0.45, 0.5)
    assert query.filters == filters.all_of(is_in("category", "c"), remote.filter, ohio.filter)
    assert (query.text, query.person_id, query.produced_at, query.trace) == ("nurse", "p", NOW - 10, "t")


def test_without_words_filters_alone_decide_and_nobody_is_asked():
    query = on(None, subscription(text=" ", filters=is_in("category", "c")), None).query
    assert (query.op, query.vector, query.filters, query.threshold) == (Op.UPSERT, None, is_in("category", "c"), 0.0)


@pytest.mark.parametrize("change", [{"op": Op.DELETE}, {"state": SubscriptionState.PAUSED}])
def test_deleted_and_paused_ones_leave_without_anybody_s_help(change):
    held = on(None, subscription()).state
    query = on(held, subscription(2, **change), None).query
    assert (query.op, query.version, query.vector) == (Op.DELETE, 2, None)


def test_a_snoozed_one_stays_in_force():
    event = subscription(state=SubscriptionState.SNOOZED, snoozed_until=NOW + 5)
    assert on(None, event).query.op is Op.UPSERT


def test_while_the_models_role_is_away_it_is_kept_and_asked_for_again_with_growing_pauses():
    out = on(None, subscription(), None)
    assert (out.query, out.counted) == (None, ("words_not_read_yet",))
    pauses, held, now = [], out.state, NOW
    for _ in range(8):
        pauses.append(held.ask_at - now)
        assert not on_timer(held, held.ask_at - 1).ask
        now = held.ask_at
        assert on_timer(held, now).ask
        held = on_analysis(held, None, now, THRESHOLD).state
    assert pauses == [1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000]
    healed = on_analysis(held, READ, now, THRESHOLD)
    assert healed.query.vector == VECTOR
    assert not on_timer(healed.state, now + 10**9).ask


def test_an_unsubscribe_does_not_wait_for_words_and_ends_the_asking():
    held = on(None, subscription(), None).state
    gone = on(held, subscription(2, op=Op.DELETE), None)
    assert gone.query.op is Op.DELETE
    assert not on_timer(gone.state, held.ask_at).ask
    assert on_timer(gone.state, NOW + WINDOW).state is None


def test_a_repeat_brings_the_words_earlier():
    held = on(None, subscription(), None).state
    out = on(held, subscription())
    assert (out.query.vector, out.counted) == (VECTOR, ("repeat", "published"))
    assert on(out.state, subscription()).query is None


def test_words_that_cannot_be_read_are_refused_and_never_match_everything():
    held = on(None, subscription()).state
    out = on(held, subscription(2, text="!?", filters=is_in("category", "c")), QueryAnalysis())
    assert (out.query.op, out.query.version, out.refusal.field) == (Op.DELETE, 2, "text")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"version": 2, "tenant": "other"}, "tenant"),
        ({"version": 2, "person_id": "other"}, "person_id"),
        ({"version": 2, "person_id": "other", "op": Op.DELETE}, "person_id"),
        ({"version": 1, "text": "doctor"}, "version"),
    ],
)
def test_what_another_owns_or_contradicts_is_refused_and_the_first_stands(change, field):
    held = on(None, subscription()).state
    out = on(held, subscription(**change))
    assert (out.state, out.query, out.refusal.field) == (held, None, field)


def test_too_large_a_tree_is_the_own_alone():
    own = is_in("category", "c")
    for _ in range(filters.MAX_DEPTH - 1):
        own = filters.negate(own)
    filters.check(own)
    understood = (Understood(label="remote", span="remote", filter=is_in("remote", "REMOTE")),)
    assert compiled(own, understood) == own
    both = compiled(filters.all_of(is_in("category", "c"), is_in("company", "x")), understood)
    assert (both.kind, len(both.children)) == (FilterKind.ALL, 3)
    assert compiled(None, ()) is None


EVENTS = st.lists(
    st.tuples(
        st.integers(1, 5),
        st.sampled_from(["a", "b"]),
        st.sampled_from(["upsert", "delete", "paused", "timer"]),
        st.sampled_from([READ, None]),
    ),
    max_size=20,
)


@given(EVENTS)
def test_the_standing_query_is_in_the_end_that_of_the_highest_version(events):
    held, accepted, last, now = None, {}, None, NOW
    for version, text, kind, analysis in events:
        now += 1
        if kind == "timer":
            out = on_timer(held, now + 40_000)
            if out.ask:
                out = on_analysis(held, analysis, now + 40_000, THRESHOLD)
        else:
            changes = {"delete": {"op": Op.DELETE}, "paused": {"state": SubscriptionState.PAUSED}}.get(kind, {})
            event = subscription(version, text=text, **changes)
            out = on(held, event, analysis, now)
            if version > max(accepted, default=0):
                accepted[version] = event
        held = out.state
        if out.query is not None:
            assert last is None or out.query.version >= last.version
            last = out.query
    if not accepted:
        return
    newest = accepted[max(accepted)]
    if held.ask_at is not None:  # its words are still owed: the timer brings them
        last = on_analysis(held, READ, now, THRESHOLD).query
    assert last.version == newest.version
    in_force = newest.op is Op.UPSERT and newest.state is not SubscriptionState.PAUSED
    assert (last.op, last.text) == ((Op.UPSERT, newest.text) if in_force else (Op.DELETE, ""))


# --- the door ----------------------------------------------------------------------------------------------------


def taken(raw: bytes):
    return take(SUBSCRIPTIONS, codec(Subscription), check_subscription, raw, NOW, NOW, Settings())


def test_a_good_one_goes_on_and_a_bad_one_becomes_a_dead_letter_with_its_key():
    out, letter = taken(codec(Subscription).encode(subscription()))
    assert (out.subscription, out.produced_at, letter) == (subscription(), NOW, None)
    raw = codec(Subscription).encode(subscription(time_zone="Mars/Olympus"))
    out, letter = taken(raw)
    assert (out, letter.key, letter.raw, letter.stage) == (None, b"s", raw, "validate")
    assert "time_zone: got 'Mars/Olympus', expected an IANA time zone" in letter.message
    many = is_in("company", *(f"{number:0200}" for number in range(MAX_QUERY_RECORD_BYTES // 200)))
    out, letter = taken(codec(Subscription).encode(subscription(filters=many)))
    assert (out, letter.error_class) == (None, "OversizedRecord")
