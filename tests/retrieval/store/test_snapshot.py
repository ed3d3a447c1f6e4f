"""Snapshots: the same answers after a restart, written while serving, and every kind of damage known and survived."""

import numpy as np
import pytest
from store_inputs import gone, query, upsert, vector
from store_oracle import shown

from penstock.retrieval.store import slabs, snapshot
from penstock.retrieval.store.errors import SnapshotCorrupt
from penstock.retrieval.store.slabs import POSTINGS
from penstock.retrieval.store.snapshot import Covered, Snapshots, read
from penstock.retrieval.store.store import Store
from penstock.schemas.filters import is_in

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


def test_a_restored_store_is_the_same_store(tmp_path, make_store):
    store = filled()
    snapshots = Snapshots(tmp_path, POSTINGS)
    path = snapshots.write(store.capture(), COVERED)
    back = make_store()
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


def test_an_empty_store_has_a_snapshot_too(tmp_path, make_store):
    snapshots = Snapshots(tmp_path, POSTINGS)
    snapshots.write(make_store().capture(), Covered({}, ""))
    store = make_store()
    assert snapshots.restore(store).covered == Covered({}, "")
    assert store.counts().live == 0


def test_a_capture_does_not_change_while_the_store_does(tmp_path, make_store):
    store = filled()
    ids = [f"p{i}" for i in range(61)]
    before = store.get(ids, now_ms=0)
    capture = store.capture()
    for version in range(3, 9):  # every slot would have gone round several times
        store.apply([upsert(id_, version, vector=vector([9.0] * 6, [9] * 16)) for id_ in ids], now_ms=10_000 * version)
    Snapshots(tmp_path, POSTINGS).write(capture, COVERED)
    back = make_store()
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
def test_a_damaged_snapshot_is_named_and_the_one_before_is_used(tmp_path, how, make_store):
    store, snapshots = filled(), Snapshots(tmp_path, POSTINGS)
    older = snapshots.write(store.capture(), COVERED)
    store.apply([upsert("p1", 10)], now_ms=5)
    newer = snapshots.write(store.capture(), COVERED)
    newer.write_bytes(damaged(newer.read_bytes(), how))
    with pytest.raises(SnapshotCorrupt, match=newer.name):
        read(newer, POSTINGS)
    back = make_store()
    restored = Snapshots(tmp_path, POSTINGS).restore(back)
    assert restored.path == older
    assert newer.name in restored.problems[0]
    assert back.get(["p1"], now_ms=0)[0].update.version == 1
    again = Snapshots(tmp_path, POSTINGS).restore(make_store())  # set aside: the next start does not trip over it
    assert (again.path, again.problems) == (older, ())


def parts_of(folder):
    return sorted(folder.glob("part-*.penstock"))


@pytest.mark.parametrize("how", ["truncated", "half", "empty", "flipped", "first byte", "last byte", "grown", "zeros"])
def test_a_damaged_slab_is_named_and_the_snapshot_before_is_used(tmp_path, how, make_store):
    store, snapshots = filled(200), Snapshots(tmp_path, POSTINGS)
    older = snapshots.write(store.capture(), COVERED)
    before = set(parts_of(tmp_path))
    store.apply([upsert("p1", 10)], now_ms=5)
    newer = snapshots.write(store.capture(), COVERED)
    (slab,) = set(parts_of(tmp_path)) - before
    slab.write_bytes(damaged(slab.read_bytes(), how))
    with pytest.raises(SnapshotCorrupt, match=f"{newer.name}.*{slab.name}"):
        read(newer, POSTINGS)
    back = make_store()
    restored = Snapshots(tmp_path, POSTINGS).restore(back)
    assert restored.path == older and slab.name in restored.problems[0]
    assert back.get(["p1"], now_ms=0)[0].update.version == 1


def test_a_slab_that_is_missing_or_of_another_store_is_noticed(tmp_path, make_store):
    store, other = filled(200), filled(190)
    path = Snapshots(tmp_path / "one", POSTINGS).write(store.capture(), COVERED)
    Snapshots(tmp_path / "two", POSTINGS).write(other.capture(), COVERED)
    slab = parts_of(path.parent)[1]
    twin = tmp_path / "two" / slab.name
    assert twin.read_bytes() != slab.read_bytes()
    slab.write_bytes(twin.read_bytes())  # whole, of the same name, and not the one
    with pytest.raises(SnapshotCorrupt, match=f"{slab.name} is not the one"):
        read(path, POSTINGS)
    slab.unlink()
    with pytest.raises(SnapshotCorrupt, match=f"{slab.name}, which it needs, is not there"):
        read(path, POSTINGS)
    assert Snapshots(path.parent, POSTINGS).restore(make_store()).covered is None


