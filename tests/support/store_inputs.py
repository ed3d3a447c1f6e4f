"""Updates, queries and filters for tests of the store: plain builders, and strategies that love ties and gaps."""

from __future__ import annotations

import struct

import numpy as np
from hypothesis import strategies as st

from penstock.schemas.events import (
    Attributes,
    EmploymentType,
    Filter,
    FilterKind,
    IndexOp,
    IndexUpdate,
    Location,
    Missing,
    PayPeriod,
    QueryVector,
    Remote,
    Salary,
    Seniority,
    Vector,
)

SPACE = "space-1"
DENSE, SKETCH = 6, 16  # widths of the small planes that properties use


def vector(dense, sketch=None, space=SPACE):
    """A stored vector; `dense` must hold bfloat16 values (anything else is cut down to one)."""
    raw = b"".join(struct.pack("<f", value)[2:] for value in dense)
    return Vector(
        space_id=space, encoder_id="enc", dense=raw, sketch=None if sketch is None else np.int8(sketch).tobytes()
    )


def query(dense, lexical=None, space=SPACE):
    return QueryVector(
        space_id=space,
        encoder_id="enc",
        dense=np.asarray(dense, "<f4").tobytes(),
        lexical=None if lexical is None else np.asarray(lexical, "<f4").tobytes(),
    )


def upsert(posting_id, version=1, revision=0, vector=None, tenant="default", produced_at=1_000, expires_at=None, **kw):
    attributes = Attributes(**{"title": "nurse", **kw})
    return IndexUpdate(
        posting_id=posting_id,
        version=version,
        revision=revision,
        op=IndexOp.UPSERT,
        tenant=tenant,
        attributes=attributes,
        vector=vector,
        produced_at=produced_at,
        expires_at=expires_at,
    )


def gone(posting_id, version, revision=0, op=IndexOp.DELETE):
    return IndexUpdate(posting_id=posting_id, version=version, revision=revision, op=op, produced_at=1_000)


# --- strategies --------------------------------------------------------------------------------------------------

small = st.sampled_from(
    [0.0, 1.0, -1.0, 0.5, 2.0, 1.0078125, 0.99609375]
)  # bfloat16 values, neighbours of 1 among them
companies = st.sampled_from(["Acme", "ACME ", "Initech", "ß", "", None])
skills = st.lists(st.sampled_from(["sql", "SQL", "go", "c++", *(f"s{i}" for i in range(12))]), max_size=14).map(tuple)
# Kept off the radii that `trees` draws, so that no row lies within rounding of a circle.
places = st.builds(
    Location,
    country=st.sampled_from(["US", "us", "DE", None]),
    city=st.sampled_from(["Columbus", "columbus", None]),
    **dict.fromkeys(("lat", "lon"), st.none()),
) | st.builds(
    lambda point: Location(lat=point[0], lon=point[1]),
    st.sampled_from([(39.96, -82.99), (40.0, -83.1), (0.0, 179.9), (0.0, -179.9), (89.9, 10.0), (-89.9, 0.0)]),
)
salaries = st.builds(
    Salary,
    min=st.none() | st.sampled_from([10.0, 20.0, 50_000.0]),
    max=st.none() | st.sampled_from([50_000.0, 60_000.0]),
    currency=st.sampled_from(["USD", "usd", None]),
    period=st.sampled_from(PayPeriod),
)
attributes = st.fixed_dictionaries(
    {
        "title": st.sampled_from(["nurse", "nurse lead", "cook", "Cook LEAD"]),
        "company": companies,
        "skills": skills,
        "remote": st.sampled_from(Remote),
        "employment_type": st.sampled_from(EmploymentType),
        "seniority": st.sampled_from(Seniority),
        "salary": st.none() | salaries,
        "location": st.none() | places,
        "posted_at": st.none() | st.integers(0, 5),
        "grade": st.sampled_from(["GS-12", "gs-12", None]),
    }
)
vectors = st.builds(
    vector,
    st.lists(small, min_size=DENSE, max_size=DENSE),
    st.none() | st.lists(st.sampled_from([0, 0, 0, 1, -127, 64]), min_size=SKETCH, max_size=SKETCH),
)
queries = st.builds(
    query,
    st.lists(small | st.sampled_from([1e-8, 2.0**-30]), min_size=DENSE, max_size=DENSE),
    st.none() | st.lists(st.sampled_from([0.0, 0.0, 0.01, -0.01]), min_size=SKETCH, max_size=SKETCH),
)
ids = st.integers(0, 9).map(lambda i: f"p{i}")


