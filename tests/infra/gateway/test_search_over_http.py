"""Search as programs and browsers call it."""

import socket

import grpc
import httpx
import pytest
from gateway_world import NOW, call_error
from waiting import eventually

from penstock.schemas import filters
from penstock.schemas.events import RankResult, Understood
from penstock.schemas.rpc import Ranker

REMOTE = filters.is_in("remote", "REMOTE")


def test_a_page_has_each_posting_beside_its_score(world):
    w = world()
    answer = w.http.post("/v1/search", json={"text": "nurse", "size": 2})
    assert answer.status_code == 200
    page = answer.json()
    assert [(i["posting_id"], i["state"], i.get("posting", {}).get("title")) for i in page["items"]] == [
        ("p1", "LIVE", "Night nurse"),
        ("gone", "ABSENT", None),
    ]
    assert (page["total"], page["next_cursor"], page["timings"]) == (2, "c2", {"score": 1.0})
    assert "parts" not in page["items"][0] and "explanation" not in page
    [asked] = w.ranker.asked
    assert (asked.query.text, asked.page.size, asked.tenant) == ("nurse", 2, "default")
    assert asked.deadline == NOW + w.settings.gateway.timeout_ms


def test_the_address_bar_asks_the_same(world):
    w = world()
    get = w.http.get("/v1/search", params={"q": "nurse", "filter": ["remote=REMOTE", "!company=X"], "cursor": "c9"})
    tree = filters.all_of(filters.parse("remote=REMOTE"), filters.parse("!company=X"))
    from penstock.schemas import jsonl

    post = w.http.post("/v1/search", json={"text": "nurse", "filters": jsonl.to_json(tree), "cursor": "c9"})
    assert get.status_code == post.status_code == 200
    one, other = w.ranker.asked
    assert one.query == other.query and one.query.filters == tree
    assert one.page.cursor == other.page.cursor == "c9"


def test_an_explanation_says_what_scores_and_clauses_are_made_of(world):
    w = world()
    page = w.http.get("/v1/search", params={"q": "nurse", "filter": "remote=REMOTE", "explain": "true"}).json()
    assert page["items"][0]["parts"] == {"dense": 0.5}
    assert page["explanation"]["clauses"] == [{"clause": "remote=REMOTE", "passed": 3, "missing": 1}]
    bare = w.http.get("/v1/search", params={"q": "nurse", "explain": "true"}).json()
    assert "explanation" not in bare  # nothing decided who passes


def test_what_was_understood_and_applied_is_explained_too(world):
    w = world()
    read = [Understood(label="remote", span="remote", filter=REMOTE, applied=flag) for flag in (True, False)]
    w.ranker.result = RankResult(request_id="r", understood=tuple(read), timings={})
    page = w.http.get("/v1/search", params={"q": "remote nurse", "explain": "true"}).json()
    assert "explanation" in page
    assert [one["applied"] for one in page["understood"]] == [True, False]


def test_without_retrieval_the_ranking_comes_and_says_what_it_lacks(world):
    w = world()
    w.retrieval.trouble = grpc.StatusCode.UNAVAILABLE
    page = w.http.get("/v1/search", params={"q": "nurse", "filter": "remote=REMOTE", "explain": "true"}).json()
    assert [item["state"] for item in page["items"]] == ["UNKNOWN", "UNKNOWN"]
    assert len(page["degraded"]) == 2 and page["degraded"][0].startswith("postings:")


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"text": ""}, "text"),
        ({"text": "x", "size": 0}, "size"),
        ({"text": "x", "size": 1001}, "size"),
        ({"text": "x", "size": "many"}, "size"),
        ({"text": "x", "txet": 1}, "txet"),
        ({"text": "x" * 9000}, "text"),
        ({"text": "x", "deadline_ms": 0}, "deadline_ms"),
        ({"text": "x", "filters": {"kind": "IN", "field": "salary", "values": ["1"]}}, "filters.field"),
        ({"text": "x", "filters": {"kind": "IN", "field": "remote", "values": ["SOMETIMES"]}}, "remote"),
        ([], "Search"),
    ],
)
def test_a_wrong_request_is_told_by_field(world, given, field):
    w = world()
    answer = w.http.post("/v1/search", json=given)
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert error["field"] == field and error["expected"] and error["message"]
    assert error["request_id"] == answer.headers["x-request-id"]
    assert w.ranker.asked == []


