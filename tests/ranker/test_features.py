"""The cheap scorer's features: each says what its name says, and of one pair alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import penstock.ranker.backends.features as module
from penstock.ranker.backends.features import FEATURES, ItemFeatures, Rarity, compute, query_features
from penstock.ranker.backends.hints import grades_in, regions_in

RARITY = Rarity({"nurs": 2.0, "manag": 2.0}, 6.0)


def features(query: str, item: ItemFeatures) -> dict[str, float]:
    row = compute(query_features(query, RARITY), [item])[0]
    return dict(zip(FEATURES, row.tolist(), strict=True))


def test_coverage_weighs_terms_by_rarity() -> None:
    made = features("nurse phlebotomy", ItemFeatures(title="Nurse", company="Phlebotomy Inc", summary="wards"))
    assert made["title_coverage"] == pytest.approx(2 / 8)
    assert made["head_coverage"] == pytest.approx(1.0)
    assert made["title_purity"] == 1.0
    assert made["title_whole"] == 1.0
    made = features("nurse phlebotomy", ItemFeatures(title="Nurse", summary="Draws blood"))
    assert made["head_coverage"] == made["text_coverage"] == pytest.approx(2 / 8)
    assert made["rarest_missing"] == pytest.approx(6 / 8)


def test_phrase_and_initials() -> None:
    assert features("data scientist", ItemFeatures(title="Senior Data Scientist"))["title_phrase"] == 1.0
    assert features("data scientist", ItemFeatures(title="Scientist, Clinical Data"))["title_phrase"] == 0.0
    assert features("LPN", ItemFeatures(title="Licensed Practical Nurse"))["title_initials"] == 1.0
    assert features("LPN", ItemFeatures(title="Registered Nurse"))["title_initials"] == 0.0


def test_excluded_terms_are_not_wanted() -> None:
    held = ItemFeatures(title="ICU Nurse")
    made = features("nurse, not ICU, days", held)
    assert made["excluded"] == 1.0
    assert made["title_coverage"] == pytest.approx(2 / 8)
    assert features("nurse, ICU", held)["excluded"] == 0.0


@pytest.mark.parametrize(
    ("query", "location", "expected"),
    [
        ("nurse in Columbus, Ohio", "Columbus, Ohio", "region_match"),
        ("nurse in OH", "Columbus, Ohio", "region_match"),
        ("nurse in Texas", "Columbus, Ohio", "region_conflict"),
        ("nurse in Texas", None, "region_open"),
        ("nurse", "Columbus, Ohio", None),
        ("VA nurse", "Columbus, Ohio", None),
    ],
)
def test_regions(query: str, location: str | None, expected: str | None) -> None:
    made = features(query, ItemFeatures(title="Nurse", location=location))
    names = {"region_match", "region_conflict", "region_open"}
    assert {name for name in names if made[name]} == ({expected} if expected else set())


def test_washington_is_a_state_unless_it_is_the_district() -> None:
    assert regions_in("Washington, District of Columbia") == {"DC"}
    assert regions_in("Washington DC") == {"DC"}
    assert regions_in("Seattle, Washington") == {"WA"}
    assert regions_in("West Virginia") == {"WV"}
    assert regions_in("work or play in me") == frozenset()


@pytest.mark.parametrize(
    ("query", "grade", "expected"),
    [
        ("GS-12", "GS-12", "grade_match"),
        ("gs 10 job", "GS-9/11", "grade_match"),
        ("GS-12 or GS-13", "GS-13", "grade_match"),
        ("GS-12", "GS-13", "grade_near"),
        ("GS-7", "GS-13", "grade_far"),
        ("WG-10", "GS-10", "grade_far"),
        ("GS-12", None, "grade_open"),
        ("GS-12", "VN-00", "grade_open"),
        ("nurse", "GS-12", None),
    ],
)
def test_grades(query: str, grade: str | None, expected: str | None) -> None:
    made = features(query, ItemFeatures(title="x", grade=grade))
    names = {"grade_match", "grade_near", "grade_far", "grade_open"}
    assert {name for name in names if made[name]} == ({expected} if expected else set())


def test_grade_ranges_are_read_whole() -> None:
    assert grades_in("GS-9/11") == (("gs", 9, 11),)
    assert grades_in("GS-6 or GS-7") == (("gs", 6, 7),)
    assert grades_in("nothing here") == ()


def test_roles_remote_and_hours() -> None:
    made = features("nurse manager", ItemFeatures(title="Supervisory Nurse"))
    assert (made["lead_match"], made["lead_missing"], made["lead_extra"]) == (1.0, 0.0, 0.0)
    assert features("nurse", ItemFeatures(title="Supervisory Nurse"))["lead_extra"] == 1.0
    assert features("remote nurse", ItemFeatures(title="Nurse", remote="REMOTE"))["remote_match"] == 1.0
    assert features("remote nurse", ItemFeatures(title="Nurse", remote="ONSITE"))["remote_conflict"] == 1.0
    open_item = features("remote nurse", ItemFeatures(title="Nurse", remote="UNKNOWN"))
    assert (open_item["remote_match"], open_item["remote_conflict"]) == (0.0, 0.0)
    assert features("part-time", ItemFeatures(title="x", employment_type="FULL_TIME"))["hours_conflict"] == 1.0
    assert features("full-time", ItemFeatures(title="x", employment_type="TEMPORARY"))["hours_conflict"] == 0.0


def test_scores_of_retrieval_pass_through() -> None:
    made = features("nurse", ItemFeatures(title="x", dense=0.5, lexical=0.25))
    assert (made["dense"], made["lexical"]) == (0.5, 0.25)
    assert made["dense_by_length"] == pytest.approx(0.5 * np.log(2))


@given(st.text(max_size=80), st.lists(st.builds(ItemFeatures, title=st.text(max_size=40)), max_size=4))
def test_every_pair_is_finite_and_independent_of_the_batch(query: str, items: list[ItemFeatures]) -> None:
    asked = query_features(query, RARITY)
    together = compute(asked, items)
    assert together.shape == (len(items), len(FEATURES))
    assert np.isfinite(together).all()
    for row, item in zip(together, items, strict=True):
        np.testing.assert_array_equal(row, compute(asked, [item])[0])


def test_shipped_weights_are_for_these_features() -> None:
    content = json.loads(Path(module.__file__).with_name("fused_scorer.json").read_text())
    assert tuple(content["features"]) == FEATURES
    assert len(content["weights"]) == len(FEATURES)
    assert np.isfinite([*content["weights"], content["intercept"]]).all()
    assert content["made_by"].startswith("python training/fused_scorer.py")
    weights = dict(zip(FEATURES, content["weights"], strict=True))
    assert weights["region_match"] > weights["region_conflict"]
    assert weights["grade_match"] > weights["grade_far"]
