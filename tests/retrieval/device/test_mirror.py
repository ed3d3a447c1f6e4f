"""The device's copy through any history of a store: array by array what the host's pages say, and never sooner seen."""

import gc
import weakref
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mirrored import differences
from store_inputs import gone, query, updates, upsert, vector
from store_oracle import Oracle, shown

from penstock.retrieval.device.arenas import FIRST_PAGES, layout_of, page_bytes
from penstock.retrieval.device.backend import Budget
from penstock.retrieval.device.search import NO_MEMORY
from penstock.retrieval.search.plan import Choice
from penstock.retrieval.store.errors import OutOfRoom
from penstock.retrieval.store.slabs import POSTINGS
from penstock.retrieval.store.snapshot import Covered, Snapshots
from penstock.retrieval.store.store import Store


@pytest.fixture(params=["by kernels", "by torch"], scope="module")
def writing_backend(request, device_backend):
    """Rows are written in either way."""
    return replace(device_backend, scatters=request.param == "by kernels")


ROW = [1.0, 0.5, 0.0, 0.0, 0.0, 0.0]

steps = st.lists(
    st.one_of(
        st.tuples(st.just("apply"), st.lists(updates(), max_size=8)),
        st.tuples(st.just("wait"), st.integers(1, 30)),
        st.tuples(st.just("reclaim"), st.none()),
        st.tuples(st.just("restart"), st.none()),
    ),
    max_size=12,
)


@settings(max_examples=6)  # the interpreter is slow
@given(script=steps)
def test_the_device_holds_what_the_host_holds(writing_backend, tmp_path_factory, script):
    def fresh():
        return Store(page_rows=128, hold_ms=0, expiry_grace_ms=0, backend=writing_backend)

    store, now_ms = fresh(), 0
    for what, given_ in script:
        if what == "apply":
            store.apply(given_, now_ms=now_ms)
        elif what == "wait":
            now_ms += given_
        elif what == "reclaim":
            store.reclaim(now_ms=now_ms)
        else:
            snapshots = Snapshots(tmp_path_factory.mktemp("snapshots"), POSTINGS)
            snapshots.write(store.capture(), Covered({0: 7}, "log"))
            store = fresh()
            snapshots.restore(store)
        assert differences(store) == []


def test_many_pages_of_a_store_turned_over_and_restored(writing_backend, tmp_path):
    rng = np.random.default_rng(3)
    store = Store(page_rows=256, hold_ms=0, expiry_grace_ms=0, backend=writing_backend)
    for version in range(1, 4):
        planes, sketches = rng.integers(-3, 4, (1_500, 40)).astype(np.float32), rng.integers(-9, 9, (1_500, 24))
        batch = [
            upsert(
                f"p{i}",
                version,
                vector=vector(planes[i], sketches[i] if i % 3 else None) if i % 4 else None,
                posted_at=int(rng.integers(0, 9)) * 7 * 86_400_000,
                skills=tuple(f"s{n}" for n in range(i % 14)),
            )
            for i in np.flatnonzero(rng.random(1_500) < 0.6).tolist()
        ]
        store.apply([*batch, *(gone(f"p{i}", version) for i in range(0, 1_500, 7))], now_ms=version)
        store.reclaim(now_ms=version)
        assert differences(store) == []
    assert len(store._rows.table.pages) > FIRST_PAGES
    snapshots = Snapshots(tmp_path, POSTINGS)
    snapshots.write(store.capture(), Covered({}, ""))
    back = Store(page_rows=512, backend=writing_backend)  # slots are kept, pages are of another size
    snapshots.restore(back)
    assert differences(back) == []
    assert back.counts().live == store.counts().live


def test_planes_of_another_width_keep_every_attribute(writing_backend):
    store = Store(page_rows=128, hold_ms=0, backend=writing_backend)
    store.apply([upsert(f"p{i}", company=f"c{i % 3}", tenant=f"t{i % 2}") for i in range(300)], now_ms=0)
    before = store._rows.table.arenas
    store.apply([upsert("dense", vector=vector(ROW))], now_ms=0)
    assert (store._rows.table.arenas.layout.dense, before.layout.dense) == (6, 0)
    assert differences(store) == []
    store.apply([upsert("both", vector=vector(ROW, [3] * 16))], now_ms=0)  # now the sketch's width is known as well
    layout = store._rows.table.arenas.layout
    assert (layout.dense, layout.sketch) == (6, 16)
    assert differences(store) == []


def test_a_row_that_dies_stays_as_it_was_for_readers_of_the_epoch_before(writing_backend):
    store = Store(page_rows=128, hold_ms=1_000, backend=writing_backend)
    store.apply([upsert("p", vector=vector(ROW))], now_ms=0)
    with store.pin() as pin:
        slot = store._known["p"]
        store.apply([upsert("p", 2, vector=vector(ROW[::-1]))], now_ms=1)
        arenas = pin.table.arenas
        births, deaths = (arenas.view(0, name).cpu().numpy() for name in ("birth", "death"))
        assert (births[slot], deaths[slot]) == (pin.epoch, pin.epoch + 1)
        assert births[store._known["p"]] == pin.epoch + 1


# --- memory ------------------------------------------------------------------------------------------------------


