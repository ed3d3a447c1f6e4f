"""What a person is told, for any order, repetition and interleaving of subscriptions, matches, scores and crashes."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.jobs.operators import alert_state
from penstock.jobs.operators.alert_state import EMPTY, MAX_NAMED, WAIT_MS, Ask, Drop, Rules, Send, Wait
from penstock.jobs.operators.ledger import Claim, Grant
from penstock.jobs.operators.scores import is_ours, scored
from penstock.schemas.events import (
    Alert,
    Attributes,
    Cadence,
    Match,
    Op,
    QuietHours,
    RankClass,
    RankedItem,
    RankResult,
    StandingQuery,
    Subscription,
    SubscriptionState,
)
from penstock.schemas.filters import is_in
from penstock.schemas.states import Candidate, PersonAlerts, Subject
from penstock.schemas.validate import MAX_ECHO_BYTES
from penstock.schemas.wire import codec

NOW = 1_795_260_000_000  # 2026-11-21T11:20Z
DAY = 86_400_000
RULES = Rules(
    max_per_day=3, dedupe_ms=90 * DAY, rank_deadline_ms=30_000, digest_deadline_ms=3_600_000, window_ms=8 * DAY
)


def subscription(name="s", version=1, **changes) -> Subscription:
    return Subscription(subscription_id=name, version=version, person_id="p", **({"text": "nurse"} | changes))


def subject(name="a", material="m", expires_at=NOW + DAY, **changes) -> Subject:
    fields = {"version": 1, "attributes": Attributes(title="Nurse"), "produced_at": NOW - 100} | changes
    return Subject(posting_id=name, material_class=material, expires_at=expires_at, **fields)


def match(name="s", version=1, score=None, match_score=0.7) -> Match:
    return Match(
        subscription_id=name,
        version=version,
        person_id="p",
        match_score=match_score,
        dense=0.7,
        lexical=0.0,
        score=score,
    )


def query(name="s", version=1, min_score=0.5) -> StandingQuery:
    return StandingQuery(
        subscription_id=name,
        version=version,
        op=Op.UPSERT,
        person_id="p",
        text="nurse",
        min_score=min_score,
        produced_at=NOW,
    )


def candidate(about: Subject, *matches: Match, queries=()) -> Candidate:
    packed = codec(Subject).encode_unbounded(about)
    return Candidate(person_id="p", subject=packed, matches=matches or (match(),), queries=tuple(queries))


class MemoryLedger:
    """The ledger's promise, in memory: what `tests/jobs/test_alert_ledger.py` holds the real one to."""

    def __init__(self):
        self.sets = {}

    def claim(self, claim: Claim) -> Grant:
        def room(owner, today, yesterday, cap):
            held = self.sets.setdefault((owner, today), set())
            before = self.sets.get((owner, yesterday), set())
            return claim.alert_id in held or claim.alert_id in before or len(held) < cap

        person = room("", claim.today, claim.yesterday, claim.cap)
        full = {
            each.subscription_id
            for each in claim.capped
            if not room(each.subscription_id, each.today, each.yesterday, each.cap)
        }
        if person and claim.uncapped + len(claim.capped) > len(full):
            self.sets[("", claim.today)].add(claim.alert_id)
            for each in claim.capped:
                if each.subscription_id not in full:
                    self.sets[(each.subscription_id, each.today)].add(claim.alert_id)
        return Grant(person=person, full=frozenset(full))


