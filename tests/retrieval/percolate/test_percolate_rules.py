"""What percolation tells people, what a reply may hold, what is let go, what is refused."""

import numpy as np
import pytest
from standing_inputs import ended, standing
from store_inputs import query, upsert, vector

from penstock.retrieval.percolate.entries import Trees
from penstock.retrieval.percolate.matching import REASON_CHARS
from penstock.retrieval.percolate.snapshot import STANDING
from penstock.retrieval.percolate.store import StandingQueries
from penstock.retrieval.store.snapshot import Covered, Snapshots
from penstock.schemas.errors import InvalidRecord
from penstock.schemas.events import Op
from penstock.schemas.filters import all_of, any_of, is_in, negate

ASKED = query([1.0, 0.0, 0.0, 0.0, 0.0, 0.0], [0.25] + [0.0] * 15)
ROW = vector([0.5, 0.0, 0.0, 0.0, 0.0, 0.0], [1] + [0] * 15)


def store_of(backend, *records):
    store = StandingQueries(backend=backend)
    applied = store.apply(records, now_ms=0)
    assert not applied.refused
    return store


def found(store, *updates, **more):
    return store.percolate(updates, now_ms=0, **more)[0]


def test_a_reason_says_what_the_score_is_made_of_and_which_conditions_hold(backend):
    tree = all_of(
        is_in("remote", "REMOTE"),
        any_of(is_in("location.region", "OH"), is_in("grade", "GS-12")),
        negate(is_in("company", "Initech")),
    )
    store = store_of(backend, standing("s", vector=ASKED, filters=tree, threshold=0.5), standing("t", filters=tree))
    posting = upsert("p", vector=ROW, remote="REMOTE", grade="gs-12", company="Acme")
    first, second = found(store, posting).found[0].matches
    conditions = "remote=REMOTE; grade=GS-12; !(company=Initech)"
    assert first.reason == f"meaning 0.50, words 0.25 (together at least 0.50); {conditions}"
    assert (first.match_score, first.dense, first.lexical) == (0.75, 0.5, 0.25)
    assert second.reason == conditions and second.match_score == 0.0


def test_postings_without_a_sketch_score_nothing_by_words(backend):
    """The query's terms name lines of a sketch that these postings have not."""
    asked = query([1.0, 0.0, 0.0, 0.0, 0.0, 0.0], [0.0] * 15 + [100.0])
    store = store_of(backend, standing("s", vector=asked, threshold=0.5))
    (match,) = found(store, upsert("p", vector=vector([0.5, 0.0, 0.0, 0.0, 0.0, 0.0]))).found[0].matches
    assert (match.dense, match.lexical) == (0.5, 0.0)


def test_a_reason_stays_short(backend):
    tree = is_in("grade", *(f"GS-{i}" for i in range(100)))
    (match,) = found(store_of(backend, standing("s", filters=tree)), upsert("p", grade="GS-7")).found[0].matches
    assert match.reason == "grade=GS-0,GS-1,GS-2,GS-3,GS-4,GS-5 and 94 more"
    tree = is_in("company", *(f"{'very ' * 30}long company {i}" for i in range(5)))
    (match,) = (
        found(store_of(backend, standing("s", filters=tree)), upsert("p", company=tree.values[3])).found[0].matches
    )
    assert len(match.reason) == REASON_CHARS


def test_a_reply_holds_the_first_postings_that_fit_and_always_one(backend):
    store = store_of(backend, *(standing(f"s{i}", min_score=0.5, vector=ASKED, threshold=0.1) for i in range(10)))
    batch = [upsert(f"p{i}", vector=ROW if i else None) for i in range(6)]
    whole = found(store, *batch)
    assert [len(one.matches) for one in whole.found] == [0, 10, 10, 10, 10, 10]
    for reply_bytes, served in ((1, 1), (5_600, 2), (11_000, 3)):
        part = found(store, *batch, reply_bytes=reply_bytes)
        assert part.found == whole.found[:served] and part.without_vector == 0
    heavy = found(store, batch[1], reply_bytes=1)
    assert heavy.found[0].matches == whole.found[1].matches
    assert heavy.without_vector == 10
    assert [q.vector for q in heavy.found[0].queries] == [None] * 10


def test_tombstones_end_with_their_window_and_never_before():
    store = StandingQueries(tombstone_window_ms=100)
    store.apply([standing("s", 1), standing("t", 1)], now_ms=0)
    store.apply([ended("s", 2), ended("t", 2)], now_ms=10)
    store.apply([standing("t", 3)], now_ms=20)
    assert store.reclaim(now_ms=109) == 0
    assert store.apply([standing("s", 1)], now_ms=109).stale == 1
    assert store.reclaim(now_ms=110) == 1
    assert store.standing(["s", "t"], tenant="default") == ((-1, False), (3, True))


def test_nothing_new_is_no_epoch(backend):
    store = store_of(backend, standing("s", 2))
    epoch = store.epoch
    applied = store.apply([standing("s", 1), standing("s", 1, threshold=0.1), ended("s", 1)], now_ms=5)
    assert (applied.stale, applied.accepted, store.epoch) == (3, (), epoch)


