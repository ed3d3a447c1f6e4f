"""Standing queries for tests of percolation, and what must match: the plain float64 oracle. Shares no code with it."""

from dataclasses import replace

from hypothesis import strategies as st
from store_inputs import DENSE, SKETCH, SPACE, attributes, query, trees, upsert, vector
from store_oracle import parts, passes

from penstock.schemas.events import IndexOp, Op, StandingQuery


def standing(subscription_id, version=1, vector=None, filters=None, threshold=0.5, tenant="default", **more):
    return StandingQuery(
        subscription_id=subscription_id,
        version=version,
        op=Op.UPSERT,
        tenant=tenant,
        person_id=f"of-{subscription_id}",
        vector=vector,
        filters=filters,
        threshold=threshold,
        produced_at=1_000,
        **more,
    )


def ended(subscription_id, version, tenant="default"):
    return StandingQuery(
        subscription_id=subscription_id, version=version, op=Op.DELETE, tenant=tenant, person_id="p", produced_at=1_000
    )


# --- the oracle --------------------------------------------------------------------------------------------------


class StandingOracle:
    """The newest version of each subscription, whatever the order of arrival; of one version the last record."""

    def __init__(self, records=()):
        self.newest = {}
        for record in records:
            self.accept(record)

    def accept(self, record):
        known = self.newest.get(record.subscription_id)
        if known is None or record.version >= known.version:
            self.newest[record.subscription_id] = record

    def percolate(self, update, now_ms):
        """[(id, version, dense, lexical)] by id."""
        over = update.expires_at is not None and now_ms >= update.expires_at
        if update.op != IndexOp.UPSERT or over:
            return []
        found = []
        for record in self.newest.values():
            scores = score(update.vector, record)
            allowed = record.filters is None or passes(update, record.filters)
            if record.op == Op.UPSERT and record.tenant == update.tenant and scores is not None and allowed:
                found.append((record.subscription_id, record.version, *scores))
        return sorted(found)


def score(posting, record):
    """(dense, lexical) where they suffice, else None."""
    if record.vector is None:
        return 0.0, 0.0
    if posting is not None:
        if posting.space_id != record.vector.space_id:
            return None
        sizes = ((len(posting.dense) // 2, len(record.vector.dense) // 4),)
        sizes += ((len(posting.sketch or b""), len(record.vector.lexical or b"") // 4),)
        if any(a and b and a != b for a, b in sizes):
            return None
    dense, lexical = parts(posting, record.vector)
    return (dense, lexical) if dense + lexical >= record.threshold else None


def shown(matches):
    return [(m.subscription_id, m.version, m.dense, m.lexical) for m in matches]


# --- strategies --------------------------------------------------------------------------------------------------

# Few values, so that sums meet thresholds exactly; a neighbour of 1 in float32 alone, which float32 sums lose.
values = st.sampled_from([0.0, 0.0, 1.0, -1.0, 0.5, 2.0, 1.0 + 2.0**-23, 2.0**-30])
thresholds = st.sampled_from([-1.0, 0.0, 0.5, 1.0, 1.0 + 2.0**-30, 1.5, 2.0, 2.0 + 2.0**-23, 3.0, 100.0])
spaces = st.sampled_from([SPACE, SPACE, SPACE, "space-2"])
tenants = st.sampled_from(["default", "default", "other"])
asked = st.builds(
    query,
    st.lists(values, min_size=DENSE, max_size=DENSE) | st.just([]),
    st.lists(st.sampled_from([0.0, 0.0, 0.5, -0.25, 2.0**-30]), min_size=SKETCH, max_size=SKETCH),
    space=spaces,
) | st.builds(query, st.lists(values, min_size=DENSE, max_size=DENSE), space=spaces)
records = st.one_of(
    *[
        st.builds(
            standing,
            st.integers(0, 11).map(lambda i: f"s{i}"),
            version=st.integers(0, 5),
            vector=st.none() | asked,
            filters=st.none() | trees,
            threshold=thresholds,
            tenant=tenants,
            min_score=st.sampled_from([None, 0.5]),
        )
    ]
    * 4,
    st.builds(ended, st.integers(0, 11).map(lambda i: f"s{i}"), version=st.integers(0, 5), tenant=tenants),
)
planes = st.builds(
    vector,
    st.lists(st.sampled_from([0.0, 1.0, -1.0, 0.5, 2.0, 1.0078125]), min_size=DENSE, max_size=DENSE) | st.just([]),
    st.lists(st.sampled_from([0, 0, 1, 2, -127]), min_size=SKETCH, max_size=SKETCH),
    space=spaces,
)


@st.composite
def arrivals(draw):
    """A posting as the alerts job percolates it."""
    update = upsert(
        draw(st.sampled_from(["p0", "p1", "p2"])),
        vector=draw(st.none() | planes),
        tenant=draw(tenants),
        expires_at=draw(st.none() | st.integers(0, 60)),
        **draw(attributes),
    )
    if draw(st.integers(0, 7)) == 0:
        return replace(update, op=draw(st.sampled_from([IndexOp.DELETE, IndexOp.EXPIRE])), attributes=None, vector=None)
    return update