class Person:
    """The operator without Flink."""

    def __init__(self, ledger=None, state: PersonAlerts = EMPTY):
        self.state, self.ledger = state, ledger or MemoryLedger()
        self.now, self.counted, self.alerts, self.asked = NOW, [], [], []

    def subscribe(self, event: Subscription):
        self.state, counted = alert_state.on_subscription(self.state, event, self.now, RULES)
        self.counted += counted
        self.again()

    def again(self):
        self.state, waiting = alert_state.release(self.state)
        for each in waiting:
            self.take(each.candidate, each.until)

    def take(self, it: Candidate, until=None):
        about, full = codec(Subject).decode_unbounded(it.subject), frozenset()
        while True:
            verdict = alert_state.weigh(self.state, it, about, self.now, RULES, until=until, full=full)
            self.state, act = verdict.state, verdict.act
            self.counted += verdict.counted
            if isinstance(act, Wait):
                self.state = alert_state.keep_waiting(self.state, it, act.until)
            elif isinstance(act, Ask):
                self.asked.append(act.request)
            elif isinstance(act, Send):
                grant = self.ledger.claim(act.claim)
                self.state, alert, counted = alert_state.settle(self.state, act, grant, it, about, self.now, RULES)
                self.counted += counted
                if alert is not None:
                    self.alerts.append(alert)
                elif act.more and grant.person:
                    full |= grant.full
                    continue
            self.state = alert_state.tidy(self.state, self.now)
            # Whatever is kept must survive its packing.
            packed = codec(PersonAlerts)
            assert packed.decode_unbounded(packed.encode_unbounded(self.state)) == self.state
            return

    def answer(self, request, score=None, **changes):
        items = () if score is None else (RankedItem(posting_id="a", version=1, score=score, parts={}),)
        result = RankResult(
            request_id=request.request_id,
            class_=request.class_,
            items=items,
            echo=request.echo,
            timings={},
            **changes,
        )
        assert is_ours(result)
        returned = scored(codec(Candidate).decode(result.echo), result)
        if returned is not None:
            self.take(returned)


@pytest.fixture
def person() -> Person:
    person = Person()
    person.subscribe(subscription())
    return person


def test_a_match_becomes_an_alert_that_says_what_it_is_about(person):
    person.take(candidate(subject(trace="00-1-2-03")))
    [alert] = person.alerts
    assert alert.alert_id == alert_state.alert_id("default", "p", "a", "m")
    assert (alert.posting_id, alert.version, alert.material_class, alert.person_id) == ("a", 1, "m", "p")
    assert (alert.produced_at, alert.alerted_at, alert.expires_at) == (NOW - 100, NOW, NOW + DAY)
    assert (alert.attributes.title, alert.matches, alert.trace) == ("Nurse", (match(),), "00-1-2-03")
    assert (alert.deliver_after, alert.digest_id, alert.degraded) == (None, None, ())


def test_the_same_posting_is_told_once_and_again_only_when_something_material_changes(person):
    person.take(candidate(subject()))
    person.take(candidate(subject(version=2)))
    assert len(person.alerts) == 1
    assert person.counted.count("repeat") == 1
    person.take(candidate(subject(version=3, material="n")))
    assert len({alert.alert_id for alert in person.alerts}) == 2


def test_several_subscriptions_make_one_alert_best_first(person):
    person.subscribe(subscription("r"))
    person.take(candidate(subject(), match("r", match_score=0.5), match("s", match_score=0.9)))
    [alert] = person.alerts
    assert [m.subscription_id for m in alert.matches] == ["s", "r"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"op": Op.DELETE}, "unsubscribed"),
        ({"state": SubscriptionState.PAUSED}, "paused"),
        ({"state": SubscriptionState.SNOOZED, "snoozed_until": NOW + 1}, "snoozed"),
        ({"text": "doctor"}, "superseded"),
        ({"filters": is_in("company", "x")}, "superseded"),
        ({"min_score": 0.5}, "superseded"),
    ],
)
def test_a_subscription_that_has_changed_is_silent_and_says_why(person, change, reason):
    person.subscribe(subscription(version=2, **change))
    person.take(candidate(subject()))
    assert (person.alerts, person.counted[-1]) == ([], reason)


def test_a_change_of_cadence_does_not_void_matches_of_the_older_version(person):
    person.subscribe(subscription(version=2, cadence=Cadence.DAILY, channel="push", locale="de"))
    person.take(candidate(subject()))
    [alert] = person.alerts
    assert alert.deliver_after > NOW
    assert (alert.channel, alert.locale, len(alert.digest_id)) == ("push", "de", 32)


