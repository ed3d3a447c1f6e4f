"""What every request meets: keys, bounds, errors in one shape, health, the page, the description."""

import asyncio
import json
import re
import socket
import subprocess
import sys

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from waiting import eventually

from penstock.infra.gateway import openapi
from penstock.infra.gateway.app import describe_app
from penstock.infra.gateway.auth import decide_tenant
from penstock.infra.gateway.errors import Problem
from penstock.infra.gateway.health import Health
from penstock.infra.gateway.trace import traceparent

KEYS = {"acme": "k-acme-1", "blue": "k-blue-2"}


@pytest.mark.parametrize("header", [{"authorization": "Bearer k-acme-1"}, {"x-api-key": "k-acme-1"}])
def test_with_keys_the_tenant_is_the_keys(world, header):
    w = world(api_keys=KEYS)
    assert w.http.get("/v1/search?q=x", headers=header).status_code == 200
    assert w.ranker.asked[0].tenant == "acme"
    other = w.http.get("/v1/search?q=x", headers={**header, "x-tenant": "blue"})
    assert other.status_code == 403


@pytest.mark.parametrize(
    "header",
    [{}, {"x-api-key": "k-acme-"}, {"x-api-key": "k-acme-1x"}, {"authorization": "Basic k-acme-1"},
     {"authorization": "Bearer"}, {"x-tenant": "acme"}, {"x-api-key": "é"}],
)  # fmt: skip
def test_a_bad_key_opens_nothing(world, header):
    w = world(api_keys=KEYS)
    raw = {name: value.encode("latin-1") for name, value in header.items()}
    for method, path in (
        ("GET", "/v1/search?q=x"),
        ("POST", "/v1/postings"),
        ("GET", "/v1/postings/p1"),
        ("DELETE", "/v1/postings/p1?version=1"),
        ("GET", "/v1/subscriptions"),
        ("GET", "/v1/alerts"),
        ("GET", "/v1/alerts/stream"),
    ):
        answer = w.http.request(method, path, headers=raw)
        assert answer.status_code == 401, (method, path)
        assert answer.headers["www-authenticate"] == "Bearer" and "k-acme" not in answer.text
    assert w.ranker.asked == [] and w.broker.sent == []
    assert w.http.get("/livez").status_code == 200


def test_with_keys_nobody_replaces_anothers_posting(world):
    w = world(api_keys=KEYS)
    w.retrieval.add("theirs", tenant="blue")
    key = {"x-api-key": "k-acme-1"}
    posting = {"posting_id": "theirs", "version": 9, "title": "T", "description": "D"}
    assert w.http.post("/v1/postings", json=posting, headers=key).status_code == 409
    assert w.http.delete("/v1/postings/theirs?version=9", headers=key).status_code == 409
    assert w.broker.sent == []
    assert w.http.post("/v1/postings", json={**posting, "posting_id": "new"}, headers=key).status_code == 202
    assert w.broker.sent[0][1].tenant == "acme"


@given(st.dictionaries(st.sampled_from(["a", "b"]), st.text(min_size=1, max_size=4), min_size=1), st.text(max_size=5))
def test_only_a_whole_key_is_a_key(keys, guess):
    try:
        tenant = decide_tenant(keys, {"x-api-key": guess})
    except Problem as problem:
        assert problem.status == 401 and guess not in keys.values()
    else:
        assert keys[tenant] == guess


# --- bounds ------------------------------------------------------------------------------------------------------


def test_a_huge_body_is_refused_with_the_bound(world):
    w = world(max_body_bytes=1000)
    answer = w.http.post("/v1/postings", content=b"x" * 1001)
    error = answer.json()["error"]
    assert answer.status_code == 413 and error["given"] == "1001 bytes" and "1000 bytes" in error["expected"]
    assert w.http.post("/v1/postings", content=b"x" * 1000).status_code == 422  # no JSON, but short enough


def test_a_huge_body_in_chunks_is_refused_too(world):
    w = world(max_body_bytes=1000)
    answer = w.http.post("/v1/search", content=(b"x" * 100 for _ in range(20)))
    assert answer.status_code == 413 and "1000 bytes" in answer.json()["error"]["expected"]


