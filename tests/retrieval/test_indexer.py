"""Offsets cover exactly what was applied or dead-lettered; caught up means all that was in the log at the start."""

import pytest
from index_log import LetterBox
from store_inputs import gone, upsert

from penstock.retrieval.feed import Polled, Record
from penstock.retrieval.indexer import Indexer
from penstock.retrieval.store.errors import OutOfRoom
from penstock.retrieval.store.store import Store
from penstock.schemas.events import IndexUpdate
from penstock.schemas.wire import codec


def indexer():
    return Indexer(Store(capacity=4), codec(IndexUpdate), LetterBox().send)


def records(partition, first, count, timestamp_ms=1_000):
    raw = codec(IndexUpdate).encode
    return [Record(partition, n, timestamp_ms, b"k", raw(upsert(f"p{n}"))) for n in range(first, first + count)]


def test_offsets_follow_records_and_ends():
    one = indexer()
    one.take(Polled(records(0, 5, 3), {1: 9}), now_ms=0)
    assert one.offsets == {0: 8, 1: 9}


def test_an_end_met_before_the_newest_record_does_not_move_back():
    one = indexer()
    one.take(Polled(records(0, 5, 3), {0: 6}), now_ms=0)
    assert one.offsets == {0: 8}


def test_a_log_read_anew_moves_back():
    one = indexer()
    one.take(Polled(records(0, 50, 1)), now_ms=0)
    one.take(Polled(records(0, 2, 1)), now_ms=0)
    assert one.offsets == {0: 3}


def test_caught_up_needs_the_log_s_length_and_then_stays():
    one = indexer()
    one.take(Polled(records(0, 0, 2)), now_ms=0)
    assert not one.caught_up  # nobody has said yet how long the log is
    one.begin({0: 3, 1: 0})
    assert not one.caught_up
    one.take(Polled([], {0: 3}), now_ms=0)  # the last offset held no record for us: compaction, a marker
    assert one.caught_up
    one.begin({0: 100})
    assert one.caught_up


def test_lag_counts_offsets_and_the_age_of_what_was_read_last():
    one = indexer()
    one.take(Polled(records(0, 0, 2, timestamp_ms=4_000)), now_ms=0)
    behind = one.lag({0: 5, 1: 2}, now_ms=6_500)
    assert (behind.offsets, behind.seconds) == (5, 2.5)
    level = one.lag({0: 2}, now_ms=6_500)
    assert (level.offsets, level.seconds) == (0, 0.0)


def test_what_does_not_fit_is_read_again_until_it_does_and_is_no_dead_letter():
    letters = LetterBox()
    enough = Store(page_rows=128)
    Indexer(enough, codec(IndexUpdate), letters.send).take(Polled(records(0, 0, 128)), now_ms=0)
    full = Store(page_rows=128, memory_bytes=enough.counts().nbytes + 10_000, hold_ms=0)
    one = Indexer(full, codec(IndexUpdate), letters.send)
    one.take(Polled(records(0, 0, 128)), now_ms=0)
    late = [*records(0, 128, 2), Record(0, 130, 0, b"k", codec(IndexUpdate).encode(gone("p3", 2)))]
    for _ in range(2):
        with pytest.raises(OutOfRoom, match="memory_bytes"):
            one.take(Polled(late[:2]), now_ms=1)
    assert (one.offsets, letters.letters) == ({0: 128}, [])
    assert full.counts().live == 128
    with pytest.raises(OutOfRoom):  # what fits of a batch is applied: the deletion makes room
        one.take(Polled(late), now_ms=2)
    with pytest.raises(OutOfRoom):  # for one of the two
        one.take(Polled(late), now_ms=3)
    full.apply([gone("p4", 2)], now_ms=4)
    one.take(Polled(late), now_ms=5)
    assert (one.offsets, letters.letters) == ({0: 131}, [])
    assert {row.state for row in full.get(["p128", "p129"], now_ms=5)} == {"LIVE"}
