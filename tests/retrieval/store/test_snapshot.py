"""Snapshots: the same answers after a restart, written while serving, and every kind of damage known and survived."""

import numpy as np
import pytest
from store_inputs import gone, query, upsert, vector
from store_oracle import shown

from penstock.retrieval.store.errors import SnapshotCorrupt
from penstock.retrieval.store.slabs import POSTINGS
from penstock.retrieval.store.snapshot import Covered, Snapshots, read
from penstock.retrieval.store.store import Store

ASKED = query([0.5, -1.0, 2.0, 0.0, 1.0, 0.25], [0.01] * 16)
COVERED = Covered({0: 12, 3: 4}, "cluster/topic")


def filled(count=60, first_epoch=0):
    rng = np.random.default_rng(1)
    store = Store(page_rows=128, first_epoch=first_epoch, clock=lambda: 777)
    batch = []
    for i in range(count):
        plane = vector(rng.integers(-3, 4, 6).astype(np.float32), rng.integers(-9, 9, 16) if i % 3 else None)
        batch.append(upsert(f"p{i}", vector=plane if i % 5 else None, company=f"c{i % 4}", expires_at=50 + i))
    store.apply([*batch, upsert("other", vector=vector([1.0], space="strange"))], now_ms=1)
    store.apply([gone(f"p{i}", 2) for i in range(0, count, 7)], now_ms=2)
    return store


def test_a_restored_store_is_the_same_store(tmp_path):
    store = filled()
    snapshots = Snapshots(tmp_path, POSTINGS)
    path = snapshots.write(store.capture(), COVERED)
    back = Store()
    restored = snapshots.restore(back)
    assert (restored.covered, restored.path, restored.problems) == (COVERED, path, ())
    ids = [f"p{i}" for i in range(61)] + ["other"]
    assert back.get(ids, now_ms=60) == store.get(ids, now_ms=60)
    for now_ms in (10, 70, 200):
        for asked in (ASKED, None):
            assert shown(back.search(asked, None, 30, now_ms=now_ms)) == shown(
                store.search(asked, None, 30, now_ms=now_ms)
            )
    assert back.counts().vectors_refused == 1
    assert back.apply([gone("p0", 1)], now_ms=3).stale == 1  # tombstones are in it
    assert back.get(["p1"], now_ms=0)[0].searchable_at == 777


def test_an_empty_store_has_a_snapshot_too(tmp_path):
    snapshots = Snapshots(tmp_path, POSTINGS)
    snapshots.write(Store().capture(), Covered({}, ""))
    store = Store()
    assert snapshots.restore(store).covered == Covered({}, "")
    assert store.counts().live == 0


def test_a_capture_does_not_change_while_the_store_does(tmp_path):
    store = filled()
    ids = [f"p{i}" for i in range(61)]
    before = store.get(ids, now_ms=0)
    capture = store.capture()
    for version in range(3, 9):  # every slot would have gone round several times
        store.apply([upsert(id_, version, vector=vector([9.0] * 6, [9] * 16)) for id_ in ids], now_ms=10_000 * version)
    Snapshots(tmp_path, POSTINGS).write(capture, COVERED)
    back = Store()
    Snapshots(tmp_path, POSTINGS).restore(back)
    assert back.get(ids, now_ms=0) == before
    store.apply([upsert("last")], now_ms=100_000)
    assert store.counts().held_dead == 0  # the capture was released


def test_the_newest_two_are_kept(tmp_path):
    store, snapshots = filled(), Snapshots(tmp_path, POSTINGS)
    paths = []
    for version in range(4):
        store.apply([upsert("p1", 10 + version)], now_ms=5)
        paths.append(snapshots.write(store.capture(), COVERED))
    assert snapshots.paths() == [paths[3], paths[2]]


def damaged(data, how):
    middle = len(data) // 2
    return {
        "truncated": data[:-7],
        "half": data[:middle],
        "empty": b"",
        "flipped": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
        "first byte": b"X" + data[1:],
        "last byte": data[:-1] + b"X",
        "grown": data[:100] + b"\0" + data[100:],
        "zeros": bytes(len(data)),
    }[how]


@pytest.mark.parametrize("how", ["truncated", "half", "empty", "flipped", "first byte", "last byte", "grown", "zeros"])
def test_a_damaged_snapshot_is_named_and_the_one_before_is_used(tmp_path, how):
    store, snapshots = filled(), Snapshots(tmp_path, POSTINGS)
    older = snapshots.write(store.capture(), COVERED)
    store.apply([upsert("p1", 10)], now_ms=5)
    newer = snapshots.write(store.capture(), COVERED)
    newer.write_bytes(damaged(newer.read_bytes(), how))
    with pytest.raises(SnapshotCorrupt, match=newer.name):
        read(newer, POSTINGS)
    back = Store()
    restored = Snapshots(tmp_path, POSTINGS).restore(back)
    assert restored.path == older
    assert newer.name in restored.problems[0]
    assert back.get(["p1"], now_ms=0)[0].update.version == 1
    again = Snapshots(tmp_path, POSTINGS).restore(Store())  # set aside: the next start does not trip over it
    assert (again.path, again.problems) == (older, ())


def test_every_single_flipped_byte_is_noticed(tmp_path):
    path = Snapshots(tmp_path, POSTINGS).write(filled(3).capture(), COVERED)
    data = path.read_bytes()
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
        with pytest.raises(SnapshotCorrupt):
            read(path, POSTINGS)


def test_no_usable_snapshot_means_replay_everything(tmp_path):
    path = Snapshots(tmp_path, POSTINGS).write(filled(3).capture(), COVERED)
    path.write_bytes(b"")
    store = Store()
    restored = Snapshots(tmp_path, POSTINGS).restore(store)
    assert restored.covered is None and len(restored.problems) == 1
    assert store.counts().live == 0


def test_a_writer_killed_half_way_leaves_the_older_one(tmp_path, monkeypatch):
    store, snapshots = filled(), Snapshots(tmp_path, POSTINGS)
    older = snapshots.write(store.capture(), COVERED)
    store.apply([upsert("p1", 10)], now_ms=5)
    (tmp_path / "snapshot-00000000000000009999.tmp").write_bytes(b"half a snap")
    assert Snapshots(tmp_path, POSTINGS).restore(Store()).path == older
    assert list(tmp_path.glob("*.tmp")) == []


def test_a_disk_that_refuses_costs_nothing_but_the_snapshot(tmp_path, monkeypatch):
    store, snapshots = filled(), Snapshots(tmp_path, POSTINGS)
    older = snapshots.write(store.capture(), COVERED)
    store.apply([upsert("p1", 10)], now_ms=5)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("penstock.retrieval.store.snapshot.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        snapshots.write(store.capture(), COVERED)
    assert snapshots.paths() == [older]
    assert list(tmp_path.glob("*.tmp")) == []
    store.apply([gone("p1", 11)], now_ms=100_000)
    store.reclaim(now_ms=200_000)
    store.reclaim(now_ms=300_000)
    assert store.counts().held_dead == 0  # released all the same