def test_a_body_that_never_ends_is_not_waited_for(world):
    w = world(max_body_bytes=1000)
    with socket.create_connection(tuple(w.settings.gateway.listen.split(":")), 20) as caller:
        caller.sendall(b"POST /v1/search HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        caller.sendall(b"7d0\r\n" + b"x" * 2000 + b"\r\n")  # and no end
        assert caller.recv(100).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    "raw",
    [
        b"GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"PATCH /v1/search HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
        b"POST /v1/search HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 3\r\n\r\n\xff\xfe{",
        b"GET /v1/postings/%ff%fe HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    ],
)
def test_every_refusal_has_the_one_shape(world, raw):
    w = world()
    with socket.create_connection(tuple(w.settings.gateway.listen.split(":")), 20) as caller:
        caller.sendall(raw)
        answer = b"".join(iter(lambda: caller.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.split(b" ")[1] in (b"404", b"405", b"422")
    assert {"message", "request_id"} <= json.loads(body)["error"].keys()
    assert f"x-request-id: {json.loads(body)['error']['request_id']}".encode() in head


@given(st.text(max_size=80))
def test_a_traceparent_is_always_well_formed(given_):
    form = r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}.*"
    assert re.fullmatch(form, traceparent(given_), re.DOTALL)


# --- health ------------------------------------------------------------------------------------------------------


def test_ready_says_each_reason(world):
    w = world()
    assert w.http.get("/readyz").json() == {
        "ready": True,
        "checks": dict.fromkeys(["ranker", "retrieval", "broker", "alerts", "subscriptions"], ""),
    }
    w.ranker.ready, w.retrieval.ready, w.broker.answers, w.reader.reason = False, False, "no broker", "behind"

    def told():
        answer = w.http.get("/readyz")
        return answer if answer.status_code == 503 else None

    answer = eventually(told, "not ready")
    assert all(answer.json()["checks"].values()) and answer.headers["retry-after"]


def test_readiness_is_cheap_however_often_it_is_asked_and_while_work_flows(world):
    w, now = world(start=False), [100.0]

    async def look():
        async with w.opened() as parts:
            health = Health(lambda: now[0])
            for _ in range(20):
                assert (await health.readiness(parts)).ready
            assert w.ranker.looks == 1
            now[0] += 2
            await health.readiness(parts)
            assert w.ranker.looks == 2
            parts.worked_at = now[0] + 1  # a search worked: proof enough
            now[0] += 2
            assert (await health.readiness(parts)).ready
            assert w.ranker.looks == 2
            now[0] += 60  # long ago
            w.ranker.ready = False
            assert not (await health.readiness(parts)).ready

    asyncio.run(look())


def test_alive_means_that_the_threads_move(world):
    w = world()
    assert w.http.get("/livez").status_code == 200
    w.reader.reason = "its reader has not moved for 31 s"
    assert w.http.get("/livez").status_code == 503


def test_metrics_count_by_route_and_not_by_address(world):
    w = world()
    for name in ("a", "b", "c"):
        w.http.get(f"/v1/postings/{name}")
        w.http.get(f"/nowhere/{name}")
    text = w.http.get("/metrics").text
    line = 'penstock_http_requests_total{method="GET",route="/v1/postings/{posting_id}",status="404"}'
    assert line in text and "nowhere/a" not in text
    for name in ("penstock_http_request_seconds_bucket", "penstock_alert_streams_open"):
        assert name in text


# --- the page and the description --------------------------------------------------------------------------------


def test_the_page_needs_nothing_from_elsewhere(world):
    w = world()
    page = w.http.get("/")
    assert page.status_code == 200 and "<form" in page.text and "/v1/alerts/stream" in page.text
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page.text)
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert httpx.get(f"{w.url}/docs", follow_redirects=True).text == page.text


def test_the_committed_description_is_the_gateways(world):
    made = openapi.text(openapi.document(describe_app()))
    assert openapi.PATH.read_text(encoding="utf-8") == made, "python -m penstock.infra.gateway.openapi writes it anew"
    assert world().http.get("/openapi.json").json() == json.loads(made)


def test_every_reference_of_the_description_leads_somewhere():
    document = openapi.document(describe_app())
    text = json.dumps(document)
    referred = set(re.findall(r'"#/components/schemas/(\w+)"', text))
    assert referred <= document["components"]["schemas"].keys()
    assert {"Posting", "Subscription", "SubscriptionBody", "Alert", "SearchAnswer", "Filter"} <= referred
    posting = document["components"]["schemas"]["Posting"]
    assert posting["required"] == ["posting_id", "version"]
    assert posting["properties"]["remote"] == {
        "allOf": [{"$ref": "#/components/schemas/Remote"}],
        "default": "UNKNOWN",
    }
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert operation["description"], path


def test_the_process_stays_light():
    heavy = ["torch", "transformers", "pyflink", "redis"]
    code = f"import sys, penstock.infra.gateway.server; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"
