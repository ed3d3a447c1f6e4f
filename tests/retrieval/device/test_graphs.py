"""Scans as graphs: the buffers decide; rows that come and go capture nothing anew, a new page table does."""

import numpy as np
import pytest
from store_inputs import gone, query, upsert, vector
from store_oracle import Oracle, shown

from penstock.kernels.filtered_topk import run
from penstock.retrieval.device.arenas import FIRST_PAGES
from penstock.retrieval.device.graphs import MOST, captured
from penstock.retrieval.search.plan import Choice
from penstock.retrieval.store.records import Ask
from penstock.retrieval.store.store import Store
from penstock.schemas.filters import in_range, is_in, negate


def rows(first, count):
    rng = np.random.default_rng(first)
    planes, sketches = rng.integers(-3, 4, (count, 6)).astype(np.float32), rng.integers(-9, 10, (count, 16))
    return [upsert(f"p{first + i}", vector=vector(planes[i], sketches[i]), company=f"c{i % 50}") for i in range(count)]


def relaunched(launch):
    launch()
    return launch


@pytest.fixture
def store(device_backend):
    """One whose scans are graphs: launched step by step where there is nothing to capture with."""
    made = Store(page_rows=128, hold_ms=0, expiry_grace_ms=0, backend=device_backend)
    made._device._graphs = made._device.graphs(captured if device_backend.is_cuda else relaunched)
    return made


def test_searches_by_graph_are_the_same_and_rows_that_come_and_go_capture_nothing(store):
    batch = rows(0, 200)
    store.apply(batch, now_ms=0)
    oracle, graphs = Oracle(batch), store._device._graphs
    asked = [
        (query([1.0, -2.0, 0.5, 0.0, 1.0, 0.0], [0.25] * 16), negate(is_in("company", "c3", "c7")), 5),
        (query([0.0, 1.0, 0.5, 0.0, -1.0, 2.0], [0.5] + [0.0] * 15), negate(is_in("company", "c4")), 3),
    ]
    for now_ms, change in enumerate([[], rows(200, 60), [gone(f"p{i}", 2) for i in range(0, 200, 3)]]):
        store.apply(change, now_ms=now_ms)
        for update in change:
            oracle.accept(update)
        for vector_, tree, k in asked:
            found = store.search(vector_, tree, k, now_ms=now_ms)
            assert shown(found) == oracle.search(vector_, tree, k, now_ms=now_ms)
            assert found.plan == Choice.DEVICE_SCAN
    assert graphs.captures == 1


def test_another_bucket_and_another_page_table_are_captured(store):
    batch = rows(0, 100)
    store.apply(batch, now_ms=0)
    graphs, oracle = store._device._graphs, Oracle(batch)
    trees = [None, negate(is_in("company", "c1")), in_range("posted_at", minimum=0)]

    def answered(asks):
        for ask, answer in zip(asks, store.search_many(asks), strict=True):
            assert shown(answer) == oracle.search(ask.vector, ask.filter, ask.k, now_ms=0)

    asked = query([1.0, -2.0, 0.5, 0.0, 1.0, 0.0])
    answered([Ask(asked, None, 5, 0)])
    answered([Ask(asked, tree, 5, 0) for tree in trees])  # three filters: another bucket
    assert graphs.captures == 2
    more = rows(100, FIRST_PAGES * 128)
    store.apply(more, now_ms=0)
    for update in more:
        oracle.accept(update)
    answered([Ask(asked, None, 5, 0)])
    assert graphs.captures == 3
    assert len(graphs._kept) == 1 <= MOST  # those of the old table are of no use


def test_what_is_not_proven_is_asked_again_outside_of_the_graph(store, monkeypatch):
    """More rows that tie than a query has room for."""
    monkeypatch.setattr(run, "room_for", lambda *_: 64)
    row = [1.0, 0.5, 0.0, 0.0, 0.0, 0.0]
    batch = [upsert(f"p{i}", vector=vector(row)) for i in range(150)]
    store.apply(batch, now_ms=0)
    graphs = store._device._graphs
    for _ in range(2):
        found = store.search(query(row), None, 5, now_ms=0)
        assert shown(found) == Oracle(batch).search(query(row), None, 5, now_ms=0)
        assert found.rescored == 150
    assert graphs.captures == 1


def test_graphs_work_in_the_memory_of_the_greatest_of_them(store):
    """Each is captured again at most once when a greater one has moved what it works in, and none costs more memory."""
    batch = rows(0, 100)
    store.apply(batch, now_ms=0)
    graphs, workspace, oracle = store._device._graphs, store._device._workspace, Oracle(batch)
    asked = query([1.0, -2.0, 0.5, 0.0, 1.0, 0.0])
    sizes = []
    for k in (5, 90, 5, 90, 5, 90):
        assert shown(store.search(asked, None, k, now_ms=0)) == oracle.search(asked, None, k, now_ms=0)
        sizes.append((workspace.nbytes, graphs.captures, len(graphs._kept)))
    assert sizes[1][0] > sizes[0][0] and len({size for size, _, _ in sizes[1:]}) == 1
    assert [captures for _, captures, _ in sizes] == [1, 2, 3, 3, 3, 3]
    assert [kept for _, _, kept in sizes] == [1, 1, 2, 2, 2, 2]  # what has moved is not kept by those it was moved from


def test_a_batch_too_large_for_a_bucket_is_launched_step_by_step(store):
    batch = rows(0, 60)
    store.apply(batch, now_ms=0)
    tree = negate(is_in("posting_id", *(f"x{i}" for i in range(5_000))))
    asked = query([1.0, -2.0, 0.5, 0.0, 1.0, 0.0])
    assert shown(store.search(asked, tree, 5, now_ms=0)) == Oracle(batch).search(asked, tree, 5, now_ms=0)
    assert store._device._graphs.captures == 0
