"""The gateway on a running system: publish, search, page while postings change, stream across a crash."""

import json
import threading
import time

import httpx
import pytest
from system import PATIENCE, eventually, posting

from penstock.schemas import jsonl, topics
from penstock.schemas.events import Alert, Attributes
from penstock.schemas.filters import is_in


@pytest.fixture(scope="module")
def http(system):
    with httpx.Client(base_url=f"http://{system.settings.gateway.dial}", timeout=PATIENCE) as client:
        eventually(lambda: client.get("/readyz").status_code == 200, "the gateway is ready")
        yield client


def test_published_over_http_is_found_over_http(system, http):
    made = posting(system.new_id("http"), title="Harbour pilot", company=system.new_id("co"))
    answer = http.post("/v1/postings", json=jsonl.to_json(made))
    assert answer.status_code == 202, answer.text
    held = http.get(f"/v1/postings/{made.posting_id}", params={"min_version": 1})
    assert held.status_code == 200 and held.json()["posting"]["title"] == "Harbour pilot"
    page = http.get("/v1/search", params={"q": "harbour pilot", "filter": f"company={made.company}", "explain": "true"})
    [item] = page.json()["items"]
    assert (item["posting_id"], item["posting"]["title"]) == (made.posting_id, "Harbour pilot")
    assert item["parts"] and page.json()["explanation"]["passed"] == 1
    assert http.get(f"/v1/postings/{made.posting_id}", headers={"x-tenant": "nobody"}).status_code == 404
    assert http.delete(f"/v1/postings/{made.posting_id}", params={"version": 2}).status_code == 202
    gone = eventually(
        lambda: http.get(f"/v1/postings/{made.posting_id}").json().get("state") == "DELETED", "it is withdrawn"
    )
    assert gone


def test_the_published_trace_is_the_requests(system, http):
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    made = posting(system.new_id("trace"))
    answer = http.post("/v1/postings", json=jsonl.to_json(made), headers={"traceparent": trace})
    assert answer.headers["traceparent"] == trace
    [sent] = [record for record in system.read(topics.POSTINGS) if record.posting_id == made.posting_id]
    assert sent.trace == trace


def test_pages_neither_repeat_nor_lack_while_postings_change(system, http):
    company = system.new_id("pages")
    made = [posting(system.new_id(f"g{n}"), company=company, title=f"Nurse for ward {n}") for n in range(23)]
    system.publish(topics.POSTINGS, *made)
    for one in made:
        system.row(one.posting_id, version=1)
    body = {"text": "ward nurse", "filters": jsonl.to_json(is_in("company", company)), "size": 5}

    def page(cursor=None):
        answer = http.post("/v1/search", json={**body, "cursor": cursor})
        assert answer.status_code == 200, answer.text
        return answer.json()

    seen, gone, excused, now = [], [], [], page()
    whole_total, epoch, changed = now["total"], now["epoch"], 0
    assert whole_total == len(made)
    while True:
        seen += [item["posting_id"] for item in now["items"]]
        assert now["epoch"] == epoch and now["total"] == whole_total
        excused += gone if now.get("degraded") else []  # a score that the cache did not give needs its posting
        if "next_cursor" not in now:
            break
        # Between the pages: one of those to come is rewritten, one withdrawn, and a new one arrives.
        left = [one for one in made if one.posting_id not in seen]
        fresh = posting(system.new_id(f"new{changed}"), company=company, title="Nurse for ward 0")
        rewritten = posting(left[0].posting_id, 2 + changed, company=company, title="Truck driver")
        withdrawn = posting(left[-1].posting_id, 2 + changed, op="DELETE")
        for change in (fresh, rewritten, withdrawn):
            assert http.post("/v1/postings", json=jsonl.to_json(change)).status_code == 202
            system.row(change.posting_id, version=change.version)
        changed += 1
        gone.append(withdrawn.posting_id)
        now = page(now["next_cursor"])
    assert changed >= 4
    assert len(seen) == len(set(seen))
    assert {one.posting_id for one in made} - set(seen) <= set(excused)


# --- alerts ------------------------------------------------------------------------------------------------------