def test_a_snooze_ends_by_itself(person):
    person.subscribe(subscription(version=2, state=SubscriptionState.SNOOZED, snoozed_until=NOW + 1))
    person.now = NOW + 1
    person.take(candidate(subject(), match(version=2)))
    assert len(person.alerts) == 1


def test_older_and_repeated_subscription_events_change_nothing(person):
    person.subscribe(subscription(version=3, op=Op.DELETE))
    person.subscribe(subscription(version=2))
    person.subscribe(subscription(version=3, text="other"))
    person.take(candidate(subject(), match(version=3)))
    assert person.alerts == []


def test_an_expired_posting_is_never_told_not_even_when_the_ledger_took_its_time(person):
    person.take(candidate(subject(expires_at=NOW)))
    assert (person.alerts, person.counted[-1]) == ([], "expired")
    about = subject(expires_at=NOW + 5)
    verdict = alert_state.weigh(person.state, candidate(about), about, NOW, RULES)
    grant = Grant(person=True, full=frozenset())
    _, alert, counted = alert_state.settle(person.state, verdict.act, grant, candidate(about), about, NOW + 5, RULES)
    assert (alert, counted) == (None, ("expired",))


def test_of_two_rhythms_the_sooner_one_delivers(person):
    person.subscribe(subscription("r", cadence=Cadence.WEEKLY, channel="mail"))
    person.take(candidate(subject(), match("r", match_score=0.9), match("s", match_score=0.5)))
    assert (person.alerts[0].deliver_after, person.alerts[0].channel) == (None, None)
    person.subscribe(subscription("s", version=2, quiet_hours=QuietHours(start="00:00", end="23:59")))
    person.take(candidate(subject("b"), match("r", match_score=0.9), match("s", match_score=0.5)))
    assert NOW < person.alerts[1].deliver_after < NOW + DAY
    assert person.alerts[1].digest_id is None


# --- a subscription that is not known yet ------------------------------------------------------------------------


def test_a_match_waits_for_its_subscription_and_for_a_version_that_is_ahead():
    person = Person()
    person.take(candidate(subject()))
    assert (person.alerts, len(person.state.waiting)) == ([], 1)
    person.subscribe(subscription())
    assert len(person.alerts) == 1
    person.take(candidate(subject("b"), match(version=2)))
    assert len(person.state.waiting) == 1
    person.subscribe(subscription(version=2, op=Op.DELETE))
    assert (len(person.alerts), person.state.waiting, person.counted[-1]) == (1, (), "unsubscribed")


def test_the_wait_ends():
    person = Person()
    person.take(candidate(subject()))
    person.now = NOW + WAIT_MS - 1
    person.again()
    assert len(person.state.waiting) == 1
    person.now = NOW + WAIT_MS
    person.again()
    assert (person.alerts, person.state.waiting, person.counted[-1]) == ([], (), "unsubscribed")


def test_what_does_not_fit_the_waiting_room_is_decided_at_once():
    person = Person()
    for number in range(alert_state.MAX_WAITING + 1):
        person.take(candidate(subject(str(number))))
    assert len(person.state.waiting) == alert_state.MAX_WAITING
    assert person.counted == ["unsubscribed"]


# --- scores ------------------------------------------------------------------------------------------------------


@pytest.fixture
def choosy() -> Person:
    person = Person()
    person.subscribe(subscription(min_score=0.5))
    return person


def test_a_min_score_asks_the_ranker_and_the_echo_brings_all_of_it_back(choosy):
    choosy.take(candidate(subject(), queries=[query()]))
    [request] = choosy.asked
    assert (request.class_, request.candidates, request.deadline) == (RankClass.ALERT, ("a",), NOW + 30_000)
    assert (request.min_version.posting_id, request.min_version.version) == ("a", 1)
    assert (request.query.text, request.query.filters, request.tenant) == ("nurse", None, "default")
    choosy.take(candidate(subject(), queries=[query()]))
    assert choosy.asked[1] == request  # a replay asks the same under the same id
    choosy.answer(request, 0.5)
    [alert] = choosy.alerts
    assert (alert.matches[0].score, alert.degraded) == (0.5, ())
    choosy.answer(request, 0.5)
    assert (len(choosy.alerts), choosy.counted[-1]) == (1, "repeat")


