"""The fused scorer: a line over features, on weights made here and on those that are shipped."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.ranker.backends.expectation import DenseExpectation
from penstock.ranker.backends.features import FEATURES
from penstock.ranker.backends.fused import FusedScorer, item_features
from penstock.ranker.backends.scorer import Scores, ScoringItem, ScoringQuery
from penstock.ranker.errors import NonFiniteScore, UnfitScorer
from penstock.schemas.events import Attributes, EmploymentType, IndexOp, IndexUpdate, Location, Remote


def made(**changes):
    content = {
        "features": list(FEATURES),
        "weights": [4.0 if name == "dense" else 1.0 if name == "title_coverage" else 0.0 for name in FEATURES],
        "intercept": -1.0,
        "rarity": {"unseen": 5.0, "idf": {"nurs": 2.0}},
        **changes,
    }
    return FusedScorer(json.dumps(content).encode(), "test.json")


def item(title="Nurse", dense=0.5, lexical=0.0, **attributes):
    attributes = Attributes(title=title, **attributes)
    update = IndexUpdate(posting_id="p", version=1, op=IndexOp.UPSERT, attributes=attributes, produced_at=0)
    return ScoringItem(dense, lexical, update)


QUERY = ScoringQuery("nurse in ohio", None)


def test_p_is_the_sigmoid_of_the_line_and_the_parts_sum_to_its_log_odds():
    scorer = made()
    scores = scorer.score(QUERY, [item("Nurse", 0.5), item("Welder", 0.25)])
    parts = [dict(zip(scorer.part_names, row, strict=True)) for row in scores.parts]
    assert parts[1]["dense"] == pytest.approx(1.0)
    assert parts[1]["base"] == pytest.approx(-1.0)
    assert parts[1]["words"] == 0.0 < parts[0]["words"]
    for p, row in zip(scores.p, scores.parts, strict=True):
        assert p == pytest.approx(1 / (1 + math.exp(-row.sum())))


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=5))
def test_probability_is_monotone_in_the_line_and_never_overflows(values):
    p = made().score(QUERY, [item(dense=value) for value in values]).p
    assert ((p >= 0) & (p <= 1)).all()
    order = np.argsort(values, kind="stable")
    assert (np.diff(p[order]) >= 0).all()


def test_a_pair_scores_the_same_in_any_company():
    items = [item(f"Nurse {number}", number / 10) for number in range(5)]
    together = made().score(QUERY, items).p
    assert [made().score(QUERY, [one]).p[0] for one in items] == together.tolist()


def test_what_the_features_see_of_a_posting():
    seen = item_features(
        item(
            company="Initech",
            location=Location(city="Columbus", region="OH"),
            grade="GS-12",
            remote=Remote.REMOTE,
            employment_type=EmploymentType.UNKNOWN,
        )
    )
    assert (seen.location, seen.remote, seen.employment_type) == ("Columbus, OH", "REMOTE", None)
    assert item_features(item(location=Location(text="Ohio, anywhere", city="x"))).location == "Ohio, anywhere"


def test_the_model_id_follows_the_weights():
    assert made().model_id == made().model_id != made(intercept=-2.0).model_id


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"features": ["dense"]}, "other features than this release computes"),
        ({"features": list(reversed(FEATURES))}, "another order"),
        ({"weights": [1.0]}, f"1 weights for {len(FEATURES)} features"),
        ({"weights": [math.nan] * len(FEATURES)}, "not finite"),
        ({"intercept": None}, "TypeError"),
        ({"rarity": {}}, "KeyError"),
    ],
)
def test_weights_that_do_not_fit_are_refused(changes, says):
    with pytest.raises(UnfitScorer, match=says):
        made(**changes)


def test_a_damaged_file_is_refused():
    with pytest.raises(UnfitScorer, match=r"test\.json is not a fused scorer"):
        FusedScorer(b"{", "test.json")


@pytest.mark.parametrize("p", [math.nan, math.inf, -0.1, 1.1])
def test_scores_that_are_no_probabilities_cannot_be_made(p):
    with pytest.raises(NonFiniteScore):
        Scores(np.array([0.5, p]), np.zeros((2, 1)))
    with pytest.raises(NonFiniteScore):
        Scores(np.array([0.5]), np.array([[math.nan]]))


def test_the_shipped_scorer_tells_a_good_posting_from_a_bad_one():
    scorer = FusedScorer.shipped()
    query = ScoringQuery("registered nurse night shift", None)
    good, bad = scorer.score(query, [item("Registered Nurse", 0.6, 0.5), item("Welder", 0.05, 0.0)]).p
    assert 0 < bad < 0.3 < good < 1


def test_an_unknown_dense_product_is_expected_from_the_words():
    scorer, alone = FusedScorer.shipped(), ScoringQuery("registered nurse in ohio", None)
    named, other = item("Registered Nurse", 0.0, 0.2), item("Welder", 0.0, 0.0)
    unknown = [replace(each, has_dense=False) for each in (named, other)]
    zero, expected = scorer.score(alone, [named, other]).p, scorer.score(alone, unknown).p
    good = scorer.score(alone, [replace(named, dense=0.6)]).p[0]
    assert expected[0] > expected[1], "the order is that of the words"
    assert zero[0] < expected[0] < 2 * good, "not taken for a pair with nothing in common, nor for a sure one"
    assert expected[1] < 0.2
    mixed = scorer.score(alone, [unknown[0], named]).p
    assert mixed.tolist() == [expected[0], zero[0]], "a pair's score is its own"


def test_an_expectation_that_does_not_fit_is_refused():
    for broken in (
        b"{}",
        b'{"of": ["nothing"], "weights": [1], "intercept": 0}',
        b'{"of": [], "weights": [1], "intercept": 0}',
    ):
        with pytest.raises(UnfitScorer, match=r"training/dense_expectation\.py"):
            DenseExpectation(broken, "test.json")
    assert FusedScorer.shipped().model_id != made().model_id
