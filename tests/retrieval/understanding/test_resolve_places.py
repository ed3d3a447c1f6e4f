"""A posting's place as text, resolved."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.retrieval.understanding import gazetteer, places


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Washington, District of Columbia", ("US", "DC", "Washington")),
        ("Pentagon, Arlington, Virginia", ("US", "VA", "Arlington")),
        ("Eglin AFB, Florida", ("US", "FL", "Eglin AFB")),
        ("Togus, Maine", ("US", "ME", "Togus")),
        ("New York, NY 10001", ("US", "NY", "New York")),
        ("Columbus, OH, USA", ("US", "OH", "Columbus")),
        ("Columbus", ("US", "OH", "Columbus")),
        ("Atlanta, Georgia", ("US", "GA", "Atlanta")),
        ("Tbilisi, Georgia", ("GE", None, "Tbilisi")),
        ("Sydney NSW", ("AU", "NSW", "Sydney")),
        ("Toronto, Ontario, Canada", ("CA", "ON", "Toronto")),
        ("San Juan, PR", ("PR", None, "San Juan")),
        ("Berlin, Germany", ("DE", None, "Berlin")),
        ("Anywhere in the U.S. (remote job), United States", ("US", None, None)),
        ("Boston, MA; New York, NY", ("US", None, None)),
        ("Washington", ("US", None, None)),
        ("Ohio", ("US", "OH", None)),
    ],
)
def test_resolved(text, expected):
    place = places.resolve(text)
    assert place is not None
    assert (place.country, place.region, place.city) == expected
    assert place.text == text


@pytest.mark.parametrize(
    "text", ["", "Remote", "Multiple Locations", "Springfield", "Headquarters", "Boston, MA; Moon"]
)
def test_what_is_not_certain_is_not_filled(text):
    assert places.resolve(text) is None


def test_coordinates_come_with_a_listed_town_only():
    listed, unlisted = places.resolve("Denver, Colorado"), places.resolve("Togus, Maine")
    assert listed is not None and unlisted is not None
    assert listed.lat == pytest.approx(39.74, abs=0.05) and listed.lon == pytest.approx(-104.98, abs=0.05)
    assert unlisted.lat is None and unlisted.lon is None


@given(st.text(max_size=80) | st.lists(st.sampled_from(["Ohio", "PR", ",", " ", ";", "Paris", "(", ")"])).map("".join))
def test_any_text_is_resolved_or_not_and_never_fails(text):
    place = places.resolve(text)
    assert place is None or (place.text == text and place.country is not None)
    assert place is None or (place.lat is None) == (place.lon is None)


def test_names_fold_together():
    assert gazetteer.fold("Coeur d’Alene".replace("’", "'")) == gazetteer.fold("COEUR D'ALENE")
    assert gazetteer.fold("St. Louis") == gazetteer.fold("Saint Louis")
    assert gazetteer.fold("Zürich") == "zurich"


def test_towns_come_largest_first():
    found = gazetteer.towns("columbus")
    assert [town.region for town in found[:2]] == ["OH", "GA"]
    assert [town.population for town in found] == sorted((town.population for town in found), reverse=True)
    assert gazetteer.towns("no such town") == ()