HOUR = 3_600_000


@pytest.mark.parametrize(
    ("rhythms", "in_ms"),
    [
        ([{"cadence": Cadence.INSTANT}], 30_000),
        ([{"cadence": Cadence.HOURLY, "digest_at": "00:50"}], 29 * 60_000 + 30_000),  # it is 11:20
        ([{"cadence": Cadence.HOURLY, "digest_at": "00:21"}], 30_000),
        ([{"cadence": Cadence.DAILY, "digest_at": "18:00"}], HOUR),
        ([{"cadence": Cadence.INSTANT, "quiet_hours": QuietHours(start="11:00", end="12:00")}], 39 * 60_000 + 30_000),
        ([{"cadence": Cadence.DAILY, "digest_at": "18:00"}, {"cadence": Cadence.INSTANT}], 30_000),
    ],
)
def test_a_score_for_a_digest_has_time_until_the_digest(rhythms, in_ms):
    person, names = Person(), [f"s{n}" for n in range(len(rhythms))]
    for name, rhythm in zip(names, rhythms, strict=True):
        person.subscribe(subscription(name, min_score=0.5, time_zone="UTC", **rhythm))
    person.take(candidate(subject(), *map(match, names), queries=[query(name) for name in names]))
    [request] = person.asked
    assert request.deadline == NOW + in_ms


def test_below_min_score_nothing_is_told(choosy):
    choosy.take(candidate(subject(), queries=[query()]))
    choosy.answer(choosy.asked[0], 0.49)
    assert (choosy.alerts, choosy.counted[-1]) == ([], "below_min_score")


def test_an_error_or_no_score_is_told_all_the_same_and_named(choosy):
    choosy.take(candidate(subject(), queries=[query()]))
    choosy.answer(choosy.asked[0], error="DeadlinePassed: too late")
    assert choosy.alerts[0].degraded == ("rank: s: DeadlinePassed: too late",)
    assert choosy.alerts[0].matches[0].score is None
    choosy.take(candidate(subject("b"), queries=[query()]))
    choosy.answer(choosy.asked[1], degraded=("min_version timed out",))
    assert choosy.alerts[1].degraded == ("rank: s: min_version timed out",)
    choosy.take(candidate(subject("c")))
    assert "did not come" in choosy.alerts[2].degraded[0]
    assert choosy.counted.count("unscored") == 3


def test_a_posting_that_is_gone_when_the_score_comes_is_not_told(choosy):
    choosy.take(candidate(subject(), queries=[query()]))
    choosy.answer(choosy.asked[0])
    assert choosy.alerts == []
    choosy.take(candidate(subject(), queries=[query()]))
    choosy.now = NOW + DAY
    choosy.answer(choosy.asked[1], 0.9)
    assert (choosy.alerts, choosy.counted[-1]) == ([], "expired")


def test_an_unsubscribe_while_the_ranker_works_is_in_time(choosy):
    choosy.take(candidate(subject(), queries=[query()]))
    choosy.subscribe(subscription(version=2, op=Op.DELETE))
    choosy.answer(choosy.asked[0], 0.9)
    assert (choosy.alerts, choosy.counted[-1]) == ([], "unsubscribed")


def test_several_that_want_scores_are_asked_one_after_another_and_make_one_alert(choosy):
    choosy.subscribe(subscription("r", min_score=0.1))
    choosy.subscribe(subscription("q", min_score=0.9))
    queries = [query("q", min_score=0.9), query("r", min_score=0.1), query("s")]
    choosy.take(candidate(subject(), match("q"), match("r"), match("s"), queries=queries))
    for score in (0.8, 0.2, 0.6):
        choosy.answer(choosy.asked[-1], score)
    [alert] = choosy.alerts
    assert [(m.subscription_id, m.score) for m in alert.matches] == [("s", 0.6), ("r", 0.2)]
    assert len(choosy.asked) == 3
    assert choosy.counted.count("below_min_score") == 1