def bounded(backend, pages, page_rows=128, dense=0, sketch=0):
    """The same backend with room for so many pages."""
    return replace(backend, budget=Budget(pages * page_bytes(layout_of(page_rows, dense, sketch))))


def test_a_page_that_would_take_the_device_past_its_bound_is_refused_with_the_numbers(writing_backend):
    backend = bounded(writing_backend, 2)
    store = Store(page_rows=128, hold_ms=0, backend=backend)
    applied = store.apply([upsert(f"p{i}") for i in range(300)], now_ms=0)
    assert (len(applied.accepted), len(applied.refused)) == (256, 44)
    error = applied.refused[0].error
    assert isinstance(error, OutOfRoom)
    assert (error.held, error.limit) == (backend.budget.held, backend.budget.limit)
    assert error.held <= error.limit < error.held + error.needed
    assert f"{error.limit:,}" in str(error) and "raise retrieval.device_bytes" in str(error)
    assert store.counts().capacity == 256 and differences(store) == []
    store.apply([gone("p5", 2)], now_ms=1)
    assert store.apply([upsert("p299")], now_ms=2).accepted == (0,)  # once there is room


def test_planes_that_do_not_fit_on_the_device_leave_all_as_it_was(writing_backend):
    backend = bounded(writing_backend, 2)
    store = Store(page_rows=128, backend=backend)
    store.apply([upsert(f"p{i}") for i in range(200)], now_ms=0)
    held = backend.budget.held
    (refusal,) = store.apply([upsert("big", vector=vector([1.0] * 384, [1] * 1024))], now_ms=0).refused
    assert isinstance(refusal.error, OutOfRoom) and "device_bytes" in str(refusal.error)
    assert backend.budget.held == held and store.space_id == ""
    assert differences(store) == []


def test_what_is_counted_is_held_and_goes_back_when_nobody_holds_it(writing_backend):
    backend = bounded(writing_backend, 100)
    store = Store(page_rows=128, backend=backend)
    store.apply([upsert(f"p{i}") for i in range(300)], now_ms=0)
    assert backend.budget.held == 3 * page_bytes(layout_of(128, 0, 0))
    assert store.counts().bytes_device >= backend.budget.held
    with store.pin():
        store.apply([upsert("v", vector=vector(ROW))], now_ms=0)
        both = 3 * (page_bytes(layout_of(128, 0, 0)) + page_bytes(layout_of(128, 6, 0)))
        assert backend.budget.held == both  # the reader's pages are still there
    gc.collect()
    assert backend.budget.held == 3 * page_bytes(layout_of(128, 6, 0))
    del store
    gc.collect()
    assert backend.budget.held == 0


def test_what_searches_work_in_is_the_budget_s_and_a_batch_that_it_has_no_room_for_is_the_host_s(device_backend):
    batch = [upsert(f"p{i}", vector=vector(ROW)) for i in range(100)]
    for room, plan in ((1 << 22, Choice.DEVICE_SCAN), (100, f"{Choice.DENSE} on the host: {NO_MEMORY}")):
        backend = replace(device_backend, budget=Budget(None))
        store = Store(page_rows=128, hold_ms=0, backend=backend)
        store.apply(batch, now_ms=0)
        pages = backend.budget.held
        backend.budget.limit = pages + room
        found = store.search(query(ROW), None, 5, now_ms=0)
        assert shown(found) == Oracle(batch).search(query(ROW), None, 5, now_ms=0)
        assert found.plan == plan
        assert backend.budget.held == pages + store._device._workspace.nbytes <= backend.budget.limit
        assert (store._device._workspace.nbytes > 0) is (plan == Choice.DEVICE_SCAN)
        del store
        gc.collect()
        assert backend.budget.held == 0


def test_a_page_that_came_after_a_reader_stays_as_long_as_the_reader_s_page_table_names_it(writing_backend):
    store = Store(page_rows=128, backend=writing_backend)
    store.apply([upsert(f"p{i}") for i in range(100)], now_ms=0)
    with store.pin() as pin:
        slabs = pin.table.arenas.slabs
        store.apply([upsert(f"q{i}") for i in range(100)], now_ms=0)
        assert store._rows.table.arenas.slabs is slabs and len(pin.table.arenas.pages) == 1
        later = weakref.ref(store._rows.table.arenas.pages[1])
        store.apply([upsert("v", vector=vector(ROW))], now_ms=0)
        gc.collect()
        assert store._rows.table.arenas.slabs is not slabs
        assert slabs.table[1] == later().bytes.data_ptr()  # or its kernels would read what is somebody else's by now
    del pin, slabs
    gc.collect()
    assert later() is None


def test_a_snapshot_that_the_device_cannot_hold_is_refused_with_the_numbers(writing_backend, tmp_path):
    store = Store(page_rows=128)
    store.apply([upsert(f"p{i}") for i in range(300)], now_ms=0)
    snapshots = Snapshots(tmp_path, POSTINGS)
    snapshots.write(store.capture(), Covered({}, ""))
    with pytest.raises(OutOfRoom, match=r"raise retrieval\.device_bytes"):
        snapshots.restore(Store(page_rows=128, backend=bounded(writing_backend, 2)))
