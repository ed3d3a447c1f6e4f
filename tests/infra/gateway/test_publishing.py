"""Postings and subscriptions over HTTP: checked at the door, kept apart by tenant, confirmed by the broker."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import httpx
import pytest
from gateway_world import NOW

from penstock.infra.gateway.errors import away
from penstock.schemas import jsonl
from penstock.schemas.events import Op, Posting, Subscription
from penstock.schemas.rpc import RowState

GOOD = {"posting_id": "a/b c", "version": 3, "title": "Nurse", "description": "Care for patients."}
SUB = {"subscription_id": "s1", "version": 5, "person_id": "ann", "text": "remote nurse"}


def test_a_posting_is_accepted_once_the_broker_has_it(world):
    w = world()
    answer = w.http.post("/v1/postings", json=GOOD)
    assert answer.status_code == 202
    assert answer.json() == {"id": "a/b c", "version": 3, "topic": "jobs.posting.v1", "partition": 0, "offset": 0}
    [(topic, sent)] = w.broker.sent
    expected = jsonl.from_json(Posting, {**GOOD, "trace": answer.headers["traceparent"]})
    assert (topic, sent) == ("jobs.posting.v1", expected)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"title": None}, "title"),
        ({"version": -1}, "version"),
        ({"version": None}, "version"),
        ({"posting_id": "x" * 300}, "posting_id"),
        ({"sallary": 1}, "sallary"),
        ({"salary": {"min": "much"}}, "salary.min"),
        ({"expires_at": NOW + 366 * 86_400_000}, "expires_at"),
        ({"tenant": "other"}, "tenant"),
    ],
)
def test_a_wrong_posting_is_told_by_field_and_not_published(world, change, field):
    w = world()
    answer = w.http.post("/v1/postings", json={**GOOD, **change})
    assert answer.status_code == 422 and answer.json()["error"]["field"] == field
    assert w.broker.sent == []


def test_a_broker_that_is_away_is_503(world):
    w = world()
    w.broker.trouble = away("the broker did not take it")
    answer = w.http.post("/v1/postings", json=GOOD)
    assert answer.status_code == 503 and answer.headers["retry-after"] == "1"


def test_a_posting_is_withdrawn_by_a_version(world):
    w = world()
    assert w.http.delete("/v1/postings/a%2Fb%20c?version=4").status_code == 202
    [(_, sent)] = w.broker.sent
    assert (sent.posting_id, sent.version, sent.op) == ("a/b c", 4, Op.DELETE)
    missing = w.http.delete("/v1/postings/a")
    assert missing.status_code == 422 and missing.json()["error"]["field"] == "version"


def test_a_posting_is_shown_to_its_tenant(world):
    w = world()
    w.retrieval.add("theirs", tenant="acme", title="Secret")
    w.retrieval.add("old", state=RowState.EXPIRED)
    assert w.http.get("/v1/postings/p1").json()["posting"]["title"] == "Night nurse"
    assert w.http.get("/v1/postings/theirs", headers={"x-tenant": "acme"}).json()["state"] == "LIVE"
    expired = w.http.get("/v1/postings/old").json()
    assert expired["state"] == "EXPIRED" and "posting" not in expired
    for name in ("theirs", "nobody"):
        answer = w.http.get(f"/v1/postings/{name}")
        assert answer.status_code == 404 and answer.json()["error"]["given"] == name
    w.retrieval.trouble = grpc.StatusCode.UNAVAILABLE
    assert w.http.get("/v1/postings/p1").status_code == 503


# --- subscriptions -----------------------------------------------------------------------------------------------


def test_a_subscription_is_published_listed_changed_and_ended(world):
    w = world()
    assert w.http.post("/v1/subscriptions", json=SUB).status_code == 202
    assert w.http.get("/v1/subscriptions/s1").json() == {
        "subscription": jsonl.to_json(w.broker.sent[0][1]),
        "in_force": False,
    }
    w.retrieval.in_force["s1"] = 5
    assert w.http.get("/v1/subscriptions/s1").json()["in_force"] is True
    put = w.http.put("/v1/subscriptions/s1", json={"person_id": "ann", "text": "remote nurse in Ohio"})
    assert put.status_code == 202 and put.json()["version"] == NOW
    changed = w.http.get("/v1/subscriptions", params={"person_id": "ann"}).json()["subscriptions"]
    assert [(one["subscription"]["text"], one["in_force"]) for one in changed] == [("remote nurse in Ohio", False)]
    ended = w.http.delete("/v1/subscriptions/s1")
    assert ended.status_code == 202 and ended.json()["version"] == NOW + 1  # newer than the newest
    assert w.http.get("/v1/subscriptions/s1").status_code == 404
    assert w.http.delete("/v1/subscriptions/s1").status_code == 404
    assert w.http.get("/v1/subscriptions").json() == {"subscriptions": []}
    assert [record.op for _, record in w.broker.sent] == [Op.UPSERT, Op.UPSERT, Op.DELETE]


def test_an_id_and_a_version_are_made_where_none_is_given(world):
    w = world()
    made = w.http.post("/v1/subscriptions", json={"person_id": "ann", "text": "nurse"}).json()
    assert made["id"].startswith("sub-") and made["version"] == NOW
    assert w.http.get(f"/v1/subscriptions/{made['id']}").status_code == 200


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"person_id": None}, "person_id"),
        ({"text": ""}, "text"),
        ({"time_zone": "Mars/Olympus"}, "time_zone"),
        ({"filters": {"kind": "IN", "field": "remote", "values": ["SOMETIMES"]}}, "remote"),
        ({"op": "DELETE"}, "op"),
        ({"version": 2**63}, "version"),
        ({"subscription_id": 7}, "subscription_id"),
        ({"quiet_hours": {"start": "25:00", "end": "07:00"}}, "quiet_hours.start"),
    ],
)
def test_a_wrong_subscription_is_told_by_field_and_not_published(world, change, field):
    w = world()
    answer = w.http.post("/v1/subscriptions", json={**SUB, **change})
    assert answer.status_code == 422, answer.text
    assert answer.json()["error"]["field"] == field
    assert w.broker.sent == []


def test_what_would_change_nothing_is_refused(world):
    w = world()
    w.http.post("/v1/subscriptions", json=SUB)
    again = w.http.post("/v1/subscriptions", json=SUB)
    assert again.status_code == 422 and again.json()["error"]["field"] == "version"
    other = w.http.put("/v1/subscriptions/s2", json=SUB)
    assert other.status_code == 422 and other.json()["error"]["field"] == "subscription_id"
    stale = w.http.delete("/v1/subscriptions/s1?version=5")
    assert stale.status_code == 422 and stale.json()["error"]["field"] == "version"
    assert len(w.broker.sent) == 1


def test_a_subscription_stays_its_persons(world):
    w = world()
    w.http.post("/v1/subscriptions", json=SUB)
    taken = w.http.put("/v1/subscriptions/s1", json={"person_id": "bob", "text": "nurse"})
    assert taken.status_code == 422 and taken.json()["error"]["field"] == "person_id"
    assert "'ann'" in taken.json()["error"]["expected"]
    assert len(w.broker.sent) == 1


def test_symbols_nobody_knows_are_counted_in_subscriptions_too(world):
    w = world()
    assert w.http.post("/v1/subscriptions", json={**SUB, "cadence": "FORTNIGHTLY"}).status_code in (202, 422)
    assert 'penstock_unknown_symbols_total{field="cadence"}' in w.http.get("/metrics").text


def test_callers_who_wait_for_a_version_do_not_make_others_wait(world):
    w = world()
    held, let_go = threading.Semaphore(0), threading.Event()
    get = w.retrieval.get

    def slow(request, timeout):
        if request.min_version is not None:
            held.release()
            let_go.wait(20)
        return get(request, timeout)

    w.retrieval.get = slow
    waiting = min(32, (os.cpu_count() or 1) + 4)  # as many threads as an event loop has unless told otherwise
    with ThreadPoolExecutor(waiting) as callers:
        try:
            for _ in range(waiting):
                callers.submit(httpx.get, f"{w.url}/v1/postings/p1?min_version=9", timeout=30)
            for _ in range(waiting):
                assert held.acquire(timeout=20)
            assert w.http.get("/v1/postings/p1", timeout=5).status_code == 200
        finally:
            let_go.set()


def test_tenants_neither_see_nor_replace_each_others_subscriptions(world):
    w = world()
    acme = {"x-tenant": "acme"}
    w.http.post("/v1/subscriptions", json=SUB, headers=acme)
    assert w.http.get("/v1/subscriptions/s1").status_code == 404
    assert w.http.delete("/v1/subscriptions/s1").status_code == 404
    assert w.http.get("/v1/subscriptions").json()["subscriptions"] == []
    assert w.http.post("/v1/subscriptions", json={**SUB, "version": 9}).status_code == 409
    assert len(w.http.get("/v1/subscriptions", headers=acme).json()["subscriptions"]) == 1


def test_a_list_goes_on(world):
    w = world()
    for name in ("c", "a", "b"):
        w.http.post("/v1/subscriptions", json={**SUB, "subscription_id": name})
    first = w.http.get("/v1/subscriptions?limit=2").json()
    second = w.http.get("/v1/subscriptions", params={"limit": 2, "after": first["next_after"]}).json()
    ids = [one["subscription"]["subscription_id"] for page in (first, second) for one in page["subscriptions"]]
    assert ids == ["a", "b", "c"] and "next_after" not in second


def test_without_retrieval_nobody_says_what_is_in_force(world):
    w = world()
    w.http.post("/v1/subscriptions", json=SUB)
    w.retrieval.trouble = grpc.StatusCode.UNAVAILABLE
    listed = w.http.get("/v1/subscriptions").json()
    assert "in_force" not in listed["subscriptions"][0] and listed["degraded"]


def test_subscriptions_carry_the_trace(world):
    w = world()
    answer = w.http.post("/v1/subscriptions", json=SUB)
    sent: Subscription = w.broker.sent[0][1]
    assert sent.trace == answer.headers["traceparent"]