def test_with_one_that_needs_no_score_nobody_is_asked(choosy):
    choosy.subscribe(subscription("r"))
    choosy.take(candidate(subject(), match("r"), match("s"), queries=[query()]))
    assert ([m.subscription_id for m in choosy.alerts[0].matches], choosy.asked) == (["r"], [])


def test_unless_that_one_is_over_its_cap(choosy):
    choosy.subscribe(subscription("r", max_per_day=1))
    choosy.take(candidate(subject("first"), match("r")))
    choosy.take(candidate(subject(), match("r"), match("s"), queries=[query()]))
    assert (len(choosy.alerts), len(choosy.asked)) == (1, 1)
    choosy.answer(choosy.asked[0], 0.9)
    assert [m.subscription_id for m in choosy.alerts[1].matches] == ["s"]


def test_what_does_not_fit_an_echo_is_told_without_a_score(choosy):
    large = subject(attributes=Attributes(title="Nurse", url="x" * MAX_ECHO_BYTES))
    choosy.take(candidate(large, queries=[query()]))
    assert choosy.asked == []
    assert "not asked" in choosy.alerts[0].degraded[0]


def test_somebody_with_thousands_of_subscriptions_gets_an_alert_that_fits_its_topic():
    person, names = Person(), [f"{number:04}" + "s" * 200 for number in range(2_000)]
    for name in names:
        known, _ = alert_state.on_subscription(EMPTY, subscription(name, min_score=0.5), NOW, RULES)
        person.state = replace(person.state, subscriptions=(*person.state.subscriptions, *known.subscriptions))
    matches = [replace(match(name), reason="r" * 300) for name in names]
    person.take(candidate(subject(), *matches, queries=[query(name) for name in names]))
    assert person.asked == []  # nobody's question fits with so many matches
    [alert] = person.alerts
    codec(Alert).encode(alert)
    assert len(alert.matches) == MAX_NAMED
    assert any("1900 more" in note for note in alert.degraded)
    assert "matches_unnamed" in person.counted


def test_of_many_questions_the_first_is_asked_that_fits_with_those_behind_it(choosy):
    names = [f"s{number:02}" for number in range(40)]
    for name in names:
        choosy.subscribe(subscription(name, min_score=0.5))
    large = [replace(query(name), text="x" * 4_000) for name in names]
    choosy.take(candidate(subject(), *(match(name) for name in names), queries=large))
    [request] = choosy.asked
    echo = codec(Candidate).decode_unbounded(request.echo)
    at = names.index(echo.asked)
    assert len(request.echo) <= MAX_ECHO_BYTES
    assert [each.subscription_id for each in echo.queries] == names[at + 1 :]
    assert [note.split(": ")[1] for note in echo.degraded] == names[:at]
    one_more = replace(echo, queries=(large[at], *echo.queries), degraded=echo.degraded[:-1])
    assert len(codec(Candidate).encode_unbounded(one_more)) > MAX_ECHO_BYTES


# --- caps, forgetting --------------------------------------------------------------------------------------------


def test_caps_of_person_and_subscription(person):
    person.subscribe(subscription("r", max_per_day=1))
    for name in "abcde":
        person.take(candidate(subject(name), match("r"), match("s")))
    assert [[m.subscription_id for m in alert.matches] for alert in person.alerts] == [["r", "s"], ["s"], ["s"]]
    assert person.counted.count("over_cap") == 2


def test_a_full_day_asks_the_ledger_only_about_what_may_be_a_replay(person):
    for name in "abcd":
        person.take(candidate(subject(name)))
    assert len(person.alerts) == 3
    about = subject("later", produced_at=NOW + 1)
    assert isinstance(alert_state.weigh(person.state, candidate(about), about, NOW + 2, RULES).act, Drop)
    about = subject("replayed", produced_at=NOW - 1)
    assert isinstance(alert_state.weigh(person.state, candidate(about), about, NOW + 2, RULES).act, Send)
    about = subject("tomorrow", produced_at=NOW + DAY, expires_at=None)
    assert isinstance(alert_state.weigh(person.state, candidate(about), about, NOW + DAY, RULES).act, Send)