def test_every_single_flipped_byte_is_noticed(tmp_path):
    path = Snapshots(tmp_path, POSTINGS).write(filled(3).capture(), COVERED)
    (slab,) = parts_of(tmp_path)
    for file, step in ((path, 1), (slab, 97)):  # a slab has a block of rows: too many bytes to flip each
        data = file.read_bytes()
        for place in range(0, len(data), step):
            file.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
            with pytest.raises(SnapshotCorrupt):
                read(path, POSTINGS)
        file.write_bytes(data)
    read(path, POSTINGS)


def test_only_pages_in_which_rows_were_born_are_written_again(tmp_path, make_store):
    store, snapshots = filled(600), Snapshots(tmp_path, POSTINGS)
    snapshots.write(store.capture(), COVERED)
    first = {slab: slab.stat().st_mtime_ns for slab in parts_of(tmp_path)}
    assert len(first) > 3
    store.apply([gone(f"p{i}", 3) for i in range(1, 600, 6)], now_ms=5)  # deaths everywhere
    snapshots.write(store.capture(), COVERED)
    assert {slab: slab.stat().st_mtime_ns for slab in parts_of(tmp_path)} == first
    store.apply([upsert("new")], now_ms=5)
    snapshots.write(store.capture(), COVERED)
    after = {slab: slab.stat().st_mtime_ns for slab in parts_of(tmp_path)}
    assert len(set(after.items()) - set(first.items())) == 1
    back, again = make_store(page_rows=128, first_epoch=1_000), Snapshots(tmp_path, POSTINGS)
    again.restore(back)
    assert back.checksum() == store.checksum()
    back.apply([gone("new", 5)], now_ms=6)
    again.write(back.capture(), COVERED)  # nor after a restart
    assert {slab: slab.stat().st_mtime_ns for slab in parts_of(tmp_path)}.items() <= after.items()


def test_slabs_that_no_snapshot_needs_go(tmp_path):
    store, snapshots = filled(300), Snapshots(tmp_path, POSTINGS)
    (tmp_path / "part-00009-00000000000000000001.penstock").write_bytes(b"of a writer that was killed")
    for version in range(10, 20):
        store.apply([upsert(f"p{i}", version) for i in range(1, 300, 7)], now_ms=version * 10_000)
        snapshots.write(store.capture(), COVERED)
    needed = set()
    for path in snapshots.paths():
        assert read(path, POSTINGS)
        text = path.read_bytes()
        needed |= {slab for slab in parts_of(tmp_path) if slab.name.encode() in text}
    assert set(parts_of(tmp_path)) == needed


def test_a_restored_store_goes_on_as_the_old_one_would(tmp_path, make_store, slow):
    """Codes, overflow, zones and places are as good as those that grew with the rows."""
    store, snapshots = filled(300), Snapshots(tmp_path, POSTINGS)
    store.apply([upsert("many", skills=tuple(f"s{i}" for i in range(20)), company="Only Here")], now_ms=3)
    snapshots.write(store.capture(), COVERED)
    back = make_store(page_rows=128)
    snapshots.restore(back)
    counts = (store.counts(), back.counts())
    assert counts[0].live == counts[1].live
    assert counts[0].spare + counts[0].held_dead == counts[1].spare
    assert counts[1].nbytes == pytest.approx(counts[0].nbytes, rel=0.05)
    later = [
        [
            upsert(f"p{i}", 7, company=f"d{i % 3}", skills=tuple(f"t{j}" for j in range(i % 12)))
            for i in range(0, 300, 2)
        ],
        [gone("many", 9), upsert("p1", 9, company="Only Here")],
    ]
    trees = [is_in("skills", "s19"), is_in("company", "only here"), is_in("company", "d1"), is_in("skills", "t11")]
    for batch in [[], *later]:
        for each in (store, back):
            each.apply(batch, now_ms=50_000)
            each.reclaim(now_ms=90_000)
        assert back.checksum() == store.checksum()
        for tree in trees:
            wanted, got = (each.search(ASKED, tree, 40 if slow else 400, now_ms=10) for each in (store, back))
            assert shown(got) == shown(wanted)
            assert back.explain(tree, now_ms=10).passed == store.explain(tree, now_ms=10).passed == wanted.total


def test_a_snapshot_of_a_layout_that_this_release_does_not_know_is_not_used(tmp_path, monkeypatch):
    snapshots = Snapshots(tmp_path, POSTINGS)
    path = snapshots.write(filled().capture(), COVERED)
    monkeypatch.setattr(slabs, "layout", lambda: "another")
    with pytest.raises(SnapshotCorrupt, match=f"{path.name}.*another release"):
        read(path, POSTINGS)


