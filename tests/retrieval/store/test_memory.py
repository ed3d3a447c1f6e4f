"""Memory: what is allocated is counted, what does not fit is refused with the numbers, growth copies nothing."""

import gc
import tracemalloc

import numpy as np
import pytest
from store_inputs import gone, upsert, vector

from penstock.retrieval.store.errors import OutOfRoom
from penstock.retrieval.store.slabs import POSTINGS
from penstock.retrieval.store.snapshot import Covered, Snapshots
from penstock.retrieval.store.store import Store

ROW = [1.0, 0.5, 0.0, 0.0, 0.0, 0.0]


def batch(first, count, version=1, **how):
    return [upsert(f"p{i}", version, **how) for i in range(first, first + count)]


def room(rows, page_rows=128, **how):
    """The memory of a store with so many rows, and about half a page more."""
    store = Store(page_rows=page_rows)
    store.apply(batch(0, rows, **how), now_ms=0)
    return store.counts().nbytes + 100 * page_rows


def test_growth_copies_no_row(make_store):
    store = make_store(page_rows=128)
    store.apply(batch(0, 100, vector=vector(ROW)), now_ms=0)
    with store.pin() as pin:
        before = pin.table.pages
    store.apply(batch(100, 1_000, vector=vector(ROW)), now_ms=0)
    with store.pin() as pin:
        after = pin.table.pages
    assert len(after) > len(before)
    for old, new in zip(before, after, strict=False):
        assert old is new
    assert store.search(None, None, 2_000, now_ms=0).total == 1_100


def test_the_first_vector_makes_planes_in_every_page_and_copies_no_attribute(make_store):
    store = make_store(page_rows=128)
    store.apply(batch(0, 300), now_ms=0)
    with store.pin() as pin:
        before = pin.table.pages
    store.apply([upsert("v", vector=vector(ROW, [1] * 16))], now_ms=0)
    with store.pin() as pin:
        assert all(page.dense.shape == (128, 6) and page.sketch.shape == (128, 16) for page in pin.table.pages)
        for old, new in zip(before, pin.table.pages, strict=True):
            assert old.birth is new.birth and old.codes["company"] is new.codes["company"]
    assert store.counts().bytes_planes == len(before) * 128 * (2 * 6 + 16 + 16)


def test_what_is_counted_is_what_is_allocated(make_store):
    gc.collect()
    tracemalloc.start()
    try:
        store = make_store(page_rows=8_192)
        store.apply(batch(0, 1_000, vector=vector([1.0] * 96, [1] * 256)), now_ms=0)
        gc.collect()
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    counted = store.counts()
    assert counted.nbytes == pytest.approx(used, rel=0.1)
    with store.pin() as pin:
        (page,) = pin.table.pages
    arrays = sum(array.nbytes for array in page.arrays().values()) + page.dense.nbytes + page.sketch.nbytes
    assert counted.bytes_planes == page.dense.nbytes + page.sketch.nbytes + page.norms.nbytes
    assert arrays <= counted.bytes_planes + counted.bytes_rows <= arrays * 1.05


def test_a_row_that_does_not_fit_is_refused_with_the_numbers_and_its_fellows_are_applied(make_store):
    limit = room(128)
    store = make_store(page_rows=128, memory_bytes=limit)
    applied = store.apply([*batch(0, 130), gone("p1", 2), upsert("p129", 2)], now_ms=0)
    assert len(applied.accepted) + len(applied.refused) == 132
    refused = {refusal.position for refusal in applied.refused}
    assert refused == {129, 131}  # of an id that is refused, every update of the batch
    error = applied.refused[0].error
    assert isinstance(error, OutOfRoom)
    assert error.limit == limit and error.held <= limit < error.held + error.needed
    assert f"{error.limit:,}" in str(error) and "retrieval.memory_bytes" in str(error)
    assert store.counts().nbytes <= limit
    assert store.counts().live == 128
    assert store.get(["p129"], now_ms=0)[0].state == "ABSENT"


def test_a_refused_row_is_accepted_once_there_is_room(make_store):
    store = make_store(page_rows=128, memory_bytes=room(128), hold_ms=10)
    store.apply(batch(0, 128), now_ms=0)
    assert store.apply(batch(200, 1), now_ms=1).refused
    assert store.apply([gone("p5", 2)], now_ms=2).accepted == (0,)  # a deletion always fits
    assert store.apply(batch(200, 1), now_ms=11).refused  # the dead row is still held
    assert store.apply(batch(200, 1), now_ms=12).accepted == (0,)


