"""Alert streams: live, resumed, from the topic's past, cut off, and bounded."""

import json
import socket
import threading

import httpx
import pytest
from prometheus_client import REGISTRY
from waiting import eventually


class Listener:
    """An SSE client on a thread of its own. `seen`: (event, id, data)."""

    def __init__(self, world, headers=None, **params):
        self.seen, self.ids = [], []
        self._client = httpx.Client(timeout=httpx.Timeout(20, read=None))
        self._answer = self._client.stream("GET", f"{world.url}/v1/alerts/stream", params=params, headers=headers)
        self.response = self._answer.__enter__()
        assert self.response.status_code == 200, self.response.read()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self):
        event = {}
        try:
            for line in self.response.iter_lines():
                name, _, value = line.partition(": ")
                if line and not line.startswith(":"):
                    event[name] = value
                    if name == "id":
                        self.ids.append(value)
                elif not line:
                    if "data" in event:
                        self.seen.append((event.get("event"), event.get("id"), json.loads(event["data"])))
                    event = {}
        except (httpx.HTTPError, httpx.StreamError, OSError):
            pass

    @property
    def alerts(self):
        return [data["alert_id"] for event, _, data in list(self.seen) if event == "alert"]

    def until(self, *wanted):
        eventually(lambda: self.alerts == list(wanted), f"{wanted}, not {self.alerts}")
        return self

    def close(self):
        # From another thread than the reader's: shutting the socket down is what wakes it.
        self.response.extensions["network_stream"].get_extra_info("socket").shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._client.close()


@pytest.fixture
def listen():
    made = []

    def make(world, headers=None, **params):
        made.append(Listener(world, headers, **params))
        eventually(lambda: made[-1].seen, "the stream is open")
        return made[-1]

    yield make
    for one in made:
        if one._thread.is_alive():
            one.close()


def cut(reason):
    return REGISTRY.get_sample_value("penstock_alert_streams_cut_total", {"reason": reason}) or 0


def test_alerts_come_as_they_come_to_those_they_are_for(world, listen):
    w = world()
    ann, everybody, acme = listen(w, person_id="ann"), listen(w), listen(w, {"x-tenant": "acme"})
    first = w.alert("ann", 1)
    second, third = w.alert("bob", 2), w.alert("ann", 3, tenant="acme")
    ann.until(first)
    eventually(lambda: sorted(everybody.alerts) == sorted([first, second]), "everybody's of this tenant")
    acme.until(third)
    assert ann.seen[1][2]["posting_id"] == "posting-1"


@pytest.mark.parametrize("how", ["header", "query"])
@pytest.mark.parametrize("person", ["ann", None])
def test_an_interrupted_stream_goes_on_where_it_was(world, listen, how, person):
    w = world()
    who = {} if person is None else {"person_id": person}
    before = listen(w, **who)
    sent = [w.alert("ann", n) for n in range(3)]
    before.until(*sent)
    for at in range(4):  # after `open` alone, and after each of the alerts
        later = [w.alert("ann", 10 + at)]
        last = before.seen[at][1]
        again = (
            listen(w, {"last-event-id": last}, **who, after="0-99") if how == "header" else listen(w, **who, after=last)
        )
        again.until(*sent[at:], *(f"ann/{10 + n}" for n in range(at)), *later)
    before.close()


def test_everybodys_place_covers_every_partition(world, listen):
    w = world()
    stream = listen(w)
    sent = [w.alert("a", 1), w.alert("b", 2), w.alert("a", 3), w.alert("b", 4)]
    eventually(lambda: sorted(stream.alerts) == sorted(sent), "all four")
    for at, (_, last, _) in enumerate(stream.seen):
        again = listen(w, after=last)
        had = stream.alerts[:at]
        eventually(lambda a=again, h=had: sorted(a.alerts) == sorted(set(sent) - set(h)), f"what is left after {last}")


def test_what_memory_no_longer_has_comes_from_the_topic(world, listen):
    w = world(start=False, kept=4)
    sent = [w.alert("ann", n) for n in range(40)]
    w.start()
    listen(w, person_id="ann", after="beginning").until(*sent)
    assert w.topic.reads > 5
    reads = w.topic.reads
    listen(w, person_id="ann", after=f"{sum(b'ann') % 2}-37").until(*sent[38:])
    assert w.topic.reads == reads  # memory was enough


def test_a_live_stream_that_falls_behind_memory_loses_nothing(world, listen):
    w = world(kept=3)
    stream = listen(w, person_id="ann")
    sent = [w.alert("ann", n) for n in range(200)]  # faster than it reads: memory holds 6 at most
    stream.until(*sent)