def test_alerts_are_remembered_until_their_posting_expires_and_the_deleted_for_a_window(person):
    person.take(candidate(subject(expires_at=NOW + 2 * DAY)))
    person.take(candidate(subject("b", expires_at=None)))
    person.subscribe(subscription(version=2, op=Op.DELETE))
    assert len(person.state.sent) == 24
    later = alert_state.tidy(person.state, NOW + 3 * DAY)
    assert (len(later.sent), len(later.subscriptions)) == (12, 1)
    assert later.prune_at == NOW + 4 * DAY
    last = alert_state.tidy(later, NOW + 91 * DAY)
    assert alert_state.is_empty(last)
    assert last.prune_at is None


# --- any interleaving --------------------------------------------------------------------------------------------

EVENTS = st.one_of(
    st.tuples(st.just("subscribe"), st.sampled_from("rs"), st.integers(1, 6), st.sampled_from([None, 1, 2])),
    st.tuples(st.just("unsubscribe"), st.sampled_from("rs"), st.integers(1, 6), st.none()),
    st.tuples(st.just("match"), st.sampled_from("abcdef"), st.integers(1, 6), st.sampled_from(["r", "s", "rs"])),
)


@given(st.lists(EVENTS, max_size=25), st.integers(0, 25), st.integers(0, 25))
def test_any_interleaving_and_any_crash_keeps_the_promises(events, checkpoint, crash):
    """A crash takes the state back to the checkpoint; ledger and feed keep what they have. The rest is read again."""
    checkpoint, crash = sorted((min(checkpoint, len(events)), min(crash, len(events))))
    person = Person()
    held = person.state
    order = list(range(crash)) + list(range(checkpoint, len(events)))
    for place, number in enumerate(order):
        if place == checkpoint:
            held = person.state
        if place == crash:
            person = Person(person.ledger, held if crash > checkpoint else person.state)
        kind, name, version, more = events[number]
        if kind == "subscribe":
            person.subscribe(subscription(name, version, max_per_day=more))
        elif kind == "unsubscribe":
            person.subscribe(subscription(name, version, op=Op.DELETE))
        else:
            before = len(person.alerts)
            known = {each.subscription_id: each for each in person.state.subscriptions}
            person.take(candidate(subject(name), *(match(each, version) for each in more)))
            for alert in person.alerts[before:]:
                for told in alert.matches:
                    assert known[told.subscription_id].op is Op.UPSERT
                    assert told.version >= known[told.subscription_id].matches_from
        ids = [alert.alert_id for alert in person.alerts]
        assert len(set(ids)) == len(ids)  # within one life of the state
        assert all(
            alert.alert_id == alert_state.alert_id("default", "p", alert.posting_id, "m") for alert in person.alerts
        )
        assert all(len(held_ids) <= 3 for (owner, _), held_ids in person.ledger.sets.items() if owner == "")


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=10, unique=True), st.integers(0, 10), st.randoms())
def test_a_replay_in_another_order_sends_no_other_alerts(names, split, random):
    first = Person()
    first.subscribe(subscription())
    state = first.state
    for name in names[:split]:
        first.take(candidate(subject(name)))
    again = list(names)
    random.shuffle(again)
    second = Person(first.ledger, state)
    for name in again:
        second.take(candidate(subject(name)))
    seen = {alert.posting_id for alert in first.alerts}
    replayed = {alert.posting_id for alert in second.alerts}
    assert seen <= replayed
    assert len(replayed) == min(RULES.max_per_day, len(names))


def test_names_of_people_never_run_together():
    ids = {alert_state.alert_id(*parts) for parts in [("t", "p", "a", "m"), ("tp", "", "a", "m"), ("t", "pa", "", "m")]}
    assert len(ids) == 3
