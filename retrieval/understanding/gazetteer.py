"""Towns, states and countries by name. Read-only after its first use; no network, no clock.

The table is made by training/gazetteer.py from GeoNames (CC BY 4.0). It is kept as the text it came in, one string a
name, and a record is parsed when somebody asks for it: 50,000 names cost some 15 MB and a tenth of a second.
"""

from __future__ import annotations

import functools
import gzip
import re
import unicodedata
from dataclasses import dataclass
from importlib import resources

from penstock.retrieval.understanding.place_names import COUNTRY_NAMES, REGIONS

TABLE = "gazetteer.tsv.gz"
COUNTRY = "@"  # in front of a country's name in the table; its one record is CODE|Name
LONGEST_NAME = 5  # words

_NOT_WORD = re.compile(r"[^\w]+")
_SHORT = {"saint": "st", "ft": "fort", "mt": "mount", "afb": "air force base", "pt": "point"}


@dataclass(frozen=True, slots=True)
class Town:
    """One populated place. Degrees are WGS 84; `region` is ISO 3166-2 without the country, empty where not known."""

    name: str
    country: str
    region: str
    lat: float
    lon: float
    population: int
    nearby: tuple[str, ...]  # other regions of its country within 80 km


def fold(name: str) -> str:
    """The form names are compared in: lower case, no accents, no punctuation, saint as st, AFB spelt out."""
    bare = "".join(char for char in unicodedata.normalize("NFKD", name.casefold()) if not unicodedata.combining(char))
    return " ".join(_SHORT.get(word, word) for word in _NOT_WORD.sub(" ", bare.replace("'", "")).split())


@functools.cache
def _table() -> dict[str, str]:
    raw = gzip.decompress((resources.files("penstock.retrieval.understanding") / TABLE).read_bytes()).decode()
    return dict(line.split("\t", 1) for line in raw.splitlines())


def load() -> int:
    """Reads the table now rather than at the first query. Returns how many names it has."""
    return len(_table())


@functools.lru_cache(maxsize=4096)
def towns(folded: str) -> tuple[Town, ...]:
    """Every town of that name, the most populous first; empty when there is none."""
    line = _table().get(folded)
    return () if line is None else tuple(_parse(record) for record in line.split("\t"))


def _parse(record: str) -> Town:
    name, country, region, lat, lon, population, nearby = record.split("|")
    around = tuple(nearby.split(",")) if nearby else ()
    return Town(name, country, region, float(lat), float(lon), int(population), around)


@functools.cache
def regions() -> dict[str, tuple[tuple[str, str], ...]]:
    """(country, region) of every region by its folded full name."""
    found: dict[str, tuple[tuple[str, str], ...]] = {}
    for country, names in REGIONS.items():
        for code, name in names.items():
            found[fold(name)] = (*found.get(fold(name), ()), (country, code))
    return found


@functools.cache
def region_codes() -> dict[str, tuple[tuple[str, str], ...]]:
    """(country, region) of every region by its code in upper case; US states before others."""
    found: dict[str, tuple[tuple[str, str], ...]] = {}
    for country, names in REGIONS.items():
        for code in names:
            found[code] = (*found.get(code, ()), (country, code))
    return found


@functools.cache
def countries() -> dict[str, str]:
    """ISO 3166-1 alpha-2 by folded name."""
    return {**{name: code for name, (code, _) in _country_records().items()}, **COUNTRY_NAMES}


@functools.cache
def country_names() -> dict[str, str]:
    """Names for people by ISO 3166-1 alpha-2."""
    return dict(_country_records().values())


def _country_records() -> dict[str, tuple[str, str]]:
    """(code, name) by folded name."""
    found = {}
    for name, record in _table().items():
        if name.startswith(COUNTRY):
            code, _, shown = record.partition("|")
            found[name.removeprefix(COUNTRY)] = (code, shown)
    return found
