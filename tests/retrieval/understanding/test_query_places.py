"""Places in queries: what stands beside a name decides what it is."""

import pytest

from penstock.retrieval.understanding.rules import RuleUnderstander
from penstock.schemas.filters import describe


@pytest.fixture(scope="module")
def understander():
    return RuleUnderstander()


def places(understander, query):
    return [one for one in understander.understand(query, now_ms=0) if one.needs_values]


@pytest.mark.parametrize(
    ("query", "label"),
    [
        ("nurse in Ohio", "in Ohio"),
        ("nurse wyoming", "in Wyoming"),
        ("cook, Columbus, Ohio", "in Columbus, OH"),
        ("cook in Columbus", "in Columbus, OH"),
        ("welder near Denver", "near Denver, CO"),
        ("clerk in the Chicago area", "near Chicago, IL"),
        ("tech memphis tn", "in Memphis, TN"),
        ("car mechanic, dc / arlington va area", "in Washington, DC or Arlington, VA"),
        ("nurse in Oregon or Washington", "in Oregon or Washington"),
        ("GS-15 chief in Washington DC", "in Washington, DC"),
        ("RN in southwest Virginia", "in Virginia"),
        ("nurse in west Texas", "in Texas"),
        ("mechanic for a national park, Montana or Wyoming", "in Montana or Wyoming"),
        ("physician in North or South Dakota", "in North or South Dakota"),
        ("technician in the Northeast", "in the Northeast"),
        ("school secretary in Germany", "in Germany"),
        ("barista in Naples, Italy", "in Naples, IT"),
        ("teacher in Tbilisi, Georgia", "in Tbilisi, GE"),
        ("nurse in Georgia", "in Georgia"),
        ("project manager in Sydney NSW", "in Sydney, NSW"),
        ("optical dispenser hobart tasmania", "in Hobart, TAS"),
        ("engineer in Berlin or Munich", "in Berlin, DE or Munich, DE"),
        ("nurse in Ohio, Kentucky ok", "in Ohio or Kentucky"),
        ("supervisor, not Washington DC", "not in Washington, DC"),
        ("psychotherapy AZ", "in Arizona"),
        ("nurse in St. Louis", "in St. Louis, MO"),
        ("nurse in Saint Louis, Missouri", "in St. Louis, MO"),
    ],
)
def test_place(understander, query, label):
    assert [one.label for one in places(understander, query)] == [label]


@pytest.mark.parametrize(
    "query",
    [
        "mobile developer",
        "reading specialist",
        "nice people",
        "Buffalo wings cook",
        "OR nurse, CT tech, PA, MA, ME",
        "nurse, PA or NP",
        "in or out of the ME department",
        "University of Michigan researcher",
        "Mississippi river pilot",
        "Texas Instruments engineer",
        "normal hours, spring start",
        "NH-4 engineer",
        "nurse in Texas or anywhere",
        "ideally in Ohio",
        "I worked in Ohio",
        "outside the US",
    ],
)
def test_no_place_is_demanded(understander, query):
    assert [one.label for one in places(understander, query) if not one.label.startswith("not ")] == []


def test_a_region_is_tied_to_its_country(understander):
    (one,) = places(understander, "nurse in Ohio")
    assert describe(one.filter) == "location.country?=US AND location.region?=OH"


def test_a_town_is_a_circle_and_where_there_are_no_coordinates_the_regions_it_reaches(understander):
    (one,) = places(understander, "nurse in Washington DC")
    country, region, circle = one.filter.children
    assert country.values == ("US",)
    assert {"DC", "MD", "VA"} <= set(region.values) and "OH" not in region.values
    assert circle.radius_km == 50.0


def test_a_name_that_several_large_towns_bear_means_any_of_them(understander):
    (one,) = places(understander, "nurse in Springfield")
    regions = {child.children[1].values[0] for child in one.filter.children}
    assert {"MO", "MA", "IL"} <= regions


def test_a_distance_is_read(understander):
    (one,) = places(understander, "within 30 miles of Boulder, CO")
    assert one.filter.children[2].radius_km == pytest.approx(48.3, abs=0.1)


def test_puerto_rico_is_found_however_producers_write_it(understander):
    (one,) = places(understander, "nurse in Puerto Rico")
    assert describe(one.filter) == "location.country?=PR OR location.region=PR"
