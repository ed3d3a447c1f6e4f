"""Alerts on the whole system: subscribe, publish, be told once and with reasons; and when not."""

import json
import subprocess
import sys
import time

import pytest
from system import PATIENCE, eventually, posting

from penstock.schemas import topics
from penstock.schemas.events import (
    Alert,
    Cadence,
    Filter,
    FilterKind,
    Location,
    Op,
    QuietHours,
    Subscription,
    SubscriptionState,
)
from penstock.schemas.filters import is_in
from penstock.schemas.rpc import StandingRequest

WORDS = "veterinary nurse"


def subscription(subscription_id: str, person_id: str, version: int = 1, **changes) -> Subscription:
    fields = {"text": WORDS} | changes
    return Subscription(subscription_id=subscription_id, person_id=person_id, version=version, **fields)


def subscribed(system, *events: Subscription) -> None:
    """Publish, and wait until new postings meet them, or do so no more."""
    system.publish(topics.SUBSCRIPTIONS, *events)
    for event in events:
        wanted = event.op is Op.UPSERT and event.state is not SubscriptionState.PAUSED

        def settled(event=event, wanted=wanted) -> bool:
            reply = system.retrieval.standing(StandingRequest(subscription_ids=(event.subscription_id,)), timeout=5)
            return reply.versions == (event.version,) and reply.in_force == (wanted,)

        eventually(settled, f"{event.subscription_id} at version {event.version}, in force: {wanted}")


def alerts_of(system, *person_ids: str) -> list[Alert]:
    return [alert for alert in system.read(topics.ALERTS) if alert.person_id in person_ids]


def told(system, person_id: str, *posting_ids: str) -> dict[str, Alert]:
    """The person's alerts by posting, once these are among them."""

    def all_there() -> dict[str, Alert] | None:
        found = {alert.posting_id: alert for alert in alerts_of(system, person_id)}
        return found if set(posting_ids) <= found.keys() else None

    return eventually(all_there, f"{person_id} is told of {', '.join(posting_ids)}")


class Guard:
    """Somebody who is told of everything of a company: what came before it on the same way was decided before it."""

    def __init__(self, system) -> None:
        self.system = system

    def passes(self) -> None:
        """Everything published before this has had its alert by now, if it was to have one.

        Several postings for each partition, and a new person each time, whom no cap keeps from being told.
        """
        system, person, company = self.system, self.system.new_id("guard"), self.system.new_id("Guarded")
        subscribed(system, subscription(system.new_id("guard"), person, text="", filters=is_in("company", company)))
        made = [posting(system.new_id("g"), company=company) for _ in range(4 * topics.INDEX.partitions)]
        system.publish(topics.POSTINGS, *made)
        told(system, person, *(each.posting_id for each in made))


@pytest.fixture
def guard(system) -> Guard:
    return Guard(system)


@pytest.fixture
def person(system) -> str:
    return system.new_id("person")


@pytest.fixture
def company(system) -> str:
    return system.new_id("company")


def test_a_new_posting_is_alerted_once_with_its_reason(system, person, company):
    name = system.new_id("s")
    subscribed(system, subscription(name, person, filters=is_in("company", company)))
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    p = posting(system.new_id("p"), company=company, trace=trace, location=Location(city="Columbus", region="OH"))
    other = posting(system.new_id("p"), company=system.new_id("elsewhere"))
    system.publish(topics.POSTINGS, other, p)
    found = told(system, person, p.posting_id)
    assert found.keys() == {p.posting_id}
    alert = found[p.posting_id]
    [match] = alert.matches
    assert (match.subscription_id, match.version, match.person_id) == (name, 1, person)
    assert match.match_score == pytest.approx(match.dense + match.lexical)
    assert match.reason
    assert (alert.version, alert.attributes.title, alert.attributes.location) == (1, p.title, p.location)
    assert alert.alerted_at >= alert.produced_at > 0
    assert (alert.deliver_after, alert.degraded) == (None, ())
    assert alert.trace.split("-")[1] == trace.split("-")[1]
    assert len(alert.alert_id) == 32


