"""The forms themselves, without a socket: scores go where their index says, and nothing else passes for an answer."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.ranker.backends.remote.errors import BadAnswer, NotAProbability
from penstock.ranker.backends.remote.forms import FORMS, Served, probabilities, served

INDEXED = [name for name, form in FORMS.items() if not form.by_labels]
probability = st.floats(0.0, 1.0)


def wrapped(form, rows):
    return rows if form.rows is None else {form.rows: rows, "model": "m"}


def reply(form, scores, order):
    return wrapped(form, [{"index": at, form.score: scores[at], "document": "…"} for at in order])


@pytest.mark.parametrize("name", INDEXED)
@given(data=st.data())
def test_a_score_goes_where_its_index_says_in_whatever_order(name, data):
    scores = data.draw(st.lists(probability, min_size=1, max_size=40))
    order = data.draw(st.permutations(range(len(scores))))
    form = FORMS[name]
    answer = json.loads(json.dumps(reply(form, scores, order)))
    assert form.scores(answer, len(scores)).tolist() == scores


@pytest.mark.parametrize("name", INDEXED)
@given(data=st.data())
def test_indexes_that_are_no_permutation_are_refused(name, data):
    n = data.draw(st.integers(1, 8))
    order = data.draw(st.lists(st.integers(-1, n), max_size=n + 1).filter(lambda at: sorted(at) != list(range(n))))
    rows = [{"index": at, FORMS[name].score: 0.5} for at in order]
    with pytest.raises(BadAnswer):
        FORMS[name].scores(wrapped(FORMS[name], rows), n)


json_value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["index", "score", "relevance_score", "results", "data", "scores", "x"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@pytest.mark.parametrize("name", FORMS)
@given(answer=json_value, n=st.integers(1, 3))
def test_any_json_is_scores_or_a_bad_answer(name, answer, n):
    try:
        scores = FORMS[name].scores(answer, n)
    except BadAnswer:
        return
    assert scores.shape == (n,)
    assert np.isfinite(scores).all()


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([[0.9, 0.1]], "1 results for 2 texts"),
        ([[0.9, 0.1], [0.9]], "expected two, of yes and of no"),
        ([[0.9, 0.1], [0.9, 0.9]], "expected a sum of 1"),
        ([[0.9, 0.1], [float("nan"), 0.1]], "expected a finite number"),
        ([[0.9, 0.1], ["0.9", 0.1]], "expected a number"),
    ],
)
def test_label_probabilities_are_two_that_sum_to_one(rows, said):
    with pytest.raises(BadAnswer, match=said):
        FORMS["sglang-score"].scores({"scores": rows}, 2)


def test_a_number_of_any_length_is_no_score():
    with pytest.raises(NotAProbability, match="expected a finite number"):
        FORMS["tei"].scores([{"index": 0, "score": 10**400}], 1)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_logits_keep_their_order_as_probabilities(logits):
    p = probabilities(np.array(logits), logits=True)
    assert ((p >= 0) & (p <= 1)).all()
    assert (np.diff(p[np.argsort(logits)]) >= 0).all()


def test_a_logit_of_zero_is_one_half():
    assert probabilities(np.array([0.0]), logits=True).tolist() == [0.5]


def test_probabilities_are_taken_as_they_are_or_not_at_all():
    assert probabilities(np.array([0.25, 1.0 + 5e-7, -5e-7]), logits=False).tolist() == [0.25, 1.0, 0.0]
    with pytest.raises(NotAProbability, match=r"1 of 2 scores are not in \[0, 1\] \(text 1: 1.01\)"):
        probabilities(np.array([0.5, 1.01]), logits=False)


def test_what_is_sent():
    """As the servers' sources have it: names, and what they must be told to score every text in [0, 1]."""
    sent = {name: form.body("q", ["a", "b"], model="m", labels=(1, 2)) for name, form in FORMS.items()}
    asked = {"query": "q", "documents": ["a", "b"], "model": "m"}
    vllm = {"truncate_prompt_tokens": -1, "use_activation": True, "documents": ["a", "b"], "model": "m"}
    raw = {"raw_scores": False, "model": "m"}
    assert sent == {
        "sglang-score": {
            "query": "q",
            "items": ["a", "b"],
            "label_token_ids": [1, 2],
            "apply_softmax": True,
            "item_first": False,
            "model": "m",
        },
        "sglang-rerank": {**asked, "return_documents": False},
        "vllm-score": {**vllm, "queries": "q"},
        "vllm-rerank": {**vllm, "query": "q"},
        "tei": {**raw, "query": "q", "texts": ["a", "b"], "truncate": True, "return_text": False},
        "infinity": {**raw, **asked, "return_documents": False},
        "rerank": {**asked, "top_n": 2},
    }


@pytest.mark.parametrize(
    ("name", "flag", "value"),
    [("vllm-score", "use_activation", False), ("tei", "raw_scores", True), ("infinity", "raw_scores", True)],
)
def test_logits_are_asked_for_where_the_form_can(name, flag, value):
    assert FORMS[name].body("q", ["a"], want_logits=True)[flag] is value
    assert FORMS[name].body("q", ["a"])[flag] is not value


def test_extra_fields_are_sent_and_replace_nothing_that_counts():
    form = FORMS["vllm-rerank"]
    body = form.body("q", ["a"], extra={"truncate_prompt_tokens": 512, "priority": 1})
    assert body["truncate_prompt_tokens"] == 512
    assert body["priority"] == 1
    assert {"query", "documents", "model", "use_activation"} <= form.own_keys()
    assert "truncate_prompt_tokens" not in form.own_keys()


def test_what_a_server_says_of_itself():
    models = {"data": [{"id": "b", "root": "x"}, {"id": "a"}, "odd"]}
    assert served(models) == Served(("a None", "b x"))
    assert served({"model_id": "m", "model_sha": "s", "max_client_batch_size": 16}) == Served(("m", "s"), 16)
    assert served({"max_client_batch_size": True}) == served([]) == served(None) == Served()
