"""A live row without a search: every tenant's turn comes, and what is picked is there to be found."""

from hypothesis import given, settings
from hypothesis import strategies as st
from store_inputs import updates, upsert

from penstock.retrieval.store.store import Store
from penstock.schemas.filters import is_in


@settings(max_examples=60, deadline=None)
@given(st.lists(updates(), max_size=30), st.integers(0, 10_000), st.integers(0, 60))
def test_what_is_picked_is_live_and_found_by_its_id(some, turn, now_ms):
    store = Store(page_rows=128)
    for update in some:
        store.apply([update], now_ms=0)
    live = {tenant: store.search(None, None, 50, now_ms=now_ms, tenant=tenant).hits for tenant in ("default", "other")}
    known = store.witness(turn, now_ms=now_ms)
    if known is None:
        assert not any(live.values())
        return
    [row] = store.get([known.posting_id], now_ms=now_ms)
    assert row.state == "LIVE" and known.epoch == store.epoch
    by_id = is_in("posting_id", known.posting_id)
    found = store.search(None, by_id, 5, now_ms=now_ms, tenant=row.update.tenant).hits
    [hit] = [hit for hit in found if hit.posting_id == known.posting_id]
    assert (hit.version, hit.revision, hit.recency) == (known.version, known.revision, known.recency)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=300), st.integers(0, 1_000))
def test_tenants_take_turns_and_so_do_pages_and_rows(tenants, start):
    store = Store(page_rows=128)
    store.apply([upsert(f"p{n}", tenant=f"t{tenant}") for n, tenant in enumerate(tenants)], now_ms=0)
    kinds = set(tenants)

    def picked(count):
        return [store.witness(start + turn, now_ms=0).posting_id for turn in range(count)]

    assert {tenants[int(name[1:])] for name in picked(len(kinds))} == kinds
    pages = -(-len(tenants) // 128)
    slots = {name: slot for slot, name in enumerate(f"p{n}" for n in range(len(tenants)))}
    if len(kinds) == 1:
        found = picked(2 * len(tenants) * pages)
        assert {slots[name] // 128 for name in found[:pages]} == set(range(pages))
        assert len(set(found)) >= min(len(tenants), 100)


def test_what_expires_too_soon_is_not_picked():
    store = Store(page_rows=128)
    store.apply([upsert("p", expires_at=100), upsert("q", expires_at=500)], now_ms=0)
    assert {store.witness(turn, now_ms=200).posting_id for turn in range(4)} == {"q"}
    assert store.witness(0, now_ms=500) is None
    assert Store().witness(0, now_ms=0) is None
