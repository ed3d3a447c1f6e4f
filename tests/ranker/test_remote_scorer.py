"""Remote scorers against a server over HTTP that speaks their forms, and breaks them."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import pytest
from pydantic import SecretStr
from rerank_server import NO, REPLACED, SPOILED, YES, RerankServer, logit, sigmoid
from waiting import eventually

from penstock.ranker.backends.prompt import TEMPLATE, Template
from penstock.ranker.backends.remote import scorer as remote
from penstock.ranker.backends.remote.errors import (
    BadAnswer,
    CircuitOpen,
    RemoteAway,
    RemoteRefused,
    RemoteTimeout,
)
from penstock.ranker.backends.remote.forms import FORMS
from penstock.ranker.backends.remote.guards import BreakerLimits, State
from penstock.ranker.backends.remote.options import RemoteOptions
from penstock.ranker.backends.remote.scorer import RemoteScorer
from penstock.ranker.backends.remote.texts import NO_TEXT
from penstock.ranker.backends.scorer import Caller, ScoringItem, ScoringQuery
from penstock.ranker.errors import CallerLeft, NonFiniteScore, UnfitScorer
from penstock.schemas.events import IndexOp, IndexUpdate

PREFIX = {"tei": "/tei", "infinity": "/infinity", "rerank": "/jina"}
QUERY = ScoringQuery("night nurse in ohio", None)
TEXTS = ["a welder", "night nurse in Columbus, Ohio", "nurse", "clerk in Ohio", "night watch in the park"]


def item(text):
    return ScoringItem(
        0.0, 0.0, IndexUpdate(posting_id="p", version=1, op=IndexOp.UPSERT, item_text=text, produced_at=0)
    )


ITEMS = [item(text) for text in TEXTS]


def options(server, form="vllm-rerank", **changes):
    given = {
        "url": server.url + PREFIX.get(form, ""),
        "form": form,
        "labels": (YES, NO) if form == "sglang-score" else None,
        "timeout_s": 20.0,
        "connect_s": 5.0,
        "start_s": 0.0,
        "breaker": BreakerLimits(least=1_000),  # closed, unless a test says otherwise
        **changes,
    }
    return RemoteOptions(**given)


def expected(form, texts=TEXTS, query=QUERY.text):
    if form == "sglang-score":
        query, texts = TEMPLATE.before + query + TEMPLATE.between, [text + TEMPLATE.after for text in texts]
    return [sigmoid(logit(query, text)) for text in texts]


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with RerankServer() as running:
        yield running


@pytest.fixture
def connect(server):
    """Makes scorers, and closes them."""
    made = []

    def make(form="vllm-rerank", clock=None, **changes):
        clocks = {} if clock is None else {"clock": clock}
        made.append(RemoteScorer(options(server, form, **changes), **clocks, jitter=lambda: 0.0))
        server.requests.clear()
        return made[-1]

    yield make
    for scorer in made:
        scorer.close()


class Clock:
    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s


@pytest.mark.parametrize("form", FORMS)
def test_every_form_scores_every_posting_in_its_place(connect, form):
    scores = connect(form).score(QUERY, ITEMS)
    assert scores.p == pytest.approx(expected(form), abs=1e-12)
    assert scores.parts.shape == (5, 0)
    assert scores.notes == ()


@pytest.mark.parametrize("form", FORMS)
def test_a_score_does_not_depend_on_company_order_or_batches(connect, form):
    scorer, small = connect(form), connect(form, max_batch=2)
    alone = [float(scorer.score(QUERY, [one]).p[0]) for one in ITEMS]
    assert scorer.score(QUERY, ITEMS[::-1]).p.tolist()[::-1] == alone
    assert small.score(QUERY, ITEMS).p.tolist() == alone


@pytest.mark.parametrize("form", ["vllm-score", "vllm-rerank", "tei", "infinity"])
def test_logits_come_out_as_the_same_probabilities(connect, form):
    assert connect(form, scores="logits").score(QUERY, ITEMS).p == pytest.approx(expected(form), abs=1e-12)


def test_a_server_that_gives_logits_unasked_is_refused_unless_that_is_said(server, connect):
    server.raw = True
    with pytest.raises(UnfitScorer, match=r"not in \[0, 1\].*say so \(scores = 'logits'\)"):
        connect("sglang-rerank")
    assert connect("sglang-rerank", scores="logits").score(QUERY, ITEMS).p == pytest.approx(expected("sglang-rerank"))


def test_batches_are_bounded_and_go_side_by_side_over_kept_connections(server, connect):
    scorer = connect(max_batch=7, connections=3)
    server.connections = 0
    items = [item(f"night nurse {n}") for n in range(100)]
    for _ in range(3):
        scorer.score(QUERY, items)
    sizes = [len(body["documents"]) for _, body in server.requests]
    assert sorted(sizes) == [2] * 3 + [7] * 42
    assert server.connections <= 3
    assert server.most_under_way <= 3


def test_the_servers_own_limit_is_kept(server, connect):
    server.max_client_batch_size = 4
    scorer = connect("tei")
    scorer.score(QUERY, [item(f"nurse {n}") for n in range(10)])
    assert max(len(body["texts"]) for _, body in server.requests) == 4


def test_many_callers_at_once_each_get_their_own(connect):
    scorer = connect(max_batch=3)
    queries = [ScoringQuery(f"{word} in ohio", None) for word in ("nurse", "clerk", "welder", "night")] * 10
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda query: scorer.score(query, ITEMS).p.tolist(), queries))
    for query, p in zip(queries, found, strict=True):
        assert p == pytest.approx(expected("vllm-rerank", query=query.text))


def test_five_thousand_postings(connect):
    items = [item(f"nurse number {n}") for n in range(5_000)]
    p = connect(max_batch=500).score(QUERY, items).p
    assert p == pytest.approx(expected("vllm-rerank", [f"nurse number {n}" for n in range(5_000)]))


def test_no_postings_are_no_request(server, connect):
    assert connect().score(QUERY, []).p.shape == (0,)
    assert not server.requests


@pytest.mark.parametrize("form", FORMS)
def test_odd_texts_are_sent_in_a_form_that_no_server_refuses_and_that_is_said(server, connect, form):
    scorer = connect(form)
    odd = ["", " \n", "x" * 100_000, "night \ud800 nurse", "nurse \x00 \u2028 “ohio”", "nurse"]
    scores = scorer.score(ScoringQuery("", None), [item(text) for text in odd])
    assert scores.notes == (
        f"remote scorer: a query without words, sent as {NO_TEXT!r}",
        "remote scorer: 1 postings cut to 4096 characters",
        f"remote scorer: 2 postings without text, sent as {NO_TEXT!r}",
    )
    assert scores.p[0] == scores.p[1]
    long = scorer.score(ScoringQuery("nurse " * 1_000, None), [item("nurse")])
    assert long.notes == ("remote scorer: query cut to 1024 characters",)


def test_wording_stands_around_query_and_posting(server, connect):
    connect(template=Template("<q>", "</q><d>", "</d>"), extra={"priority": 3}).score(QUERY, [item("nurse")])
    [(_, body)] = server.requests
    assert (body["query"], body["documents"]) == ("<q>night nurse in ohio</q><d>", ["nurse</d>"])
    assert body["priority"] == 3


def test_a_key_is_sent_and_a_wrong_one_is_refused(server, connect):
    server.key = "secret"
    connect(api_key=SecretStr("secret")).score(QUERY, ITEMS)
    with pytest.raises(UnfitScorer, match="refused with 401") as refused:
        connect(api_key=SecretStr("wrong-key"))
    assert "wrong-key" not in str(refused.value)


NOT_PROBABILITIES = {"score NaN", "score infinite", "score above 1", "score below 0"}
UNDETECTABLE = {"doubled"} | {name for name in SPOILED if name.startswith("index")}  # where rows have no index


SPOILS = [
    (form, fault)
    for form in FORMS
    for fault in (*SPOILED, *REPLACED, "large")
    if form != "sglang-score" or fault not in UNDETECTABLE
]


@pytest.mark.parametrize(("form", "fault"), SPOILS)
def test_an_answer_that_is_not_one_score_a_posting_is_an_error(server, connect, form, fault):
    scorer = connect(form)
    server.faults = [fault]
    with pytest.raises(BadAnswer) as raised:
        scorer.score(QUERY, ITEMS)
    assert isinstance(raised.value, NonFiniteScore) == (fault in NOT_PROBABILITIES)
    assert scorer.score(QUERY, ITEMS).p == pytest.approx(expected(form))
    assert len(server.requests) == 2  # a bad answer is not asked for again


def test_an_answer_is_read_up_to_a_limit(server, connect):
    scorer = connect()
    server.faults = ["large"]
    with pytest.raises(BadAnswer, match="more than 8388608 bytes"):
        scorer.score(QUERY, ITEMS)


@pytest.mark.parametrize("fault", [500, 503, "drop", "cut"])
def test_a_passing_failure_is_asked_once_more(server, connect, fault):
    scorer = connect()
    server.faults = [fault]
    before = remote.RETRIES.labels("vllm-rerank")._value.get()
    assert scorer.score(QUERY, ITEMS).p == pytest.approx(expected("vllm-rerank"))
    assert len(server.requests) == 2
    assert remote.RETRIES.labels("vllm-rerank")._value.get() == before + 1


@pytest.mark.parametrize("fault", [500, 503, "drop", "cut"])
def test_a_failure_that_stays_is_an_error_and_retries_stay_within_their_budget(server, connect, fault):
    scorer = connect(retry_share=0.1)
    server.fault = fault
    for _ in range(40):
        with pytest.raises(RemoteAway):
            scorer.score(QUERY, ITEMS)
    assert len(server.requests) <= 40 + 3 + 4  # calls, the reserve, a tenth of the calls


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422, 429, 307])
def test_a_refusal_is_never_asked_again(server, connect, status):
    scorer = connect()
    server.faults = [status]
    with pytest.raises(RemoteRefused, match=str(status)) as refused:
        scorer.score(QUERY, ITEMS)
    assert refused.value.status == status
    assert len(server.requests) == 1


@pytest.mark.parametrize("fault", ["hang", "drops"])
def test_a_deadline_ends_the_wait_whatever_the_server_does(server, connect, fault):
    scorer = connect()
    server.fault = fault
    with pytest.raises(RemoteTimeout, match=r"did not answer within (9\d|100) ms") as late:
        scorer.score(QUERY, ITEMS, Caller(deadline_s=time.monotonic() + 0.1))
    assert isinstance(late.value, TimeoutError)
    server.fault = None
    assert scorer.score(QUERY, ITEMS).p == pytest.approx(expected("vllm-rerank"))


def test_the_options_bound_a_later_deadline(server, connect):
    scorer = connect(timeout_s=0.5)
    server.fault = "hang"
    with pytest.raises(RemoteTimeout, match="within 500 ms"):
        scorer.score(QUERY, ITEMS, Caller(deadline_s=time.monotonic() + 60.0))


@pytest.mark.parametrize("left_s", [0.0, -1.0])
def test_with_no_time_left_nothing_is_asked(server, connect, left_s):
    scorer = connect()
    with pytest.raises(RemoteTimeout, match="was not asked"):
        scorer.score(QUERY, ITEMS, Caller(deadline_s=time.monotonic() + left_s))
    assert not server.requests


def test_for_a_caller_who_left_nothing_is_asked(server, connect):
    scorer = connect()
    with pytest.raises(CallerLeft):
        scorer.score(QUERY, ITEMS, Caller(has_left=lambda: True))
    assert not server.requests
    scorer.score(QUERY, ITEMS, Caller(has_left=lambda: False))


def test_one_failed_batch_fails_the_call_and_ends_the_others(server, connect):
    scorer = connect(max_batch=1, connections=2)
    server.faults = ["hang", 422]
    with pytest.raises(RemoteRefused, match="422"):
        scorer.score(QUERY, ITEMS)
    server.released.set()
    eventually(lambda: not server.under_way, "no request under way")
    assert scorer.score(QUERY, ITEMS).p == pytest.approx(expected("vllm-rerank"))


BREAKER = BreakerLimits(least=3, open_s=1.0)


def outcomes(name):
    return remote.CALLS.labels("vllm-rerank", name)._value.get()


def test_the_circuit_opens_on_failures_and_one_probe_closes_it(server, connect):
    clock = Clock()
    scorer = connect(clock=clock, breaker=BREAKER, retry_share=0.0)
    opened = remote.DEGRADED.labels("ranker", "remote scorer: circuit opened")._value.get()
    shut = remote.DEGRADED.labels("ranker", "remote scorer: circuit open")._value.get()
    server.fault = 503
    for _ in range(3):
        with pytest.raises(RemoteAway):
            scorer.score(QUERY, ITEMS)
    assert scorer.circuit is State.OPEN
    server.requests.clear()
    with pytest.raises(CircuitOpen, match=r"not asked for another 1\.0 s; last: RemoteAway: .* answered 503"):
        scorer.score(QUERY, ITEMS)
    assert not server.requests
    assert remote.DEGRADED.labels("ranker", "remote scorer: circuit opened")._value.get() == opened + 1
    assert remote.DEGRADED.labels("ranker", "remote scorer: circuit open")._value.get() == shut + 1
    assert remote.CIRCUIT.labels("vllm-rerank")._value.get() == 1
    server.fault = None
    clock.now_s = 1.0
    assert scorer.score(QUERY, ITEMS).p == pytest.approx(expected("vllm-rerank"))
    assert scorer.circuit is State.CLOSED
    assert remote.CIRCUIT.labels("vllm-rerank")._value.get() == 0


def test_half_open_the_others_wait_outside(server, connect):
    clock = Clock()
    scorer = connect(clock=clock, breaker=BREAKER, retry_share=0.0)
    server.fault = 503
    for _ in range(3):
        with pytest.raises(RemoteAway):
            scorer.score(QUERY, ITEMS)
    server.fault, clock.now_s = "hang", 1.0
    server.requests.clear()
    failed = []

    def call():
        with pytest.raises(RemoteAway):
            scorer.score(QUERY, ITEMS)
        failed.append(True)

    probe = threading.Thread(target=call)
    probe.start()
    eventually(lambda: server.requests, "the probe at the server")
    with pytest.raises(CircuitOpen):
        scorer.score(QUERY, ITEMS)
    server.released.set()
    probe.join(20)
    assert failed
    assert scorer.circuit is State.OPEN


@pytest.mark.parametrize(
    ("fault", "left_s", "state"),
    [
        (400, 20.0, State.CLOSED),  # of the request
        (422, 20.0, State.CLOSED),
        (401, 20.0, State.OPEN),  # of the backend
        (429, 20.0, State.OPEN),
        ("not JSON", 20.0, State.OPEN),
        ("missing", 20.0, State.OPEN),
        ("hang", 0.05, State.CLOSED),  # had no fair time
        ("hang", 0.4, State.OPEN),
    ],
)
def test_what_counts_against_the_backend(server, connect, fault, left_s, state):
    scorer = connect(breaker=BREAKER, retry_share=0.0)
    server.fault = fault
    for _ in range(3):
        with pytest.raises((RemoteRefused, BadAnswer, RemoteTimeout)):
            scorer.score(QUERY, ITEMS, Caller(deadline_s=time.monotonic() + left_s))
    assert scorer.circuit is state


def test_how_calls_ended_is_counted(server, connect):
    scorer = connect(retry_share=0.0)
    before = {name: outcomes(name) for name in ("ok", "RemoteAway", "BadAnswer", "RemoteRefused")}
    for fault in (None, 500, "missing", 422):
        server.faults = [fault]
        with suppress(RemoteAway, BadAnswer, RemoteRefused):
            scorer.score(QUERY, ITEMS)
    assert {name: outcomes(name) - count for name, count in before.items()} == dict.fromkeys(before, 1.0)


@pytest.mark.parametrize("form", FORMS)
def test_a_backend_that_does_not_tell_texts_apart_is_refused_with_what_it_answered(server, connect, form):
    server.constant = True
    with pytest.raises(UnfitScorer, match=r"gave 'Registered Nurse.* 0\.5 and 'Pastry chef.* 0\.5.*template"):
        connect(form)


def test_scores_in_the_order_of_rank_are_seen_by_the_probe(server, connect, monkeypatch):
    """A server whose indexes count the results and not the texts scores right in one order alone."""
    sort = RerankServer._sorted

    def renumbered(*arguments, **beside):
        return [{**row, "index": at} for at, row in enumerate(sort(*arguments, **beside))]

    monkeypatch.setattr(RerankServer, "_sorted", renumbered)
    with pytest.raises(UnfitScorer, match="in the other order"):
        connect("infinity")


def test_a_backend_that_is_away_at_the_start_is_waited_for(server, connect):
    server.faults = [503, "drop"]
    assert connect(start_s=60.0).score(QUERY, ITEMS).p == pytest.approx(expected("vllm-rerank"))


def test_a_backend_that_stays_away_is_unfit(connect):
    with pytest.raises(UnfitScorer, match=r"cannot be used: RemoteAway: it gave no answer within 0\.0 s; last: "):
        connect(url="http://127.0.0.1:1")


def test_the_wrong_form_is_unfit(server, connect):
    with pytest.raises(UnfitScorer, match=r"refused with 422: .*Field required"):
        connect("tei", url=server.url)


def test_the_model_id_names_all_that_makes_a_score(server, connect):
    ids = [
        connect().model_id,
        connect("vllm-score").model_id,
        connect(model="acme/reranker").model_id,
        connect(scores="logits").model_id,
        connect(max_item_chars=100).model_id,
        connect(template=Template("", " ", "")).model_id,
        connect(extra={"priority": 1}).model_id,
    ]
    assert connect(timeout_s=3.0, max_batch=5).model_id == ids[0]
    server.model = "acme/another"
    ids.append(connect().model_id)
    assert len(set(ids)) == len(ids)
    assert ids[2].startswith("remote:vllm-rerank:acme/reranker:")


def test_closed_it_says_so(server, connect):
    scorer = connect()
    server.fault = "hang"
    failed = []

    def call():
        with pytest.raises(RemoteAway, match="closed") as error:
            scorer.score(QUERY, ITEMS)
        failed.append(error)

    caller = threading.Thread(target=call)
    caller.start()
    eventually(lambda: server.requests, "the call at the server")
    scorer.close()
    scorer.close()
    caller.join(20)
    assert failed
    with pytest.raises(RemoteAway, match="is closed"):
        scorer.score(QUERY, ITEMS)
    assert not any(thread.name == "remote-scorer" and thread.is_alive() for thread in threading.enumerate())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"form": "cohere"}, "expected one of sglang-score, "),
        ({"url": "127.0.0.1:8000"}, "expected such as http://"),
        ({"url": "http://host:99999"}, "expected such as http://"),
        ({"scores": "ranks"}, "expected 'probabilities' or 'logits'"),
        ({"form": "sglang-score", "labels": (1, 2), "scores": "logits"}, "gives probabilities alone"),
        ({"form": "sglang-score"}, "needs the token ids of yes and no"),
        ({"extra": {"documents": []}}, "extra holds documents"),
        ({"max_batch": 0}, "max_batch is 0: expected more than 0"),
        ({"timeout_s": float("nan")}, "timeout_s is nan"),
        ({"retry_share": 1.5}, "expected 0 to 1"),
    ],
)
def test_options_that_cannot_be_are_refused(changes, said):
    good = RemoteOptions(url="http://127.0.0.1:8000", form="vllm-rerank")
    with pytest.raises(UnfitScorer, match=said):
        replace(good, **changes)