def test_a_refused_record_holds_nobody_back():
    store = StandingQueries()
    wrong = [
        standing("", 1),
        standing("a", threshold=float("inf")),
        standing("b", vector=query([], [])),
        standing("c", filters=is_in("colour", "red")),
        standing("d", vector=query([float("nan")] * 6)),
    ]
    from dataclasses import replace

    wrong.append(replace(standing("e"), op=Op.UNKNOWN))
    applied = store.apply([*wrong, standing("well")], now_ms=0)
    assert [refusal.position for refusal in applied.refused] == list(range(6))
    assert all(isinstance(refusal.error, InvalidRecord) for refusal in applied.refused)
    assert store.counts().live == 1


def test_trees_are_shared_and_go_with_their_queries():
    trees = Trees()
    first, second = (trees.of(all_of(is_in("company", "x"), is_in("grade", "y"))) for _ in range(2))
    other = trees.of(negate(all_of(is_in("grade", "y"), is_in("company", "x"))))
    assert first is second and first is not other and len(trees) == 2
    assert {id(c.filter) for c in first.node.parts} == {id(c) for c in first.filter.children}
    del first, second, other
    assert len(trees) == 0


def test_what_is_counted(backend, tmp_path):
    store = store_of(backend, standing("s", vector=ASKED), standing("t", filters=is_in("company", "x")), ended("u", 1))
    counts = store.counts()
    assert (counts.live, counts.tombstones, counts.without_vector, counts.trees) == (2, 1, 1, 1)
    assert counts.nbytes > 0
    assert found(store, upsert("p", vector=vector([1.0], space="x"))).other_space == 1


def test_ten_thousand_queries_stay_small():
    rng = np.random.default_rng(0)
    store = StandingQueries()
    for start in range(0, 10_000, 1_000):
        batch = []
        for i in range(start, start + 1_000):
            lexical = np.zeros(1024, np.float32)
            lexical[rng.choice(1024, 6, False)] = 1.0
            asked = query(rng.standard_normal(384).astype(np.float32), lexical)
            batch.append(standing(f"subscription-{i}", vector=asked, filters=is_in("company", f"c{i % 50}")))
        store.apply(batch, now_ms=0)
    assert store.counts().nbytes < 40e6


@pytest.mark.parametrize("rows", [1, 3, 1_500])
def test_a_version_that_replaces_leaves_one(backend, rows):
    store = StandingQueries(backend=backend)
    for version in range(1, 4):
        asked = query([float(version), 0.0, 0.0, 0.0, 0.0, 0.0])
        store.apply([standing(f"s{i}", version, vector=asked, threshold=1.0) for i in range(rows)], now_ms=0)
    (one,) = found(store, upsert("p", vector=ROW)).found
    assert len(one.matches) == rows == store.counts().live
    assert {match.dense for match in one.matches} == {1.5}


def test_a_subscription_compiled_anew_stands_in_place_of_the_old(backend):
    store, posting = store_of(backend, standing("s", 2, vector=ASKED, threshold=0.9)), upsert("p", vector=ROW)
    assert not found(store, posting).found[0].matches
    store.apply([standing("s", 2, vector=ASKED, threshold=0.4)], now_ms=6)
    assert [match.subscription_id for match in found(store, posting).found[0].matches] == ["s"]


def test_a_snapshot_writes_only_the_blocks_that_changed(tmp_path):
    store = StandingQueries(block=8, first_epoch=3)
    store.apply([standing(f"s{i}", vector=ASKED, min_score=0.5) for i in range(40)], now_ms=0)
    snapshots = Snapshots(tmp_path, STANDING)
    snapshots.write(store.capture(), Covered({0: 40}, "log"))
    first = {part: part.stat().st_mtime_ns for part in tmp_path.glob("part-*")}
    assert len(first) == 5
    store.apply([standing("s7", 2, vector=ASKED, threshold=0.1), ended("s8", 2)], now_ms=0)
    snapshots.write(store.capture(), Covered({0: 42}, "log"))
    after = {part: part.stat().st_mtime_ns for part in tmp_path.glob("part-*")}
    assert len(set(after.items()) - set(first.items())) == 2  # of s7 and of s8
    back = StandingQueries(block=8, first_epoch=1_000)
    assert snapshots.restore(back).covered == Covered({0: 42}, "log")
    posting = upsert("p", vector=ROW)
    assert found(back, posting).found == found(store, posting).found
    (damaged, *_) = sorted(set(after) - set(first))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"X")
    restored = Snapshots(tmp_path, STANDING).restore(again := StandingQueries(first_epoch=1_000))
    assert restored.covered == Covered({0: 40}, "log") and damaged.name in restored.problems[0]
    assert again.standing(["s7", "s8"], tenant="default") == ((1, True), (1, True))


def test_two_ends_of_one_moment_end_once():
    store = StandingQueries(tombstone_window_ms=10)
    store.apply([standing("s")], now_ms=0)
    store.apply([ended("gone", 1)], now_ms=5)
    store.apply([ended("gone", 2)], now_ms=5)
    store.reclaim(now_ms=100)
    assert store.standing(["gone", "s"], tenant="default") == ((-1, False), (1, True))
    assert store.counts().tombstones == 0


def test_blocks_larger_than_a_devices_places_are_refused_in_words(device_backend):
    with pytest.raises(ValueError, match="blocks of 1025 standing queries: a device's places hold 1024"):
        StandingQueries(backend=device_backend, block=1_025)
