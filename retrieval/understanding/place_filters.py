"""A place a query asks for, and the filter of it. A town is a circle; where a posting has no coordinates its region
decides, any region that the circle may reach being good enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from penstock.retrieval.understanding import gazetteer
from penstock.retrieval.understanding.gazetteer import Town
from penstock.retrieval.understanding.place_names import REGIONS, TERRITORIES
from penstock.schemas import filters
from penstock.schemas.events import Filter, Missing

IN_KM = 50.0
NEAR_KM = 80.0
OUT_KM = 25.0  # of a town that is ruled out
SMALLEST_KM = 15.0


@dataclass(frozen=True, slots=True)
class Place:
    """A country, a region of one, or a circle around a town."""

    country: str
    region: str | None = None
    town: Town | None = None
    radius_km: float = IN_KM
    doubtful: bool = False  # only meant if nothing else in the query says otherwise
    said: str | None = None  # the larger area that was named, for the label

    @staticmethod
    def of(town: Town, doubtful: bool = False) -> Place:
        return Place(town.country, town.region or None, town, doubtful=doubtful)

    def within(self, radius_km: float) -> Place:
        return replace(self, radius_km=radius_km)


def any_of(places: Sequence[Place], radius_km: float | None = None) -> Filter:
    """The filter of all places as alternatives, `radius_km` instead of each one's own where given."""
    regions: dict[str, list[str]] = {}
    trees: list[Filter] = []
    for place in places:
        if place.town is None and place.region is not None:
            regions.setdefault(place.country, []).append(place.region)
        elif place.town is None:
            trees.append(_country(place.country))
        else:
            trees.append(_town(place.town, radius_km or place.radius_km))
    trees += [_regions(country, codes) for country, codes in regions.items()]
    return filters.any_of(*trees)


def _country(code: str) -> Filter:
    inside = filters.is_in("location.country", code, missing=Missing.INCLUDE)
    if code not in TERRITORIES:
        return inside
    # Some producers write Guam as a region of the United States.
    return filters.any_of(inside, filters.is_in("location.region", code))


def _regions(country: str, codes: Sequence[str]) -> Filter:
    tree = filters.all_of(
        filters.is_in("location.country", country, missing=Missing.INCLUDE),
        filters.is_in("location.region", *codes, missing=Missing.INCLUDE),
    )
    assert tree is not None
    return tree


def _town(town: Town, radius_km: float) -> Filter:
    reached = (town.region, *town.nearby)
    tree = filters.all_of(
        filters.is_in("location.country", town.country, missing=Missing.INCLUDE),
        filters.is_in("location.region", *reached, missing=Missing.INCLUDE) if town.region else None,
        filters.near(town.lat, town.lon, radius_km, missing=Missing.INCLUDE),
    )
    assert tree is not None
    return tree


def label(places: Sequence[Place]) -> str:
    """For people: "in Ohio", "near Denver, CO", "in Oregon or Washington"."""
    near = all(place.town is not None and place.radius_km != IN_KM for place in places)
    names = [_name(place) for place in places if not place.doubtful] or [_name(place) for place in places]
    return f"{'near' if near else 'in'} {' or '.join(dict.fromkeys(names))}"


def _name(place: Place) -> str:
    if place.said is not None:
        return place.said
    if place.town is not None:
        return f"{place.town.name}, {place.region or place.country}"
    if place.region is not None:
        return REGIONS.get(place.country, {}).get(place.region, place.region)
    return gazetteer.country_names().get(place.country, place.country)