@st.composite
def updates(draw):
    posting_id, version, revision = draw(ids), draw(st.integers(0, 4)), draw(st.integers(0, 2))
    op = draw(st.sampled_from([IndexOp.UPSERT] * 4 + [IndexOp.DELETE, IndexOp.EXPIRE]))
    if op is not IndexOp.UPSERT:
        return gone(posting_id, version, revision, op)
    return upsert(
        posting_id,
        version,
        revision,
        vector=draw(st.none() | vectors),
        tenant=draw(st.sampled_from(["default", "default", "other"])),
        produced_at=draw(st.integers(0, 5)),
        expires_at=draw(st.none() | st.integers(0, 100)),
        **draw(attributes),
    )


missing = st.sampled_from([Missing.EXCLUDE, Missing.INCLUDE])


def _is_in(field, values):
    return st.builds(
        Filter,
        kind=st.just(FilterKind.IN),
        field=st.just(field),
        values=st.lists(st.sampled_from(values), min_size=1, max_size=3).map(tuple),
        missing=missing,
    )


def _in_range(field, bounds):
    pairs = st.tuples(st.none() | st.sampled_from(bounds), st.none() | st.sampled_from(bounds))
    return st.builds(
        lambda pair, missing: Filter(
            kind=FilterKind.RANGE, field=field, minimum=pair[0], maximum=pair[1], missing=missing
        ),
        pairs.filter(lambda pair: pair != (None, None)),
        missing,
    )


clauses = st.one_of(
    _is_in("posting_id", ["p0", "P1", "p2", "p99"]),
    _is_in("title.terms", ["nurse", "LEAD", "cook", "pilot"]),
    _is_in("company", ["acme", "Initech", "SS", "nobody"]),
    _is_in("skills", ["sql", "Go", "c++", "s3", "s11", "cobol"]),
    _is_in("grade", ["GS-12", "GS-13"]),
    _is_in("remote", ["REMOTE", "HYBRID", "ONSITE"]),
    _is_in("employment_type", ["FULL_TIME", "CONTRACT"]),
    _is_in("seniority", ["SENIOR", "LEAD"]),
    _is_in("location.country", ["US", "de"]),
    _is_in("location.city", ["COLUMBUS", "Berlin"]),
    _is_in("salary.currency", ["USD", "EUR"]),
    _in_range("salary.annual_min", [20_800.0, 50_000.0]),
    _in_range("salary.annual_max", [50_000.0, 60_000.0]),
    _in_range("posted_at", [0.0, 2.0, 5.0]),
    _in_range("expires_at", [10.0, 50.0]),
    st.builds(
        Filter,
        kind=st.just(FilterKind.NEAR),
        field=st.just("location"),
        lat=st.sampled_from([39.9, 0.0, 90.0]),
        lon=st.sampled_from([-83.0, 180.0]),
        radius_km=st.sampled_from([5.0, 30.0, 100.0, 6000.0, 20_000.0]),
        missing=missing,
    ),
)
trees = st.recursive(
    clauses,
    lambda children: (
        st.builds(Filter, kind=st.just(FilterKind.NOT), children=st.tuples(children))
        | st.builds(
            Filter,
            kind=st.sampled_from([FilterKind.ALL, FilterKind.ANY]),
            children=st.lists(children, min_size=1, max_size=3).map(tuple),
        )
    ),
    max_leaves=6,
)