def test_what_retention_took_is_said(world, listen):
    w = world(start=False, kept=4)
    sent = [w.alert("ann", n) for n in range(20)]
    partition = sum(b"ann") % 2
    w.topic.low[partition] = 12
    w.start()
    stream = listen(w, person_id="ann", after=f"{partition}-4").until(*sent[12:])
    gaps = [data for event, _, data in stream.seen if event == "gap"]
    assert [(g["partition"], g["asked"], g["first"]) for g in gaps] == [(partition, 5, 12)]


def test_an_id_beyond_the_feeds_end_is_said_and_not_waited_for(world, listen):
    w = world()
    partition = sum(b"ann") % 2
    stream = listen(w, person_id="ann", after=f"{partition}-500")
    eventually(lambda: [1 for event, *_ in stream.seen if event == "gap"], "a gap")
    stream.until(w.alert("ann", 1))


@pytest.mark.parametrize("after", ["x", "1", "9-1", "0-1.0-2"])
def test_a_wrong_id_is_named(world, after):
    w = world()
    answer = w.http.get("/v1/alerts/stream", params={"after": after})
    assert answer.status_code == 422 and answer.json()["error"]["field"] == "after"
    header = w.http.get("/v1/alerts/stream", headers={"last-event-id": after})
    assert header.status_code == 422 and header.json()["error"]["field"] == "Last-Event-ID"


def test_a_quiet_stream_carries_its_place_in_its_heartbeats(world, listen):
    w = world(beat_s=0.05)
    stream = listen(w, person_id="ann")
    w.alert("bob", 1)  # not for her, but her place moves
    partition = sum(b"bob") % 2
    eventually(lambda: f"{partition}-0" in stream.ids[-1], "the newest place")
    assert stream.alerts == []


def test_streams_are_bounded_and_a_seat_is_free_again(world, listen):
    w = world(max_streams=2)
    first = listen(w)
    listen(w)
    refused = w.http.get("/v1/alerts/stream")
    assert refused.status_code == 503 and int(refused.headers["retry-after"]) > 0
    assert "max_streams" in refused.json()["error"]["message"]
    assert w.http.get("/v1/alerts").status_code == 200
    first.close()
    eventually(lambda: w.parts.seats.taken == 1, "the seat is free")
    listen(w)


def test_a_client_that_stops_reading_is_cut_off_and_resumes_without_loss(world, listen):
    w = world(stall_s=0.3, kept=1000)
    before = cut("stalled")
    host, port = w.settings.gateway.listen.split(":")
    with socket.socket() as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.connect((host, int(port)))
        lazy.sendall(b"GET /v1/alerts/stream?person_id=ann HTTP/1.1\r\nHost: x\r\n\r\n")
        got = b""
        while b"event: open" not in got:
            got += lazy.recv(1000)
        sent = [w.alert("ann", n, size=1000) for n in range(300)]
        while b'"alert_id":"ann/0"' not in got:
            got += lazy.recv(1000)
        big = [w.alert("ann", n, size=60_000) for n in range(300, 500)]  # more than any socket's buffers hold
        eventually(lambda: cut("stalled") == before + 1, "it is cut off")
        eventually(lambda: w.parts.seats.taken == 0, "its seat is free")
        whole = got.replace(b"\r\n", b"\n").split(b"\n\n")[:-1]  # events that it read to their end
    read = [event for event in whole if b"event: alert" in event]
    last = read[-1].split(b"id: ")[1].split(b"\n")[0].decode() if read else None
    again = listen(w, person_id="ann", after=last or "beginning")
    again.until(*[*sent, *big][len(read) :])


def test_a_gateway_that_ends_ends_its_streams(world, listen):
    w = world()
    stream = listen(w)
    w.close()
    eventually(lambda: not stream._thread.is_alive(), "the stream has ended")


def test_before_the_feed_is_read_nobody_is_told_half_of_it(world):
    w = world()
    w.reader.caught_up = False
    for path in ("/v1/alerts", "/v1/alerts/stream", "/v1/subscriptions"):
        assert w.http.get(path).status_code == 503, path


def test_a_look_at_the_newest(world, listen):
    w = world()
    sent = [w.alert("ann", n) for n in range(5)] + [w.alert("bob", 9)]
    eventually(lambda: sum(w.parts.alert_log.ends().values()) == 6, "all are there")
    look = w.http.get("/v1/alerts", params={"person_id": "ann", "limit": 2}).json()
    assert [item["alert"]["alert_id"] for item in look["alerts"]] == [sent[4], sent[3]]
    assert len(w.http.get("/v1/alerts").json()["alerts"]) == 6
    assert w.http.get("/v1/alerts?limit=0").json()["error"]["field"] == "limit"
    more = w.alert("ann", 20)
    listen(w, person_id="ann", after=look["resume"]).until(more)
    listen(w, person_id="ann", after=look["alerts"][1]["id"]).until(sent[4], more)