class Stream:
    """An SSE client that resumes by itself, as a browser does. `alerts` are ids as they came, doubles included."""

    def __init__(self, http, person_id):
        self.alerts, self.resumed, self.last = [], 0, None
        self._url, self._person_id = f"{str(http.base_url).rstrip('/')}/v1/alerts/stream", person_id
        self._stop = threading.Event()
        self.open = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        while not self._stop.is_set():
            headers = {"last-event-id": self.last} if self.last else {}
            try:
                params = {"person_id": self._person_id}
                timeout = httpx.Timeout(5, read=1)
                with httpx.stream("GET", self._url, params=params, headers=headers, timeout=timeout) as answer:
                    self._read(answer)
            except httpx.TransportError:
                self._stop.wait(0.1)
            self.resumed += 1

    def _read(self, answer):
        event = {}
        for line in answer.iter_lines():
            name, _, value = line.partition(": ")
            if line:
                event[name] = value
                continue
            self.last = event.get("id", self.last)
            if event.get("event") == "open":
                self.open.set()
            if event.get("event") == "alert":
                self.alerts.append(json.loads(event["data"])["alert_id"])
            event = {}
            if self._stop.is_set():
                return

    def close(self):
        self._stop.set()
        self._thread.join(10)


def alert(person_id, number):
    now = int(time.time() * 1000)
    return Alert(
        alert_id=f"{person_id}/{number}",
        person_id=person_id,
        posting_id=f"p{number}",
        version=1,
        matches=(),
        attributes=Attributes(title="Nurse"),
        produced_at=now,
        alerted_at=now,
    )


def test_a_stream_resumes_without_loss_when_the_gateway_is_killed(system, machinery, http):
    person = system.new_id("ann")
    stream = Stream(http, person)
    try:
        assert stream.open.wait(PATIENCE)
        sent = [alert(person, n) for n in range(60)]
        system.publish(topics.ALERTS, *sent[:20])
        eventually(lambda: len(stream.alerts) >= 20, "the first twenty")
        system.publish(topics.ALERTS, *sent[20:30])  # some of these are on their way when it dies
        machinery.kill("gateway")
        system.publish(topics.ALERTS, *sent[30:50])  # and these come while it is away
        machinery.heal()
        system.publish(topics.ALERTS, *sent[50:])
        ids = [one.alert_id for one in sent]
        eventually(lambda: set(stream.alerts) >= set(ids), "every alert")
        assert list(dict.fromkeys(stream.alerts)) == ids  # in order, and a reader that keeps ids sees none twice
        assert stream.resumed > 0
    finally:
        stream.close()
    eventually(lambda: http.get("/readyz").status_code == 200, "the gateway is ready again")
    look = http.get("/v1/alerts", params={"person_id": person, "limit": 3}).json()
    assert [item["alert"]["alert_id"] for item in look["alerts"]] == [f"{person}/{n}" for n in (59, 58, 57)]


def test_what_the_gateway_no_longer_keeps_is_streamed_from_the_topic(system, http):
    """More than the gateway has in memory, for one person and so in one partition."""
    person = system.new_id("heavy")
    count = 4_500
    system.publish(topics.ALERTS, *(alert(person, n) for n in range(count)))
    got = []
    params = {"person_id": person, "after": "beginning"}
    with httpx.stream(
        "GET", f"{str(http.base_url).rstrip('/')}/v1/alerts/stream", params=params, timeout=PATIENCE
    ) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: ") and '"alert_id"' in line:
                got.append(json.loads(line[6:])["alert_id"])
                if len(got) == count:
                    break
    assert got == [f"{person}/{n}" for n in range(count)]


def test_a_subscription_over_http_is_on_the_topic_and_in_the_list(system, http):
    person = system.new_id("bob")
    made = http.post("/v1/subscriptions", json={"person_id": person, "text": "harbour pilot"}).json()
    listed = http.get("/v1/subscriptions", params={"person_id": person}).json()["subscriptions"]
    assert [one["subscription"]["subscription_id"] for one in listed] == [made["id"]]
    eventually(lambda: http.get(f"/v1/subscriptions/{made['id']}").json()["in_force"], "it is in force")
    assert http.delete(f"/v1/subscriptions/{made['id']}").status_code == 202
    assert http.get("/v1/subscriptions", params={"person_id": person}).json()["subscriptions"] == []
    # Other scenarios leave records on the topic that nobody can read.
    ours = (one for one in system.read(topics.SUBSCRIPTIONS, unreadable="skip") if one.subscription_id == made["id"])
    assert [one.op for one in ours][-1] == "DELETE"