def test_the_address_bar_is_told_by_field_too(world):
    w = world()
    for query, field in (("q=x&size=many", "size"), ("q=x&filter=salary>=1", "filter"), ("q=%20", "text")):
        error = w.http.get(f"/v1/search?{query}")
        assert error.status_code == 422 and error.json()["error"]["field"] == field, query
    assert w.http.post("/v1/search", content=b"{nope").json()["error"]["message"].startswith("not JSON")


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (grpc.StatusCode.UNAVAILABLE, 503),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 503),
        (grpc.StatusCode.DEADLINE_EXCEEDED, 504),
        (grpc.StatusCode.INTERNAL, 503),
        (grpc.StatusCode.CANCELLED, 503),
    ],
)
def test_trouble_behind_the_gateway_is_said_without_its_insides(world, code, status):
    w = world()
    w.ranker.trouble = call_error(Ranker.RANK, code)
    answer = w.http.get("/v1/search?q=nurse")
    assert answer.status_code == status
    assert ("retry-after" in answer.headers) == (status == 503)
    assert "10.1.2.3" not in answer.text and "secret" not in answer.text


@pytest.mark.parametrize(
    ("said", "status", "after"),
    [
        ({"retry_after_s": 0.004, "refused_for": "load"}, 503, "1"),
        ({"retry_after_s": 2.0, "refused_for": "load"}, 503, "2"),
        ({"retry_after_s": 2.001, "refused_for": "tenant"}, 429, "3"),
        ({}, 503, "1"),
    ],
)
def test_a_refusal_says_whose_doing_it_is_and_after_how_many_whole_seconds_to_come_back(world, said, status, after):
    w = world()
    w.ranker.trouble = call_error(Ranker.RANK, grpc.StatusCode.RESOURCE_EXHAUSTED, **said)
    answer = w.http.get("/v1/search?q=nurse")
    assert (answer.status_code, answer.headers["retry-after"]) == (status, after)
    message = answer.json()["error"]["message"]
    assert f"try again in {after} s" in message and ("tenant" in message) == (status == 429)
    assert "10.1.2.3" not in answer.text and "secret" not in answer.text


def test_what_the_ranker_finds_wrong_is_told_by_field(world):
    w = world()
    said = "page.cursor: got 'x', expected the next_cursor of a previous page, unchanged"
    w.ranker.trouble = call_error(Ranker.RANK, grpc.StatusCode.INVALID_ARGUMENT, said)
    error = w.http.get("/v1/search?q=nurse&cursor=x")
    assert error.status_code == 422
    assert (error.json()["error"]["field"], error.json()["error"]["given"]) == ("page.cursor", "x")
    assert "10.1.2.3" not in error.text


def test_a_failure_of_ours_is_500_and_nothing_leaks(world):
    w = world()
    w.ranker.trouble = RuntimeError("password=hunter2")
    answer = w.http.get("/v1/search?q=nurse")
    assert answer.status_code == 500 and "hunter2" not in answer.text
    assert answer.json()["error"]["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_when_the_caller_leaves_the_ranker_is_told(world, method):
    w = world()
    w.ranker.hang = True
    body = b'{"text": "nurse"}' if method == "POST" else b""
    head = f"{method} /v1/search?q=nurse HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(tuple(w.settings.gateway.listen.split(":"))) as caller:
        caller.sendall(head.encode() + body)
        eventually(lambda: w.ranker.asked, "the ranker is asked")
        assert not w.ranker.cancelled.is_set()
    eventually(w.ranker.cancelled.is_set, "the ranker's call is cancelled")


def test_the_traceparent_and_the_request_id_go_along_and_come_back(world):
    w = world()
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    answer = w.http.get("/v1/search?q=nurse", headers={"traceparent": trace, "x-request-id": "mine-1"})
    assert (answer.headers["traceparent"], answer.headers["x-request-id"]) == (trace, "mine-1")
    [asked] = w.ranker.asked
    assert (asked.trace, asked.request_id) == (trace, "mine-1")
    bad = w.http.get("/v1/search?q=nurse", headers={"traceparent": "00-0-0-01", "x-request-id": "two words"})
    assert bad.headers["traceparent"] != "00-0-0-01" and len(bad.headers["traceparent"]) == 55
    assert bad.headers["x-request-id"] != "two words"


def test_tenants_by_header_where_no_keys_are(world):
    w = world()
    w.http.get("/v1/search?q=nurse", headers={"x-tenant": "acme"})
    assert w.ranker.asked[0].tenant == "acme"
    assert httpx.get(f"{w.url}/v1/search?q=x", headers={"x-tenant": "x" * 300}).status_code == 422
