"""The store's promises one by one: refusals, spaces, tombstones, epochs, steady memory, readers beside a writer."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from store_inputs import gone, query, upsert, vector

from penstock.retrieval.store import columns
from penstock.retrieval.store.errors import EpochGone, HashCollision, SpaceMismatch
from penstock.retrieval.store.reading import MAX_K
from penstock.schemas.errors import InvalidRecord
from penstock.schemas.events import IndexOp, IndexUpdate
from penstock.schemas.filters import is_in
from penstock.schemas.rpc import RowState

ROW = [1.0, 0.5, 0.0, 0.0, 0.0, 0.0]


def found(store, asked=None, now_ms=0, k=10, **how):
    return [hit.posting_id for hit in store.search(asked, None, k, now_ms=now_ms, **how).hits]


def state(store, posting_id, now_ms=0):
    return store.get([posting_id], now_ms=now_ms)[0].state


def test_an_empty_store_answers(make_store):
    store = make_store()
    assert store.search(query(ROW), None, 5, now_ms=0).total == 0
    assert state(store, "p") is RowState.ABSENT
    assert not store.holds(is_in("company", "Acme"), now_ms=0)


def test_expiry_needs_no_update(make_store):
    store = make_store()
    store.apply([upsert("p", expires_at=100)], now_ms=0)
    assert found(store, now_ms=99) == ["p"]
    assert found(store, now_ms=100) == []
    assert state(store, "p", 100) is RowState.EXPIRED


def test_an_expired_row_is_reclaimed_after_its_grace_and_keeps_its_version(make_store):
    store = make_store(hold_ms=0, expiry_grace_ms=10)
    store.apply([upsert("p", 3, expires_at=100)], now_ms=0)
    assert store.reclaim(now_ms=109) == 0
    assert store.reclaim(now_ms=110) == 1
    row = store.get(["p"], now_ms=110)[0]
    assert (row.state, row.update.version, row.update.attributes) == (RowState.EXPIRED, 3, None)
    assert store.apply([upsert("p", 3, expires_at=100)], now_ms=111).stale == 1  # a replay does not bring it back
    store.apply([upsert("p", 4)], now_ms=112)
    assert found(store) == ["p"]


def test_a_tombstone_refuses_latecomers_until_its_window_ends(make_store):
    store = make_store(tombstone_window_ms=1_000)
    store.apply([gone("p", 5)], now_ms=0)
    assert store.apply([upsert("p", 4)], now_ms=1).stale == 1
    assert state(store, "p") is RowState.DELETED
    assert store.reclaim(now_ms=999) == 0
    assert store.reclaim(now_ms=1_000) == 1
    assert state(store, "p") is RowState.ABSENT


def test_a_tombstone_that_came_back_to_life_is_not_released(make_store):
    store = make_store(tombstone_window_ms=1_000)
    store.apply([gone("p", 5)], now_ms=0)
    store.apply([upsert("p", 6)], now_ms=500)
    store.apply([gone("p", 7)], now_ms=900)
    assert store.reclaim(now_ms=1_500) == 0
    assert store.reclaim(now_ms=1_900) == 1


def test_revisions_order_within_a_version(make_store):
    store = make_store()
    store.apply([upsert("p", 1, 0, company="first")], now_ms=0)
    store.apply([upsert("p", 1, 2, company="third"), upsert("p", 1, 1, company="second")], now_ms=0)
    assert store.get(["p"], now_ms=0)[0].update.attributes.company == "third"


def test_a_batch_is_one_epoch_and_nothing_new_is_none(make_store):
    store = make_store(first_epoch=40)
    assert store.apply([upsert("a"), upsert("b"), gone("c", 1)], now_ms=0).epoch == 41
    assert store.apply([upsert("a"), upsert("b")], now_ms=0).epoch == 41


def test_what_is_wrong_with_an_update_is_said_and_its_fellows_are_applied(make_store):
    store = make_store()
    bad = [
        IndexUpdate(posting_id="x", version=1, op=IndexOp.UNKNOWN, produced_at=0),
        IndexUpdate(posting_id="y", version=1, op=IndexOp.UPSERT, produced_at=0),
        gone("", 1),
    ]
    applied = store.apply([*bad, upsert("p")], now_ms=0)
    assert [refusal.position for refusal in applied.refused] == [0, 1, 2]
    assert [refusal.error.field for refusal in applied.refused] == ["op", "attributes", "posting_id"]
    assert applied.accepted == (3,)
    assert found(store) == ["p"]


def test_two_ids_of_one_hash_are_not_both_taken(make_store):
    store = make_store(hash_id=lambda posting_id: 7 if posting_id in ("a", "b") else hash(posting_id) % 2**64)
    applied = store.apply([upsert("a"), upsert("b"), upsert("c")], now_ms=0)
    assert isinstance(applied.refused[0].error, HashCollision)
    assert "'a'" in str(applied.refused[0].error)
    assert isinstance(store.apply([gone("b", 3)], now_ms=0).refused[0].error, HashCollision)
    assert sorted(found(store)) == ["a", "c"]
    assert store.counts().collisions == 2
    assert store.apply([upsert("a", 2)], now_ms=0).accepted == (0,)


def test_a_query_of_another_space_is_refused(make_store):
    store = make_store()
    store.apply([upsert("p", vector=vector(ROW))], now_ms=0)
    with pytest.raises(SpaceMismatch, match=r"space_id.*other.*space-1"):
        store.search(query(ROW, space="other"), None, 1, now_ms=0)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (vector(ROW, space="other"), "space"),
        (vector(ROW[:4]), "4 values"),
        (vector([float("nan")] * 6), "not finite"),
        (vector(ROW, [0] * 5), "5 values"),
        (vector([]), "neither"),
    ],
)
def test_a_vector_that_cannot_be_stored_leaves_the_posting_findable(bad, why, make_store):
    store = make_store()
    store.apply([upsert("p", vector=vector(ROW, [1] * 16))], now_ms=0)
    applied = store.apply([upsert("q", vector=bad, company="Acme")], now_ms=0)
    assert why in applied.without_vector[0][1]
    assert found(store, query(ROW)) == ["p", "q"]
    counts = store.counts()
    assert (counts.without_vector, counts.vectors_refused) == (1, 1)
    assert store.get(["q"], now_ms=0)[0].update.vector is None


def test_a_row_without_vector_scores_nothing_and_one_with_a_sketch_alone_is_found_by_words(make_store):
    store = make_store()
    words = [3] + [0] * 15
    store.apply(
        [upsert("full", vector=vector(ROW, words)), upsert("none"), upsert("sketch", vector=vector([], words))],
        now_ms=0,
    )
    hits = {hit.posting_id: hit for hit in store.search(query(ROW, [1.0] + [0.0] * 15), None, 9, now_ms=0).hits}
    assert (hits["none"].dense, hits["none"].lexical) == (0.0, 0.0)
    assert (hits["sketch"].dense, hits["sketch"].lexical) == (0.0, 3.0)
    assert (hits["full"].dense, hits["full"].lexical) == (1.25, 3.0)


def test_when_the_last_vector_has_gone_another_space_may_come(make_store):
    store = make_store(hold_ms=0)
    store.apply([upsert("p", vector=vector(ROW))], now_ms=0)
    store.apply([gone("p", 2)], now_ms=0)
    store.apply([upsert("q", vector=vector([1.0, 1.0], space="new"))], now_ms=1)
    assert found(store, query([1.0, 1.0], space="new")) == ["q"]


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        (query(ROW[:3]), "vector.dense"),
        (query(ROW, [1.0] * 3), "vector.lexical"),
        (query([float("inf")] * 6), "vector.dense"),
    ],
)
def test_a_malformed_query_vector_names_its_part(asked, field, make_store):
    store = make_store()
    store.apply([upsert("p", vector=vector(ROW, [1] * 16))], now_ms=0)
    with pytest.raises(InvalidRecord) as error:
        store.search(asked, None, 1, now_ms=0)
    assert error.value.field == field


@pytest.mark.parametrize("k", [0, -1, MAX_K + 1])
def test_k_has_a_range(k, make_store):
    with pytest.raises(InvalidRecord, match="k: got"):
        make_store().search(None, None, k, now_ms=0)


def test_two_deletions_of_one_moment_end_once(make_store):
    store = make_store(page_rows=128, tombstone_window_ms=10, hold_ms=0)
    store.apply([upsert(f"p{i}", expires_at=100 if i == 3 else None) for i in range(128)], now_ms=0)
    store.apply([gone("d", 1)], now_ms=5)
    store.apply([gone("d", 2)], now_ms=5)
    for now_ms in (70_000, 70_001, 70_002):
        store.reclaim(now_ms=now_ms)
    rows = store.get(["d", "p3", "p127"], now_ms=50)
    assert [row.state for row in rows] == ["ABSENT", "EXPIRED", "LIVE"]
    assert store.counts().live == 127


def test_values_past_the_eighth_are_found_while_others_are_written(make_store, slow):
    store = make_store(page_rows=1_024, hold_ms=0)
    many = tuple(f"s{i}" for i in range(40))
    store.apply([upsert("p", skills=many)], now_ms=0)
    done, wrong = threading.Event(), []

    def read():
        while not done.is_set():
            for word in ("s39", "s9"):
                found_ids = {hit.posting_id for hit in store.search(None, is_in("skills", word), 50, now_ms=0).hits}
                if "p" not in found_ids:
                    wrong.append(found_ids)

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        try:
            for version in range(1, 15 if slow else 150):
                words = tuple(f"t{version}-{i}" for i in range(30))
                store.apply([upsert(f"q{i}", version, skills=words) for i in range(4)], now_ms=version)
        finally:
            done.set()
        for reader in readers:
            reader.result(30)
    assert wrong == []


def test_the_oldest_moment_there_is_comes_last(make_store):
    store = make_store(page_rows=128)
    store.apply([upsert("a", posted_at=-(2**63)), upsert("b", posted_at=0), upsert("c", posted_at=5)], now_ms=0)
    assert [hit.posting_id for hit in store.search(None, None, 3, now_ms=0).hits] == ["c", "b", "a"]


def test_without_a_vector_the_newest_come_first(make_store):
    store = make_store()
    store.apply(
        [upsert("old", posted_at=1), upsert("new", posted_at=9), upsert("produced", produced_at=5, posted_at=None)],
        now_ms=0,
    )
    assert found(store) == ["new", "produced", "old"]
    assert found(store, k=1) == ["new"]


def test_an_epoch_is_gone_once_its_rows_are_retired_and_not_before(make_store):
    store = make_store(hold_ms=0)
    first = store.apply([upsert("a")], now_ms=0).epoch
    with store.pin() as pin:
        store.apply([gone("a", 2)], now_ms=1)
        store.apply([upsert("b")], now_ms=2)
        assert found(store, at_epoch=pin.epoch) == ["a"]
    assert found(store, at_epoch=first) == ["a"]  # nobody has needed the slot yet
    store.apply([upsert("c")], now_ms=3)
    with pytest.raises(EpochGone, match="at_epoch"):
        found(store, at_epoch=first)
    with pytest.raises(EpochGone):
        found(store, at_epoch=store.epoch + 1)


def test_a_dead_row_is_kept_for_a_while_without_a_pin(make_store):
    store = make_store(hold_ms=1_000)
    first = store.apply([upsert("a")], now_ms=0).epoch
    store.apply([gone("a", 2)], now_ms=10)
    store.reclaim(now_ms=1_009)
    assert found(store, at_epoch=first) == ["a"]
    store.reclaim(now_ms=1_010)
    with pytest.raises(EpochGone):
        found(store, at_epoch=first)


def test_turnover_does_not_grow_memory(make_store):
    store = make_store(page_rows=128, hold_ms=0, tombstone_window_ms=5)

    def generation(number):
        words = {f"skill-{number}-{i}" for i in range(20)}
        batch = [
            upsert(
                f"p{number}-{i}",
                vector=vector(ROW, [1] * 16),
                tenant=f"t{number}",
                company=f"c{number}",
                skills=tuple(words),
            )
            for i in range(50)
        ]
        store.apply(batch, now_ms=10 * number)
        store.apply([gone(update.posting_id, 2) for update in batch], now_ms=10 * number + 1)
        store.reclaim(now_ms=10 * number + 9)
        return store.counts()

    settled = [generation(number) for number in range(10, 13)][-1]
    later = [generation(number) for number in range(13, 40)][-1]
    assert later.nbytes <= settled.nbytes * 1.001
    assert later.capacity == settled.capacity
    assert later.tombstones == 0


@pytest.mark.parametrize("where", ["text.terms", "flush"])
def test_a_failure_half_way_leaves_nothing_behind(monkeypatch, where, make_store):
    store = make_store(page_rows=128)
    store.apply([upsert("a", company="Acme")], now_ms=0)
    before = store.counts()
    updates = [upsert("b", company="Initech", vector=vector(ROW)), upsert("c", title="breaks", company="Initech")]
    if where == "text.terms":
        honest = columns.text.terms
        monkeypatch.setattr(columns.text, "terms", lambda title: honest(title) if title != "breaks" else 1 / 0)
    else:
        monkeypatch.setattr(store._rows, "flush", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        store.apply(updates, now_ms=0)
    monkeypatch.undo()
    assert found(store) == ["a"]
    assert store.counts().epoch == before.epoch
    assert not store.holds(is_in("company", "Initech"), now_ms=0)
    other = [0.25, *ROW[1:]]
    store.apply([upsert("c", vector=vector(other)), upsert("b")], now_ms=0)  # into the slots that were given back
    hits = store.search(query(ROW), None, 9, now_ms=0).hits
    assert {hit.posting_id: hit.score for hit in hits} == {"a": 0.0, "b": 0.0, "c": 0.5}
    assert store.counts().capacity == before.capacity


def test_waiting_for_a_version(make_store):
    store = make_store()
    assert not store.await_version("p", 3, 0.01)
    waiter = threading.Thread(target=lambda: seen.append(store.await_version("p", 3, 30)))
    seen = []
    waiter.start()
    store.apply([upsert("p", 2)], now_ms=0)
    store.apply([upsert("p", 4)], now_ms=0)
    waiter.join(30)
    assert seen == [True]


def test_readers_see_whole_epochs_while_a_writer_turns_everything_over(make_store, slow):
    """Every batch gives all rows one new version, in other slots: a reader that mixes two has broken the promise."""
    ids = [f"p{i}" for i in range(40)]
    store = make_store(page_rows=128, hold_ms=0)
    rng = np.random.default_rng(3)

    def generation(version):
        rows = (rng.integers(-4, 5, (40, 6))).astype(np.float32)
        return [
            upsert(id_, version, vector=vector(rows[i]), company=f"c{version}", skills=(f"s{version % 3}", "x"))
            for i, id_ in enumerate(ids)
        ]

    store.apply(generation(1), now_ms=0)
    done, wrong, reads = threading.Event(), [], []
    finished = [threading.Event() for _ in range(3)]  # a read of each reader, since the writer last looked

    def read(asked, tree, mine):
        # A moment between reads: three threads that never rest would keep the interpreter's lock from the writer.
        while not done.wait(0.002) or not reads:
            with store.pin() as pin:
                first = store.search(asked, tree, 100, now_ms=0, at_epoch=pin.epoch)
                again = store.search(asked, tree, 100, now_ms=0, at_epoch=pin.epoch)
            versions = {hit.version for hit in first.hits}
            if first != again or len(versions) > 1 or (tree is None and first.total != 40):
                wrong.append((first.total, versions))
            reads.append(first.epoch)
            mine.set()

    with ThreadPoolExecutor(3) as pool:
        asked = ((query(ROW), None), (None, None), (query(ROW), is_in("skills", "s1")))
        readers = [pool.submit(read, *args, mine) for args, mine in zip(asked, finished, strict=True)]
        try:
            for version in range(2, 6 if slow else 100):
                store.apply(generation(version), now_ms=version)
                for each in finished:  # so that no pin is older than a few versions, and slots must go round
                    assert each.wait(30)
                    each.clear()
        finally:
            done.set()
        for reader in readers:
            reader.result(30)
    assert wrong == []
    assert len(set(reads)) > 3
    assert store.counts().capacity <= 512  # slots went round