def test_words_that_do_not_fit_are_not_alerted(system, guard, person):
    subscribed(system, subscription(system.new_id("s"), person, text="submarine periscope engineer"))
    system.publish(topics.POSTINGS, posting(system.new_id("p"), title="Florist", description="Ties wreaths of roses."))
    guard.passes()
    assert alerts_of(system, person) == []


def test_unsubscribed_and_paused_people_are_left_alone_and_a_resumed_one_is_not(system, guard, person, company):
    ours = is_in("company", company)
    gone, paused = system.new_id("gone"), system.new_id("paused")
    subscribed(system, subscription(gone, person, filters=ours), subscription(paused, person, filters=ours))
    subscribed(
        system,
        subscription(gone, person, 2, op=Op.DELETE, text=""),
        subscription(paused, person, 2, filters=ours, state=SubscriptionState.PAUSED),
    )
    system.publish(topics.POSTINGS, posting(system.new_id("p"), company=company))
    guard.passes()
    assert alerts_of(system, person) == []
    subscribed(system, subscription(paused, person, 3, filters=ours))
    p = posting(system.new_id("p"), company=company)
    system.publish(topics.POSTINGS, p)
    [match] = told(system, person, p.posting_id)[p.posting_id].matches
    assert (match.subscription_id, match.version) == (paused, 3)


def test_an_unsubscribe_is_effective_before_the_shards_have_heard_of_it(system, guard, person, company):
    """Snoozed stays percolated, so only the person's own state can keep the alert back."""
    name, ours = system.new_id("s"), is_in("company", company)
    later = int(time.time() * 1000) + 3_600_000
    snoozed = {"state": SubscriptionState.SNOOZED, "snoozed_until": later}
    subscribed(system, subscription(name, person, filters=ours, **snoozed))
    system.publish(topics.POSTINGS, posting(system.new_id("p"), company=company))
    guard.passes()
    assert alerts_of(system, person) == []


def test_several_subscriptions_of_a_person_make_one_alert(system, guard, person, company):
    ours = is_in("company", company)
    names = sorted(system.new_id("s") for _ in range(3))
    subscribed(system, *(subscription(name, person, filters=ours) for name in names))
    p = posting(system.new_id("p"), company=company)
    system.publish(topics.POSTINGS, p)
    alert = told(system, person, p.posting_id)[p.posting_id]
    assert sorted(match.subscription_id for match in alert.matches) == names
    guard.passes()
    assert len(alerts_of(system, person)) == 1


def test_caps_of_a_subscription_hold(system, guard, person, company):
    ours = is_in("company", company)
    subscribed(system, subscription(system.new_id("s"), person, filters=ours, max_per_day=2))
    system.publish(topics.POSTINGS, *(posting(system.new_id("p"), company=company) for _ in range(6)))
    guard.passes()
    assert len(alerts_of(system, person)) == 2


def test_a_repeat_and_a_trivial_change_are_silent_and_a_material_change_is_not(system, guard, person, company):
    ours = is_in("company", company)
    subscribed(system, subscription(system.new_id("s"), person, filters=ours))
    p = posting(system.new_id("p"), company=company)
    system.publish(topics.POSTINGS, p, p)
    told(system, person, p.posting_id)
    trivial = posting(p.posting_id, 2, company=company, url="https://example.org/a", title=p.title.upper())
    system.publish(topics.POSTINGS, trivial)
    guard.passes()
    assert len(alerts_of(system, person)) == 1
    material = posting(p.posting_id, 3, company=company, title="Head veterinary nurse")
    system.publish(topics.POSTINGS, material)
    eventually(lambda: len(alerts_of(system, person)) == 2, "a second alert")
    first, second = sorted(alerts_of(system, person), key=lambda alert: alert.version)
    assert (first.version, second.version) == (1, 3)
    assert first.alert_id != second.alert_id
    assert first.material_class != second.material_class


