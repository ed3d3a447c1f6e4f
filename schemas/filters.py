"""The filter tree: which fields there are, what each kind of clause may say, and the short text form for people.

One vocabulary for the wire, HTTP and the command line. A clause is three-valued: what it says of a posting that
lacks the attribute is its `missing`, whatever NOTs stand above it.

    remote=REMOTE                      equality; commas are alternatives: employment_type=CONTRACT,TEMPORARY
    salary.annual_max>=60000           ranges, both ends inclusive: >= and <=
    posted_at>=2026-11-01T00:00:00Z    times as ISO 8601 with an offset, or epoch milliseconds
    location~39.96,-82.99,50km         within a great-circle radius
    !company=Initech                   not
    grade?=GS-12                       a question mark lets postings without the attribute through
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from enum import Enum

from penstock.schemas import events
from penstock.schemas.errors import InvalidRecord
from penstock.schemas.events import Filter, FilterKind, Missing
from penstock.schemas.records import Symbol
from penstock.schemas.times import parse_time


class FieldType(Enum):
    """How a field is stored and which clauses it takes."""

    KEYWORD = "keyword"  # IN; compared without case
    KEYWORDS = "keywords"  # IN: any of the attribute's values
    SYMBOL = "symbol"  # IN; one of an enum's symbols, UNKNOWN being "missing"
    NUMBER = "number"  # RANGE
    TIME = "time"  # RANGE, epoch milliseconds
    PLACE = "place"  # NEAR


Symbols = type[Symbol]


@dataclass(frozen=True, slots=True)
class FieldSpec:
    type: FieldType
    doc: str
    symbols: Symbols | None = None


FIELDS: dict[str, FieldSpec] = {
    "posting_id": FieldSpec(FieldType.KEYWORD, "the producer's id"),
    "title.terms": FieldSpec(FieldType.KEYWORDS, "stems of the title's words"),
    "company": FieldSpec(FieldType.KEYWORD, "the employer"),
    "category": FieldSpec(FieldType.KEYWORD, "the producer's category"),
    "grade": FieldSpec(FieldType.KEYWORD, "pay grade as text, for instance GS-12"),
    "skills": FieldSpec(FieldType.KEYWORDS, "any of the posting's skills"),
    "source": FieldSpec(FieldType.KEYWORD, "where the posting came from"),
    "remote": FieldSpec(FieldType.SYMBOL, "place of work", events.Remote),
    "employment_type": FieldSpec(FieldType.SYMBOL, "kind of contract", events.EmploymentType),
    "seniority": FieldSpec(FieldType.SYMBOL, "level", events.Seniority),
    "location.country": FieldSpec(FieldType.KEYWORD, "ISO 3166-1 alpha-2"),
    "location.region": FieldSpec(FieldType.KEYWORD, "state or province, for instance OH"),
    "location.city": FieldSpec(FieldType.KEYWORD, "city"),
    "location": FieldSpec(FieldType.PLACE, "latitude and longitude"),
    "salary.currency": FieldSpec(FieldType.KEYWORD, "ISO 4217"),
    "salary.annual_min": FieldSpec(FieldType.NUMBER, "lowest advertised pay, per year, in its own currency"),
    "salary.annual_max": FieldSpec(FieldType.NUMBER, "highest advertised pay, per year, in its own currency"),
    "posted_at": FieldSpec(FieldType.TIME, "when it was posted"),
    "expires_at": FieldSpec(FieldType.TIME, "when it expires"),
}

# Working time behind "a year", for comparing pay: 2,080 hours, 260 days, 52 weeks, 12 months.
PERIODS_A_YEAR: dict[events.PayPeriod, float] = {
    events.PayPeriod.HOUR: 2080.0,
    events.PayPeriod.DAY: 260.0,
    events.PayPeriod.WEEK: 52.0,
    events.PayPeriod.MONTH: 12.0,
    events.PayPeriod.YEAR: 1.0,
}

MAX_DEPTH = 16
MAX_NODES = 256
MAX_RADIUS_KM = 20_038.0  # half the equator


def annual(amount: float | None, period: events.PayPeriod) -> float | None:
    """`amount` a `period` as an amount a year; None when either is unknown."""
    factor = PERIODS_A_YEAR.get(period)
    return None if amount is None or factor is None else amount * factor


# --- building ----------------------------------------------------------------------------------------------------


def all_of(*children: Filter | None) -> Filter | None:
    """The conjunction of what is given; None when nothing is."""
    given = tuple(child for child in children if child is not None)
    if not given:
        return None
    return given[0] if len(given) == 1 else Filter(kind=FilterKind.ALL, children=given)


def any_of(*children: Filter) -> Filter:
    return children[0] if len(children) == 1 else Filter(kind=FilterKind.ANY, children=children)


def negate(child: Filter) -> Filter:
    return Filter(kind=FilterKind.NOT, children=(child,))


def is_in(field: str, *values: str, missing: Missing = Missing.EXCLUDE) -> Filter:
    return Filter(kind=FilterKind.IN, field=field, values=values, missing=missing)


def in_range(
    field: str, minimum: float | None = None, maximum: float | None = None, missing: Missing = Missing.EXCLUDE
) -> Filter:
    return Filter(kind=FilterKind.RANGE, field=field, minimum=minimum, maximum=maximum, missing=missing)


def near(lat: float, lon: float, radius_km: float, missing: Missing = Missing.EXCLUDE) -> Filter:
    return Filter(kind=FilterKind.NEAR, field="location", lat=lat, lon=lon, radius_km=radius_km, missing=missing)


# --- checking ----------------------------------------------------------------------------------------------------


def check(tree: Filter, path: str = "filters") -> None:
    """Raises InvalidRecord naming the node and the field when the tree breaks a rule; silence means it can run."""
    _check(tree, path, 1, [0])


def _check(node: Filter, path: str, depth: int, count: list[int]) -> None:
    count[0] += 1
    if depth > MAX_DEPTH:
        raise InvalidRecord(path, f"depth {depth}", f"a tree at most {MAX_DEPTH} deep")
    if count[0] > MAX_NODES:
        raise InvalidRecord(path, f"{count[0]} nodes", f"at most {MAX_NODES} nodes")
    if node.kind in (FilterKind.ALL, FilterKind.ANY, FilterKind.NOT):
        if node.kind is FilterKind.NOT and len(node.children) != 1:
            raise InvalidRecord(path, f"NOT with {len(node.children)} children", "exactly one child")
        if not node.children:
            raise InvalidRecord(path, f"{node.kind} without children", "at least one child")
        if node.field is not None:
            raise InvalidRecord(f"{path}.field", node.field, f"no field on a group ({node.kind})")
        for position, child in enumerate(node.children):
            _check(child, f"{path}.children[{position}]", depth + 1, count)
        return
    if node.kind is FilterKind.UNKNOWN:
        raise InvalidRecord(f"{path}.kind", node.kind, "one of ALL, ANY, NOT, IN, RANGE, NEAR")
    _check_clause(node, path)


def _check_clause(node: Filter, path: str) -> None:
    if node.field is None or node.field not in FIELDS:
        raise InvalidRecord(f"{path}.field", node.field, f"one of {', '.join(FIELDS)}")
    spec = FIELDS[node.field]
    where = f"{path} ({node.field})"
    if node.missing is Missing.UNKNOWN:
        raise InvalidRecord(f"{path}.missing", node.missing, "EXCLUDE or INCLUDE")
    if node.children:
        raise InvalidRecord(f"{path}.children", f"{len(node.children)} children", "none on a clause")
    if node.kind is FilterKind.IN:
        if spec.type not in (FieldType.KEYWORD, FieldType.KEYWORDS, FieldType.SYMBOL):
            raise InvalidRecord(where, "IN", f"{_clauses(spec)} on a {spec.type.value} field")
        if not node.values:
            raise InvalidRecord(f"{path}.values", node.values, f"at least one value for {node.field}")
        for value in node.values:
            if spec.symbols is not None and (value == "UNKNOWN" or value not in spec.symbols.__members__):
                known = [symbol for symbol in spec.symbols.__members__ if symbol != "UNKNOWN"]
                raise InvalidRecord(node.field, value, f"one of {', '.join(known)}")
    elif node.kind is FilterKind.RANGE:
        if spec.type not in (FieldType.NUMBER, FieldType.TIME):
            raise InvalidRecord(where, "RANGE", f"{_clauses(spec)} on a {spec.type.value} field")
        if node.minimum is None and node.maximum is None:
            raise InvalidRecord(where, "no bound", "a minimum, a maximum or both")
        for bound in (node.minimum, node.maximum):
            if bound is not None and math.isnan(bound):
                raise InvalidRecord(where, bound, "a number")
    else:
        if spec.type is not FieldType.PLACE:
            raise InvalidRecord(where, "NEAR", f"{_clauses(spec)} on a {spec.type.value} field")
        if node.lat is None or not -90 <= node.lat <= 90:
            raise InvalidRecord(f"{path}.lat", node.lat, "degrees north in [-90, 90]")
        if node.lon is None or not -180 <= node.lon <= 180:
            raise InvalidRecord(f"{path}.lon", node.lon, "degrees east in [-180, 180]")
        if node.radius_km is None or not 0 < node.radius_km <= MAX_RADIUS_KM:
            raise InvalidRecord(f"{path}.radius_km", node.radius_km, f"kilometres in (0, {MAX_RADIUS_KM:.0f}]")


def _clauses(spec: FieldSpec) -> str:
    return {FieldType.NUMBER: "RANGE", FieldType.TIME: "RANGE", FieldType.PLACE: "NEAR"}.get(spec.type, "IN")


# --- the text form -----------------------------------------------------------------------------------------------

_CLAUSE = re.compile(r"^\s*(!?)\s*([a-z_.]+)\s*(\??)\s*(>=|<=|=|~)\s*(.*?)\s*$", re.DOTALL)


def parse(text: str) -> Filter:
    """One clause from its text form. Raises InvalidRecord (field "filter" or the field at fault)."""
    match = _CLAUSE.match(text)
    if match is None:
        raise InvalidRecord("filter", text, "FIELD=VALUE, FIELD>=N, FIELD<=N or location~LAT,LON,KMkm")
    bang, field, question, operator, value = match.groups()
    if field not in FIELDS:
        raise InvalidRecord("filter", field, f"one of {', '.join(FIELDS)}")
    spec = FIELDS[field]
    missing = Missing.INCLUDE if question else Missing.EXCLUDE
    if operator == "=":
        values = tuple(part.strip() for part in value.split(",") if part.strip())
        if spec.type is FieldType.SYMBOL:
            values = tuple(part.upper().replace("-", "_") for part in values)
        clause = Filter(kind=FilterKind.IN, field=field, values=values, missing=missing)
    elif operator == "~":
        clause = _parse_near(field, value, missing)
    else:
        bound = float(parse_time(field, value)) if spec.type is FieldType.TIME else _number(field, value)
        clause = Filter(kind=FilterKind.RANGE, field=field, missing=missing)
        clause = replace(clause, minimum=bound) if operator == ">=" else replace(clause, maximum=bound)
    check(clause, "filter")
    return negate(clause) if bang else clause


def _parse_near(field: str, value: str, missing: Missing) -> Filter:
    parts = [part.strip() for part in value.split(",")]
    if len(parts) != 3:
        raise InvalidRecord(field, value, "LATITUDE,LONGITUDE,RADIUSkm, for instance location~39.96,-82.99,50km")
    lat, lon, radius = (_number(field, part.removesuffix("km")) for part in parts)
    return Filter(kind=FilterKind.NEAR, field=field, lat=lat, lon=lon, radius_km=radius, missing=missing)


def _number(field: str, text: str) -> float:
    try:
        return float(text.replace("_", ""))
    except ValueError:
        raise InvalidRecord(field, text, "a number") from None


def describe(tree: Filter, most: int | None = None) -> str:
    """The tree in the text form, groups with AND, OR and parentheses: for explain and for tables.

    Of more than `most` values the first are named and the rest counted.
    """
    if tree.kind is FilterKind.NOT:
        return f"!{_grouped(tree.children[0], most)}"
    if tree.kind in (FilterKind.ALL, FilterKind.ANY):
        word = " AND " if tree.kind is FilterKind.ALL else " OR "
        return word.join(_grouped(child, most) for child in tree.children)
    mark = "?" if tree.missing is Missing.INCLUDE else ""
    if tree.kind is FilterKind.IN:
        named = tree.values if most is None else tree.values[:most]
        more = f" and {len(tree.values) - len(named)} more" if len(named) < len(tree.values) else ""
        return f"{tree.field}{mark}={','.join(named)}{more}"
    if tree.kind is FilterKind.NEAR:
        return f"{tree.field}{mark}~{tree.lat:g},{tree.lon:g},{tree.radius_km:g}km"
    low = f"{tree.field}{mark}>={tree.minimum:.10g}" if tree.minimum is not None else ""
    high = f"{tree.field}{mark}<={tree.maximum:.10g}" if tree.maximum is not None else ""
    return " AND ".join(part for part in (low, high) if part)


def _grouped(tree: Filter, most: int | None) -> str:
    text = describe(tree, most)
    return f"({text})" if " AND " in text or " OR " in text else text