def test_a_writer_rests_in_proportion_to_what_it_writes(tmp_path, monkeypatch):
    rests = []
    monkeypatch.setattr(snapshot.time, "sleep", rests.append)
    monkeypatch.setattr(snapshot, "PIECE", 1)
    store = filled(300)
    size = sum(file.stat().st_size for file in [Snapshots(tmp_path / "a", POSTINGS).write(store.capture(), COVERED)])
    size += sum(slab.stat().st_size for slab in parts_of(tmp_path / "a"))
    assert rests == []
    paced = Snapshots(tmp_path / "b", POSTINGS, bytes_per_s=1_000.0)
    paced.write(store.capture(), COVERED)
    assert sum(rests) == pytest.approx(size / 1_000, rel=0.2)  # the manifests are not counted
    rests.clear()
    store.apply([upsert("p1", 99)], now_ms=0)
    paced.write(store.capture(), COVERED, hurry=True)
    assert rests == []


def test_no_usable_snapshot_means_replay_everything(tmp_path, make_store):
    path = Snapshots(tmp_path, POSTINGS).write(filled(3).capture(), COVERED)
    path.write_bytes(b"")
    store = make_store()
    restored = Snapshots(tmp_path, POSTINGS).restore(store)
    assert restored.covered is None and len(restored.problems) == 1
    assert store.counts().live == 0


def test_a_writer_killed_half_way_leaves_the_older_one(tmp_path, monkeypatch, make_store):
    store, snapshots = filled(), Snapshots(tmp_path, POSTINGS)
    older = snapshots.write(store.capture(), COVERED)
    store.apply([upsert("p1", 10)], now_ms=5)
    (tmp_path / "snapshot-00000000000000009999.tmp").write_bytes(b"half a snap")
    assert Snapshots(tmp_path, POSTINGS).restore(make_store()).path == older
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


def test_a_page_whose_rows_have_all_died_has_no_slab(tmp_path, make_store):
    store, snapshots = make_store(page_rows=128), Snapshots(tmp_path, POSTINGS)
    store.apply([upsert(f"p{i}") for i in range(200)], now_ms=0)
    store.apply([gone(f"p{i}", 2) for i in range(128, 200)], now_ms=1)
    snapshots.write(store.capture(), COVERED)
    back = make_store(page_rows=128)
    snapshots.restore(back)
    assert back.counts().live == 128 and back.checksum() == store.checksum()
    one = make_store()
    one.apply([upsert("only")], now_ms=0)
    one.apply([gone("only", 2)], now_ms=0)
    Snapshots(tmp_path / "one", POSTINGS).write(one.capture(), COVERED)
    Snapshots(tmp_path / "one", POSTINGS).restore(back := make_store())
    assert (back.counts().live, back.counts().tombstones) == (0, 1)


def test_texts_of_rows_that_died_since_their_slab_was_written_do_not_come_back(tmp_path, make_store):
    store, snapshots = make_store(page_rows=128), Snapshots(tmp_path, POSTINGS)
    store.apply([upsert(f"p{i}", company="long " * 100) for i in range(128)], now_ms=0)
    snapshots.write(store.capture(), COVERED)
    store.apply([gone(f"p{i}", 2) for i in range(100)], now_ms=1)
    snapshots.write(store.capture(), COVERED)
    back = make_store(page_rows=128, memory_bytes=store.counts().nbytes)  # which counts the dead until they retire
    assert snapshots.restore(back).covered == COVERED
    store.reclaim(now_ms=100_000)
    assert back.counts().bytes_records == store.counts().bytes_records
    back.apply([gone(f"p{i}", 2) for i in range(100, 128)], now_ms=1)
    back.reclaim(now_ms=100_000)
    assert back._rows._text_bytes == 0


def test_ids_with_blanks_and_capitals_are_found_and_deleted_after_a_restart(tmp_path, make_store):
    store, snapshots = make_store(page_rows=128), Snapshots(tmp_path, POSTINGS)
    store.apply([upsert(posting_id) for posting_id in (" a", "b", "C", "d e")], now_ms=0)
    snapshots.write(store.capture(), COVERED)
    snapshots.restore(back := make_store(page_rows=128))
    for wanted in ("a", "b", "c", "d e"):
        (hit,) = back.search(None, is_in("posting_id", wanted), 5, now_ms=0).hits
        assert hit.posting_id.strip().lower() == wanted
    back.apply([gone(posting_id, 2) for posting_id in (" a", "b", "C", "d e")], now_ms=1)
    back.reclaim(now_ms=100_000)
    assert back.counts().held_dead == 0


def test_a_space_that_no_live_row_has_is_not_kept(tmp_path, make_store):
    store, snapshots = make_store(page_rows=128), Snapshots(tmp_path, POSTINGS)
    store.apply([upsert("a", vector=vector([1.0] * 6, space="old")), upsert("b")], now_ms=0)
    store.apply([gone("a", 2)], now_ms=0)
    snapshots.write(store.capture(), COVERED)  # the dead row still has its vector
    snapshots.restore(back := make_store(page_rows=128))
    assert back.space_id == ""
    back.apply([upsert("c", vector=vector([1.0] * 4, space="new"))], now_ms=0)
    assert (back.space_id, back.counts().vectors_refused) == ("new", 0)