def test_what_has_expired_is_never_alerted(system, guard, person, company):
    subscribed(system, subscription(system.new_id("s"), person, filters=is_in("company", company)))
    now = int(time.time() * 1000)
    system.publish(topics.POSTINGS, posting(system.new_id("p"), company=company, expires_at=now - 1))
    guard.passes()
    assert alerts_of(system, person) == []


def test_rhythm_and_channel_go_with_the_alert(system, person, company):
    ours = is_in("company", company)
    event = subscription(
        system.new_id("s"),
        person,
        filters=ours,
        cadence=Cadence.DAILY,
        time_zone="Asia/Kathmandu",
        quiet_hours=QuietHours(start="22:00", end="07:00"),
        channel="mail",
        locale="ne",
    )
    subscribed(system, event)
    made = [posting(system.new_id("p"), company=company) for _ in range(2)]
    system.publish(topics.POSTINGS, *made)
    found = told(system, person, *(p.posting_id for p in made)).values()
    assert len({(alert.digest_id, alert.deliver_after) for alert in found}) == 1
    for alert in found:
        assert 0 < alert.deliver_after - alert.alerted_at <= 25 * 3_600_000
        assert (alert.channel, alert.locale) == ("mail", "ne")


def test_min_score_goes_through_the_ranker(system, guard, company):
    ours = is_in("company", company)
    easy, never, plain = (system.new_id(name) for name in ("easy", "never", "plain"))
    subscribed(
        system,
        subscription(system.new_id("s"), easy, filters=ours, min_score=0.0),
        subscription(system.new_id("s"), never, filters=ours, min_score=1.0),
        subscription(system.new_id("s"), plain, filters=ours),
    )
    p = posting(system.new_id("p"), company=company)
    system.publish(topics.POSTINGS, p)
    [match] = told(system, easy, p.posting_id)[p.posting_id].matches
    assert match.score is not None
    assert 0 < match.score < 1
    assert told(system, plain, p.posting_id)[p.posting_id].matches[0].score is None
    # The question about `never` was asked with the one about `easy`, on the same topic.
    asked = [r for r in system.read(topics.RANK_REQUESTS) if r.candidates == (p.posting_id,)]
    assert len(asked) == 2
    eventually(
        lambda: {r.request_id for r in asked} <= {r.request_id for r in system.read(topics.RANK_RESULTS)},
        "both answers",
    )
    guard.passes()
    assert alerts_of(system, never) == []


BAD = [
    ({"time_zone": "Mars/Olympus"}, "time_zone"),
    ({"text": ""}, "text"),
    ({"filters": Filter(kind=FilterKind.IN, field="colour", values=("red",))}, "filters.field"),
    ({"quiet_hours": QuietHours(start="25:00", end="07:00")}, "quiet_hours.start"),
    ({"min_score": 7.0}, "min_score"),
    ({"max_per_day": 0}, "max_per_day"),
    ({"state": SubscriptionState.SNOOZED}, "snoozed_until"),
]


