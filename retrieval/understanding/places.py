"""A posting's place as text ("Washington, District of Columbia") into the structured place that filters compare.

Pure. Only what is certain is filled: a town that is not listed keeps its name and its region but gets no coordinates,
and a text that names several places keeps what they have in common.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import reduce

from penstock.retrieval.understanding import gazetteer
from penstock.retrieval.understanding.gazetteer import Town, fold
from penstock.retrieval.understanding.place_names import CITY_NICKNAMES, EXTRA, TERRITORIES
from penstock.schemas.events import Location

DOMINANT = 4.0  # a bare name means its largest town when that has so many times the people of the next
SMALLEST_BARE = 100_000  # people; a smaller town needs its region or country beside it

_SEVERAL = re.compile(r"\s*(?:;|\||\s/\s|\n|\bor\b)\s*")
_NOWHERE = re.compile(r"\b(?:anywhere|multiple|various|several|negotiable|location|remote|worldwide)\b", re.IGNORECASE)
_INSTALLATION = re.compile(
    r"\b(?:joint base|naval (?:air station|base|station|shipyard)|navy yard|(?:air force|marine corps|air) base)\b"
)
_POSTCODE = re.compile(r"\s+\d{4,5}(?:-\d{4})?$")


def resolve(text: str) -> Location | None:
    """The place a posting's text names, `text` kept as it was; None when nothing in it is certain."""
    parts = [part for part in _SEVERAL.split(text) if part.strip()]
    if not parts:
        return None
    found = [_resolve_one(part) for part in parts]
    places = [place for place in found if place is not None]
    if len(places) < len(found):
        return None
    place = reduce(_common, places)
    return replace(place, text=text) if place.country else None


def _common(one: Location, other: Location) -> Location:
    """What two places agree on."""
    if one == other:
        return one
    country = one.country if one.country == other.country else None
    region = one.region if country and one.region == other.region else None
    city = one.city if region and one.city == other.city else None
    return Location(country=country, region=region, city=city)


def _resolve_one(text: str) -> Location | None:
    parts = [part for part in (re.sub(r"\(.*?\)", " ", piece).strip() for piece in text.split(",")) if part]
    if not parts:
        return None
    country = None
    if len(parts) > 1 and (code := gazetteer.countries().get(fold(parts[-1]))) and not _us_region(parts[-1]):
        country, parts = code, parts[:-1]
    if len(parts) == 1 and country is None:
        parts = _without_comma(parts[0])
    region = _region(parts[-1], country) if len(parts) > 1 or country else None
    if region is not None:
        elsewhere = gazetteer.countries().get(fold(parts[-1]))
        if country is None and elsewhere and len(parts) > 1 and _only_in(parts[0], elsewhere, region):
            return _town_of(parts[:-1], elsewhere, "")  # Tbilisi, Georgia
        country, parts = region[0], parts[:-1]
    if region is None and country is None:
        return _bare(parts[-1]) if len(parts) == 1 else None
    code = region[1] if region else ""
    if code in TERRITORIES:
        country, code = code, ""
    return _town_of(parts, country or "", code)


def _without_comma(part: str) -> list[str]:
    """`Sydney NSW` as its two parts; anything else as it is."""
    head, _, tail = part.rpartition(" ")
    return [head, tail] if head and tail.isupper() and _region(tail, None) else [part]


def _only_in(part: str, country: str, region: tuple[str, str]) -> bool:
    """Whether the gazetteer has a town of that name in the country and none in the region."""
    found = {(town.country, town.region) for town in gazetteer.towns(fold(part))}
    return region not in found and any(code == country for code, _ in found)


def _town_of(parts: list[str], country: str, region: str) -> Location:
    """The last part that the gazetteer lists there, else the first part by name alone."""
    named = [part for part in parts if not _NOWHERE.search(part)]
    for part in reversed(named):
        for name in _spellings(part):
            for town in gazetteer.towns(name):
                if town.country == country and region in ("", town.region):
                    return _located(town, part)
    city = named[0] if named and fold(named[0]) not in gazetteer.countries() else None
    return Location(country=country, region=region or None, city=city)


def _spellings(part: str) -> list[str]:
    """The name, New York as New York City, and the town in the name of an installation."""
    name = fold(part)
    found = [name, f"{name} city"]
    if bare := _INSTALLATION.sub(" ", name).strip():
        found.append(bare)
    return found


def _located(town: Town, city: str) -> Location:
    return Location(country=town.country, region=town.region or None, city=city, lat=town.lat, lon=town.lon)


def _us_region(part: str) -> bool:
    """Georgia, Ohio or AL: read as a state, before any country of that name."""
    found = _region(part, None)
    return found is not None and found[0] == "US"


def _region(part: str, country: str | None) -> tuple[str, str] | None:
    """(country, region) of a full name, or of a code in upper case as addresses have it."""
    bare = _POSTCODE.sub("", part)
    candidates = gazetteer.regions().get(fold(bare), ())
    if not candidates and (bare.isupper() or country is not None):
        candidates = gazetteer.region_codes().get(bare.upper(), ())
    for candidate in candidates:
        if country in (None, candidate[0]):
            return candidate
    return ("US", bare.upper()) if bare in TERRITORIES and country in (None, "US") else None


def _bare(part: str) -> Location | None:
    """A name with nothing beside it: a region, a country, or a town that clearly outweighs its namesakes."""
    name = fold(part)
    if name in CITY_NICKNAMES:
        city, region = CITY_NICKNAMES[name]
        return next(_located(town, town.name) for town in gazetteer.towns(city) if town.region == region)
    if name == "washington":
        return Location(country="US")  # the state or the capital
    if regions := gazetteer.regions().get(name):
        return Location(country=regions[0][0], region=regions[0][1])
    if name in gazetteer.countries():
        return Location(country=gazetteer.countries()[name])
    if name in EXTRA:
        country, code = EXTRA[name]
        return Location(country=country, region=code)
    towns = gazetteer.towns(name)
    if not towns or towns[0].population < SMALLEST_BARE:
        return None
    if len(towns) > 1 and towns[0].population < DOMINANT * towns[1].population:
        return None
    return _located(towns[0], towns[0].name)