def test_a_store_that_is_full_lets_go_of_what_has_expired(make_store):
    texts = {"category": "c" * 1_000, "expires_at": 100}  # more than the tombstones that follow them
    store = make_store(page_rows=128, memory_bytes=room(128, **texts), hold_ms=0, expiry_grace_ms=0)
    store.apply(batch(0, 128, **texts), now_ms=0)
    assert store.apply(batch(200, 5), now_ms=99).refused
    assert store.apply(batch(200, 5), now_ms=100).refused
    assert store.apply(batch(200, 5), now_ms=101).accepted == (0, 1, 2, 3, 4)


def test_records_count_as_well(make_store):
    store = make_store(page_rows=128, memory_bytes=room(1) + 10_000)
    applied = store.apply(batch(0, 200, category="c" * 1_000), now_ms=0)
    assert 5 < len(applied.accepted) < 20
    assert store.counts().nbytes <= room(1) + 10_000


def test_planes_that_do_not_fit_leave_no_space_behind(make_store):
    store = make_store(page_rows=128, memory_bytes=room(1))
    refused = store.apply([upsert("big", vector=vector([1.0] * 384, [1] * 1024))], now_ms=0).refused
    assert isinstance(refused[0].error, OutOfRoom)
    assert store.space_id == ""
    assert store.apply([upsert("small", vector=vector([1.0], space="other"))], now_ms=0).accepted == (0,)
    assert store.space_id == "other"


def test_without_a_page_to_add_partitions_share(make_store):
    store = make_store(page_rows=1_024, memory_bytes=room(100, 1_024))
    week = 7 * 86_400_000
    for n in range(100):  # more weeks than blocks
        assert store.apply([upsert(f"p{n}", posted_at=n * week)], now_ms=0).accepted == (0,)
    assert store.counts().capacity == 1_024


def test_a_snapshot_of_a_larger_store_is_refused_with_the_numbers(tmp_path, make_store):
    big = make_store(page_rows=128)
    big.apply(batch(0, 300), now_ms=0)
    snapshots = Snapshots(tmp_path, POSTINGS)
    snapshots.write(big.capture(), Covered({}, ""))
    with pytest.raises(OutOfRoom, match=r"raise retrieval\.memory_bytes"):
        snapshots.restore(make_store(page_rows=128, memory_bytes=room(128)))
    fits = make_store(page_rows=128, memory_bytes=big.counts().nbytes + 10_000)
    snapshots.restore(fits)
    assert fits.counts().live == 300
    assert fits.counts().nbytes == pytest.approx(big.counts().nbytes, rel=0.02)


def test_words_and_values_past_the_eighth_are_admitted_too(make_store):
    limit = room(1) + 3_000
    store = make_store(page_rows=128, memory_bytes=limit)
    big = upsert("big", skills=tuple(f"a skill of its own {i}" for i in range(200)))
    (refusal,) = store.apply([big], now_ms=0).refused
    assert isinstance(refusal.error, OutOfRoom) and store.counts().nbytes <= limit
    assert store.apply([upsert("small")], now_ms=0).accepted == (0,)


def test_placement_keeps_countries_and_weeks_apart(make_store):
    from penstock.schemas.events import Location

    store = make_store(page_rows=1_024)
    week = 7 * 86_400_000
    where = [("US", 3), ("us ", 3), ("DE", 3), ("US", 4), (None, 3)]
    for round_ in range(20):
        store.apply(
            [
                upsert(f"{round_}-{n}", posted_at=w * week + round_, location=Location(country=country))
                for n, (country, w) in enumerate(where)
            ],
            now_ms=0,
        )
    with store.pin() as pin:
        (page,) = pin.table.pages
    blocks = {}
    for row in np.flatnonzero(page.birth <= store.epoch).tolist():
        key = (int(page.codes["location.country"][row]), int(page.recency[row]) // week)
        blocks.setdefault(row // 128, set()).add(key)
    assert sorted(len(keys) for keys in blocks.values()) == [1, 1, 1, 1]