def test_bad_subscriptions_are_dead_letters_that_say_what_to_do(system, person):
    names = {system.new_id("bad"): (change, field) for change, field in BAD}
    system.publish(topics.SUBSCRIPTIONS, *(subscription(name, person, **names[name][0]) for name in names))
    raw = b"\xc3\x01 not a subscription " + person.encode()
    system.publish_raw(topics.SUBSCRIPTIONS, [("k", raw)])
    kept, thief = system.new_id("kept"), system.new_id("thief")
    subscribed(system, subscription(kept, person))
    system.publish(topics.SUBSCRIPTIONS, subscription(kept, thief, 2), subscription(kept, person, text="another"))

    def all_refused():
        letters = system.dead_letters(topics.SUBSCRIPTIONS)
        ours = [x for x in letters if x.raw == raw or (x.key or b"").decode() in {*names, kept}]
        return ours if len(ours) == len(names) + 3 else None

    letters = eventually(all_refused, "every dead letter")
    for letter in letters:
        name = (letter.key or b"").decode()
        if name in names:
            assert letter.stage == "validate"
            assert letter.message.startswith(f"{names[name][1]}: got "), letter.message
            assert ", expected " in letter.message
    owned = [letter.message for letter in letters if (letter.key or b"").decode() == kept]
    assert any(message.startswith("person_id: ") for message in owned)
    assert any(message.startswith("version: ") for message in owned)
    reply = system.retrieval.standing(StandingRequest(subscription_ids=(kept, *names)), timeout=5)
    assert reply.versions == (1, *(-1 for _ in names))


# --- a reader of the feed, in a process of its own ---------------------------------------------------------------

READER = """
import json, sys
from confluent_kafka import Consumer
from penstock.schemas.topics import ALERTS
from penstock.schemas.wire import codec

kafka, stop_after, people = json.loads(sys.argv[1]), int(sys.argv[2]), set(sys.argv[3].split(","))
consumer = Consumer(kafka | {"auto.offset.reset": "earliest"})
consumer.subscribe([ALERTS.name])
kept, repeats, doubles = {}, 0, []
while len(kept) < stop_after:
    message = consumer.poll(0.2)
    if message is None or message.error() is not None:
        continue
    alert = codec(ALERTS.record).decode(message.value())
    if alert.person_id not in people:
        continue
    about = [alert.tenant, alert.person_id, alert.posting_id, alert.material_class]
    if alert.alert_id in kept:  # an id that is known is not counted again; it must say the same
        repeats += 1
        if kept[alert.alert_id] != about:
            doubles.append(about)
        continue
    if about in kept.values():
        doubles.append(about)
    kept[alert.alert_id] = about
    print(len(kept), flush=True)
consumer.close()
print(json.dumps({"alerts": sorted(kept.values()), "repeats": repeats, "doubles": doubles}), flush=True)
"""


@pytest.mark.timeout(420)
def test_a_reader_that_keeps_ids_sees_no_double_and_misses_none_across_a_killed_taskmanager(
    system, machinery, company, tmp_path
):
    ours = is_in("company", company)
    people = [system.new_id("reader") for _ in range(5)]
    events = [subscription(system.new_id("s"), person, filters=ours) for person in people]
    events += [subscription(system.new_id("scored"), people[0], filters=ours, min_score=0.0)]
    subscribed(system, *events)
    made = [posting(system.new_id("p"), company=company, title=f"Veterinary nurse {n}") for n in range(60)]
    expected = len(made) * len(people)
    output = tmp_path / "reader.out"
    kafka = system.settings.kafka.properties() | {"group.id": system.new_id("reader")}
    with output.open("w") as out:
        reader = subprocess.Popen(
            [sys.executable, "-c", READER, json.dumps(kafka), str(expected), ",".join(people)], stdout=out
        )
    try:
        system.publish(topics.POSTINGS, *made[:20])
        eventually(lambda: len(output.read_text().splitlines()) >= 20, "the first alerts")
        system.publish(topics.POSTINGS, *made[20:40])
        machinery.kill("taskmanager")
        machinery.heal()
        system.publish(topics.POSTINGS, *made[40:])
        eventually(lambda: reader.poll() is not None, "every alert is read", timeout=4 * PATIENCE)
    finally:
        reader.kill()
        reader.wait(10)
    verdict = json.loads(output.read_text().splitlines()[-1])
    assert verdict["doubles"] == []
    # All of them, and after a moment no other ones.
    assert len(verdict["alerts"]) == expected
    Guard(system).passes()
    ids = {alert.alert_id for alert in alerts_of(system, *people)}
    assert len(ids) == expected
