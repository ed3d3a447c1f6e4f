"""The alerts' oracle: what must come, what may, and how a feed that differs is judged."""

from dataclasses import replace

import numpy as np
import pytest

from penstock.infra.demo.alert_accounting import account, examples, expected
from penstock.schemas import filters
from penstock.schemas.events import (
    Alert,
    Attributes,
    IndexOp,
    IndexUpdate,
    Match,
    Op,
    QueryVector,
    StandingQuery,
    Subscription,
    Vector,
)

DAY = 86_400_000


def vector(first, sketch=0):
    dense = np.array([first, 0.25], np.float32).view(np.uint32) >> 16
    return Vector(space_id="s", encoder_id="e", dense=dense.astype("<u2").tobytes(), sketch=bytes([sketch, 0]))


def update(posting_id="p", first=0.5, **changes):
    fields = {
        "posting_id": posting_id,
        "version": 1,
        "op": IndexOp.UPSERT,
        "attributes": Attributes(title="Nurse", company="Clinic"),
        "vector": vector(first),
        "produced_at": 1_000,
        "material_class": "m",
        "percolate": True,
    }
    return IndexUpdate(**(fields | changes))


def query(number=1, threshold=0.4, **changes):
    said = QueryVector(
        space_id="s",
        encoder_id="e",
        dense=np.array([1, 0], "<f4").tobytes(),
        lexical=np.array([0.125, 0], "<f4").tobytes(),
    )
    fields = {
        "subscription_id": f"s{number}",
        "version": 1,
        "op": Op.UPSERT,
        "person_id": f"n{number}",
        "vector": said,
        "threshold": threshold,
        "produced_at": 0,
    }
    return StandingQuery(**(fields | changes))


def subscription(number=1, **changes):
    return Subscription(subscription_id=f"s{number}", version=1, person_id=f"n{number}", text="nurse", **changes)


def alert(person="n1", posting_id="p", alert_id=None, subscription_id="s1", **changes):
    match = Match(
        subscription_id=subscription_id,
        version=1,
        person_id=person,
        match_score=0.5,
        dense=0.5,
        lexical=0.0,
        reason="r",
    )
    fields = {
        "alert_id": alert_id or f"{person}/{posting_id}",
        "person_id": person,
        "posting_id": posting_id,
        "version": 1,
        "material_class": "m",
        "matches": (match,),
        "attributes": Attributes(title="Nurse"),
        "produced_at": 1_000,
        "alerted_at": 1_200,
    }
    return Alert(**(fields | changes))


def judged(queries, updates, alerts, subscriptions=None, cap=100):
    subscriptions = [subscription()] if subscriptions is None else subscriptions
    return account(expected(queries, updates, subscriptions), alerts, subscriptions, max_per_day=cap)


def test_a_match_must_come_and_its_alert_settles_it():
    missing = judged([query()], [update()], [])
    assert (missing.expected, missing.lost, missing.wrong) == (1, 1, 0)
    assert "no alert on p for n1" in missing.details[0]
    there = judged([query()], [update()], [alert()])
    assert there.clean and there.sent == 1


@pytest.mark.parametrize(
    ("queries", "updates"),
    [
        ([query(threshold=0.6)], [update()]),
        ([query()], [update(percolate=False)]),
        ([query()], [update(op=IndexOp.DELETE, attributes=None, vector=None)]),
        ([query(op=Op.DELETE, version=2), query()], [update()]),
        ([query(tenant="other")], [update()]),
        ([query(filters=filters.is_in("company", "Elsewhere"))], [update()]),
        ([query()], [update(vector=None)]),
        ([query()], [update(vector=replace(vector(0.5), space_id="t"))]),
    ],
)
def test_what_nobody_subscribed_to_may_not_come(queries, updates):
    assert judged(queries, updates, []).clean
    verdict = judged(queries, updates, [alert()])
    assert verdict.wrong == 1 and "nothing that this person subscribed to" in verdict.details[0]


def test_both_planes_count_and_filters_alone_decide_without_words():
    assert judged([query(threshold=1.49)], [update(vector=vector(0.5, sketch=8))], []).lost == 1
    assert judged([query(threshold=1.51)], [update(vector=vector(0.5, sketch=8))], []).lost == 0
    by_filter = query(vector=None, filters=filters.is_in("company", "clinic"))
    assert judged([by_filter], [update(vector=None)], []).lost == 1


def test_on_the_threshold_both_answers_are_right():
    at = query(threshold=0.5)
    assert judged([at], [update()], []).clean and judged([at], [update()], [alert()]).clean


def test_what_the_ranker_or_an_expiry_may_take_need_not_come_and_may():
    for queries, updates in (([query(min_score=0.5)], [update()]), ([query()], [update(expires_at=5_000)])):
        assert judged(queries, updates, []).clean and judged(queries, updates, [alert()]).clean


def test_a_repeated_id_is_no_fault_and_a_second_id_is():
    assert judged([query()], [update()], [alert(), alert()]).clean
    assert judged([query()], [update()], [alert(), alert()]).repeats == 1
    assert judged([query()], [update()], [alert(), alert(alert_id="again")]).wrong == 1


def test_an_alert_on_what_has_expired_is_wrong():
    over = update(expires_at=1_100)
    assert judged([query()], [over], [alert(expires_at=1_100)]).wrong == 1
    assert judged([query()], [over], [alert(expires_at=1_100, alerted_at=1_099)]).clean


def test_a_person_gets_as_many_as_the_cap_whichever_they_are():
    updates = [update(f"p{n}") for n in range(5)]
    some = [alert(posting_id=f"p{n}") for n in (1, 3, 4)]
    assert judged([query()], updates, some, cap=3).clean
    assert judged([query()], updates, some[:2], cap=3).lost == 1
    assert judged([query()], updates, some, cap=4).lost == 1


def test_a_subscription_gets_no_more_a_day_than_it_asked_for():
    updates = [update(f"p{n}") for n in range(3)]
    people = [subscription(max_per_day=2)]
    three = [alert(posting_id=f"p{n}") for n in range(3)]
    assert judged([query()], updates, three, people).wrong == 1
    assert judged([query()], updates, three[:2], people).clean
    assert judged([query()], updates, [*three[:2], replace(three[2], alerted_at=DAY + 1)], people).clean


def test_other_peoples_alerts_are_not_judged():
    assert judged([query()], [update()], [alert(), alert(person="of an earlier run")]).clean


def test_examples_are_of_different_people_best_first():
    good, better = alert(), alert(person="n2", posting_id="q")
    better = replace(better, matches=(replace(better.matches[0], match_score=0.9),))
    shown = examples([good, alert(posting_id="r"), alert(person="n3", posting_id="q"), better])
    assert [one["person_id"] for one in shown] == ["n2", "n1"]
    assert shown[0]["reasons"] == ["r"] and shown[0]["after_ms"] == 200
