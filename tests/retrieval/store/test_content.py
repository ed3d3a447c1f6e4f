"""The checksum of a store follows every change, says the same wherever rows lie, and another thing of other content."""

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from store_inputs import gone, updates, upsert, vector
from store_oracle import Oracle

from penstock.retrieval.store.content import row_hashes, total
from penstock.retrieval.store.store import Store

ROW = [1.0, 0.5, 0.0, -2.0, 0.0, 0.0]


def store_of(*batches, page_rows=128, **how):
    store = Store(page_rows=page_rows, hold_ms=0, expiry_grace_ms=0, **how)
    for now_ms, batch in enumerate(batches):
        store.apply(batch, now_ms=now_ms)
    return store


def computed(store):
    """The checksum from the rows that a reader sees now."""
    out = 0
    with store.pin() as pin:
        for page in pin.table.pages:
            seen = np.flatnonzero((page.birth <= pin.epoch) & (page.death > pin.epoch))
            out += total(row_hashes(page, seen))
    return out % 2**64


@settings(max_examples=60)
@given(
    batches=st.lists(st.lists(updates(), max_size=8), max_size=6),
    reclaims=st.lists(st.booleans(), min_size=6, max_size=6),
)
def test_it_is_what_the_rows_add_up_to_and_where_they_lie_does_not_matter(batches, reclaims):
    store, oracle = store_of(), Oracle()
    for now_ms, (batch, reclaim) in enumerate(zip(batches, reclaims, strict=False)):
        store.apply(batch, now_ms=now_ms)
        for update in batch:
            oracle.accept(update)
        if reclaim:
            store.reclaim(now_ms=now_ms)
        assert store.checksum() == computed(store)
    store.reclaim(now_ms=50)
    newest = list(oracle.newest.values())
    other = store_of(newest[len(newest) // 2 :], newest[: len(newest) // 2], page_rows=256)
    other.reclaim(now_ms=50)
    if not (store.counts().vectors_refused or other.counts().vectors_refused):  # the first vector decides the widths
        assert store.checksum() == other.checksum()


def test_every_part_of_a_row_counts():
    plain = upsert("a", 2, 1, vector=vector(ROW, [1] * 16))
    same = store_of([upsert("z")], [plain, gone("z", 2)])
    same.reclaim(now_ms=5)
    assert same.checksum() == store_of([plain]).checksum()
    others = [
        replace(plain, posting_id="b"),
        replace(plain, version=3),
        replace(plain, revision=2),
        replace(plain, version=1, revision=2),
        replace(plain, vector=None),
        replace(plain, vector=vector(ROW)),
        replace(plain, vector=vector([], [1] * 16)),
        replace(plain, vector=vector([*ROW[:5], 0.5], [1] * 16)),
        replace(plain, vector=vector(ROW[::-1], [1] * 16)),
        replace(plain, vector=vector(ROW, [1] * 15 + [2])),
    ]
    sums = [store_of([one]).checksum() for one in (plain, *others)]
    assert len(set(sums)) == len(sums)


def test_vectors_that_change_places_are_noticed():
    one, two = vector(ROW), vector(ROW[::-1])
    straight = store_of([upsert("a", vector=one), upsert("b", vector=two)])
    crossed = store_of([upsert("a", vector=two), upsert("b", vector=one)])
    assert straight.checksum() != crossed.checksum()


def test_an_empty_store_is_zero_again():
    store = store_of([upsert(f"p{i}", vector=vector(ROW)) for i in range(200)], [gone(f"p{i}", 2) for i in range(200)])
    assert store.checksum() == 0
