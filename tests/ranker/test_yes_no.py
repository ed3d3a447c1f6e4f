"""The yes/no scorer on a tiny random Qwen3 directory made here."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from qwen3_directory import make_directory

from penstock.ranker.backends import yes_no
from penstock.ranker.backends.prompt import TEMPLATE, TEMPLATE_FILE, item_text
from penstock.ranker.backends.scorer import Caller, ScoringItem, ScoringQuery
from penstock.ranker.backends.yes_no import YesNoScorer, batches
from penstock.ranker.errors import CallerLeft, DeadlinePassed, NonFiniteScore, UnfitScorer
from penstock.schemas.events import Attributes, IndexOp, IndexUpdate

TOLERANCE = 1e-5  # fp32, 2 layers
YES, NO = 1, 2  # their tokens


def item(text, **changes):
    update = IndexUpdate(
        posting_id="p", version=1, op=IndexOp.UPSERT, attributes=Attributes(title="x"), item_text=text, produced_at=0
    )
    return ScoringItem(0.0, 0.0, replace(update, **changes))


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return make_directory(tmp_path_factory.mktemp("qwen3"))


@pytest.fixture(scope="module")
def scorer(directory):
    return YesNoScorer(directory)


QUERY = ScoringQuery("remote senior nurse", None)
TEXTS = ["nurse night shift", "welder", "clerk ohio " * 40, "", "senior remote nurse , ohio . posting"]


def test_p_is_what_a_plain_forward_gives(scorer, directory):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    scores = scorer.score(QUERY, [item(text) for text in TEXTS])
    for text, p, parts in zip(TEXTS[:3], scores.p, scores.parts, strict=False):
        prompt = TEMPLATE.before + QUERY.text + TEMPLATE.between + text + TEMPLATE.after
        with torch.no_grad():
            logits = model(**tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)).logits[0, -1]
        difference = float(logits[YES] - logits[NO])
        assert parts[0] == pytest.approx(difference, abs=TOLERANCE)
        assert p == pytest.approx(1 / (1 + np.exp(-difference)), abs=TOLERANCE)
    assert ((scores.p > 0) & (scores.p < 1)).all()
    assert len(set(scores.p.round(6))) > 1


def test_a_score_does_not_depend_on_company_order_or_padding(scorer):
    alone = np.array([scorer.score(QUERY, [item(text)]).p[0] for text in TEXTS])
    together = scorer.score(QUERY, [item(text) for text in TEXTS]).p
    reversed_ = scorer.score(QUERY, [item(text) for text in reversed(TEXTS)]).p[::-1]
    assert np.abs(alone - together).max() < TOLERANCE
    assert np.abs(reversed_ - together).max() < TOLERANCE


def test_small_forwards_score_like_large_ones(scorer, monkeypatch):
    large = scorer.score(QUERY, [item(text) for text in TEXTS]).p
    monkeypatch.setattr(yes_no, "FORWARD_TOKENS", 1)
    assert np.abs(scorer.score(QUERY, [item(text) for text in TEXTS]).p - large).max() < TOLERANCE


@given(st.lists(st.integers(1, 600), max_size=60), st.integers(1, 4_096))
def test_batches_hold_everything_once_within_the_budget(lengths, budget):
    made = list(batches(lengths, budget))
    assert sorted(at for batch in made for at in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or max(lengths[at] for at in batch) * len(batch) <= budget for batch in made)


def test_long_text_is_cut_where_stated_and_said(scorer):
    long = scorer.score(ScoringQuery("nurse " * 300, None), [item("clerk " * 5_000), item("clerk " * 512), item("no")])
    assert long.notes == (
        "language model: query cut to 256 tokens",
        "language model: 1 postings cut to 512 tokens",
    )
    assert long.p[0] == pytest.approx(long.p[1], abs=TOLERANCE)


def test_what_the_model_reads():
    assert item_text(item("text").update) == "text"
    assert item_text(item(None, summary="short").update) == "x\nshort"
    assert item_text(item(None, attributes=None).update) == ""


def test_the_model_id_changes_with_weights_and_wording(scorer, directory, tmp_path):
    assert YesNoScorer(directory).model_id == scorer.model_id
    other = make_directory(tmp_path / directory.name, seed=1)
    changed = YesNoScorer(other)
    assert changed.model_id != scorer.model_id
    (other / TEMPLATE_FILE).write_text(json.dumps({"before": "a", "between": "b", "after": "c"}))
    assert YesNoScorer(other).model_id != changed.model_id
    (other / TEMPLATE_FILE).write_text(json.dumps({"before": "a"}))
    with pytest.raises(UnfitScorer, match="before, between, after"):
        YesNoScorer(other)


def test_no_such_directory(tmp_path):
    with pytest.raises(UnfitScorer, match=r"has no config\.json; expected the directory"):
        YesNoScorer(tmp_path / "missing")


def test_a_tokenizer_without_yes_and_no(tmp_path):
    with pytest.raises(UnfitScorer, match="no single token for 'yes'"):
        YesNoScorer(make_directory(tmp_path, words=["maybe", "no"]))


def test_a_tokenizer_of_another_model(tmp_path):
    with pytest.raises(UnfitScorer, match="do not belong together"):
        YesNoScorer(make_directory(tmp_path, vocabulary=8))


def test_weights_missing_or_damaged(tmp_path, directory):
    import safetensors.torch

    path = make_directory(tmp_path) / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    safetensors.torch.save_file({n: w for n, w in weights.items() if "layers.1" not in n}, path, {"format": "pt"})
    with pytest.raises(UnfitScorer, match="would be random"):
        YesNoScorer(tmp_path)
    path.write_bytes(b"damaged")
    with pytest.raises(UnfitScorer, match="cannot be used as a yes/no scorer"):
        YesNoScorer(tmp_path)


def test_weights_with_nan_score_nothing(tmp_path):
    import safetensors.torch

    path = make_directory(tmp_path) / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    weights["lm_head.weight"][1] = float("nan")
    safetensors.torch.save_file(weights, path, {"format": "pt"})
    with pytest.raises(NonFiniteScore, match="1 of 1 scores are not probabilities"):
        YesNoScorer(tmp_path).score(QUERY, [item("nurse")])


def test_nobody_waits_for_a_forward(scorer):
    with pytest.raises(CallerLeft):
        scorer.score(QUERY, [item("nurse")], Caller(has_left=lambda: True))
    with pytest.raises(DeadlinePassed, match="before its forward"):
        scorer.score(QUERY, [item("nurse")], Caller(deadline_s=0.0))


def test_nobody_waits_past_a_deadline_for_somebody_elses_forward(scorer):
    with scorer._lock, pytest.raises(DeadlinePassed, match="before its forward"):
        scorer.score(QUERY, [item("nurse")], Caller(deadline_s=time.monotonic() + 0.05))


def test_a_forward_that_fails_is_told_until_one_does_not(scorer, monkeypatch):
    def dead(**_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    assert scorer.health().ready
    with monkeypatch.context() as broken:
        broken.setattr(scorer, "_model", dead)
        with pytest.raises(RuntimeError):
            scorer.score(QUERY, [item("nurse")])
        assert (scorer.health().ready, "illegal memory access" in scorer.health().reason) == (False, True)
    scorer.score(QUERY, [item("nurse")])
    assert scorer.health().ready


def test_the_model_id_says_what_it_computes_in_and_where(scorer, directory):
    assert scorer.model_id.startswith(f"yes-no-float32-cpu:{directory.name}:")
