"""Searches on a device: what it declines and why, batches larger than a launch, plans, and readers beside a writer."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from store_inputs import gone, query, upsert, vector
from store_oracle import Oracle, shown
from triton.runtime.errors import OutOfResources

from penstock.kernels.slabs.batch import FILTERS, QUERIES
from penstock.kernels.slabs.layout import padded
from penstock.retrieval.device import search
from penstock.retrieval.device.backend import BF16, INT8
from penstock.retrieval.device.search import (
    NO_MEMORY,
    NO_SHARED_MEMORY,
    NO_VALUES,
    TOO_LARGE,
    TOO_WIDE,
    UNSETTLED,
    batches,
    takes,
    unfit,
)
from penstock.retrieval.search.plan import Choice
from penstock.retrieval.store.planes import QueryPlanes
from penstock.retrieval.store.records import Ask
from penstock.retrieval.store.store import Store
from penstock.schemas.filters import in_range, is_in, negate

ROW = [1.0, 0.5, 0.0, 0.0, 0.0, 0.0]


@pytest.fixture(params=[BF16, INT8])
def store_of(request, device_backend):
    """Stores whose scans read either plane."""
    backend = replace(device_backend, planes=request.param)

    def make(*updates, **how):
        store = Store(page_rows=128, backend=backend, **how)
        store.apply(updates, now_ms=0)
        return store

    return make


def rows(count, seed=0):
    rng = np.random.default_rng(seed)
    planes, sketches = rng.integers(-3, 4, (count, 6)).astype(np.float32), rng.integers(-9, 10, (count, 16))
    return [upsert(f"p{i}", vector=vector(planes[i], sketches[i]), company=f"c{i % 50}") for i in range(count)]


def planes_of(dense, weights=()):
    return QueryPlanes(np.float32(dense), np.arange(len(weights)), np.float32(weights))


def test_a_search_by_vector_is_the_devices_and_one_without_the_hosts(store_of):
    batch = rows(200)
    store = store_of(*batch)
    found = store.search(query(ROW, [0.25] * 16), None, 9, now_ms=0)
    assert shown(found) == Oracle(batch).search(query(ROW, [0.25] * 16), None, 9, now_ms=0)
    assert (found.plan, found.looked_at, found.total) == (Choice.DEVICE_SCAN, 200, 200)
    assert 9 <= found.rescored < 100
    assert store.search(None, None, 9, now_ms=0).plan == Choice.DENSE
    nothing = store.search(query(ROW), is_in("company", "nobody"), 9, now_ms=0)
    assert (nothing.plan, nothing.total, nothing.looked_at, nothing.hits) == (Choice.NOTHING, 0, 0, ())


@pytest.mark.parametrize(
    ("dense", "weights", "norms", "why"),
    [
        ([0.0] * 6, (), (1.0, 1.0), NO_VALUES),
        ([1e20] * 6, (), (1e17, 1.0), TOO_LARGE),
        ([3e38] + [0.0] * 5, (), (1e-9, 1.0), TOO_LARGE),  # it would not be finite as a bfloat16
        ([1.0] * 6, (2.0**-126,), (1.0, 1.0), TOO_LARGE),  # scaled so that the weight is one half
        ([1e20] * 6, (), (1e16, 1.0), ""),
        ([1.0] * 6, (2.0**100,), (1.0, 1.0), ""),
        ([0.0] * 6, (0.5,), (1.0, 1.0), ""),
    ],
)
def test_what_a_device_declines(dense, weights, norms, why):
    assert unfit(planes_of(dense, weights), np.asarray(norms)) == why


@pytest.mark.parametrize(("asked", "why"), [([0.0] * 6, NO_VALUES), ([2.0**100] * 6, TOO_LARGE)])
def test_what_the_device_declines_the_host_answers_and_says_so(store_of, asked, why):
    batch = [*rows(150), upsert("large", vector=vector([2.0**30] * 6))]
    store = store_of(*batch)
    answers = store.search_many([Ask(query(one), None, 9, 0) for one in (asked, ROW)])
    for one, answer in zip((asked, ROW), answers, strict=True):
        assert shown(answer) == Oracle(batch).search(query(one), None, 9, now_ms=0)
    assert [answer.plan for answer in answers] == [f"{Choice.DENSE} on the host: {why}", Choice.DEVICE_SCAN]


def test_rows_as_wide_as_kernels_multiply_are_taken():
    assert [takes(padded(width)) for width in (16, 384, 1_024, 4_096, 4_112)] == [True, True, True, True, False]


def test_scores_that_kernels_cannot_settle_a_full_device_and_wide_rows_are_the_hosts(store_of, monkeypatch):
    batch = rows(150)
    store, wanted = store_of(*batch), Oracle(batch).search(query(ROW), None, 9, now_ms=0)
    store._device._graphs = None  # a device's scans go by graphs, and not by the operator that is replaced here
    operator = "int8_topk" if store._device._backend.planes == INT8 else "filtered_topk"
    honest = getattr(search, operator)

    def unsettled(*args, **how):
        found = honest(*args, **how)
        found.settled[0] = False
        found.dense[0] += 1.0
        return found

    def without_memory(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    def without_shared_memory(*_, **__):
        raise OutOfResources(225_700, 101_376, "shared memory")

    for name, broken, why in (
        (operator, unsettled, UNSETTLED),
        (operator, without_memory, NO_MEMORY),
        (operator, without_shared_memory, NO_SHARED_MEMORY),
        ("takes", lambda width: width > 16, TOO_WIDE),
    ):
        monkeypatch.setattr(search, name, broken)
        found = store.search(query(ROW), None, 9, now_ms=0)
        assert shown(found) == wanted and found.plan == f"{Choice.DENSE} on the host: {why}"


def test_batches_hold_so_many_queries_and_filters_and_keep_their_order():
    many = [object() for _ in range(2 * FILTERS)]
    for sought in (many, many[:1] * (QUERIES + 1), [many[i % 70] for i in range(600)], []):
        for most in (FILTERS - 1, 5):
            found = list(batches(sought, most))
            assert [place for batch in found for place in batch] == list(range(len(sought)))
            assert all(len(batch) <= QUERIES and len({id(sought[at]) for at in batch}) <= most for batch in found)
    assert len(list(batches(many[:1] * QUERIES, 1))) == 1 and len(list(batches(many[:7], 7))) == 1


def test_more_filters_than_a_launch_takes(store_of):
    batch = rows(120)
    store, oracle = store_of(*batch), Oracle(batch)
    trees = [negate(is_in("company", f"c{i % 50}", f"c{i // 3 % 50}")) for i in range(FILTERS + 2)]
    answers = store.search_many([Ask(query(ROW), tree, 3, 0) for tree in trees])
    for tree, answer in zip(trees, answers, strict=True):
        assert shown(answer) == oracle.search(query(ROW), tree, 3, now_ms=0)
        assert answer.plan == Choice.DEVICE_SCAN


def test_filters_that_leave_few_blocks_are_gathered_though_all_their_rows_pass(store_of):
    """A sample of the whole store would have next to nothing of theirs."""
    batch = [upsert(f"p{i}", vector=vector(ROW), posted_at=i) for i in range(1_024)]
    store, oracle = store_of(*batch), Oracle(batch)
    for tree, plan in ((in_range("posted_at", minimum=900), Choice.DEVICE_GATHER), (None, Choice.DEVICE_SCAN)):
        found = store.search(query(ROW), tree, 5, now_ms=0)
        assert shown(found) == oracle.search(query(ROW), tree, 5, now_ms=0)
        assert found.plan == plan


def test_filters_that_few_rows_pass_are_gathered_beside_those_that_are_scanned(store_of):
    batch = rows(200)
    store, oracle = store_of(*batch), Oracle(batch)
    trees = [is_in("company", "c3"), negate(is_in("company", "c3")), None, is_in("company", "c4", "c5")]
    asks = [Ask(query(ROW, [0.25] * 16), tree, k, 0) for k, tree in enumerate(trees * 2, 1)]
    answers = store.search_many(asks)
    for ask, answer in zip(asks, answers, strict=True):
        assert shown(answer) == oracle.search(ask.vector, ask.filter, ask.k, now_ms=0)
    gather, scan = Choice.DEVICE_GATHER, Choice.DEVICE_SCAN
    assert [answer.plan for answer in answers] == [gather, scan, scan, gather] * 2


def test_planes_and_queries_of_every_shape(store_of):
    """Rows with a dense plane alone, a sketch alone, both, neither; queries likewise."""
    batch = [
        upsert("none"),
        upsert("dense", vector=vector(ROW)),
        upsert("sketch", vector=vector([], [2] * 16)),
        upsert("both", vector=vector(ROW[::-1], [1] * 16)),
    ]
    asked = [query(ROW), query([], [0.5] * 16), query(ROW, [0.5] * 16), query(ROW, [0.0] * 16)]
    for kept in (batch, batch[:2], [batch[0], batch[2]]):
        store = store_of(*kept)
        for one in asked:
            found = store.search(one, None, 9, now_ms=0)
            assert shown(found) == Oracle(kept).search(one, None, 9, now_ms=0)


def test_a_reader_of_an_epoch_is_not_disturbed_by_what_comes_after(store_of):
    store = store_of(*rows(100), hold_ms=1_000)
    with store.pin() as pin:
        ask = partial(store.search, query(ROW, [0.25] * 16), is_in("company", "c3", "c4"), 50, now_ms=0)
        before = ask(at_epoch=pin.epoch)
        store.apply([*rows(100, seed=1), gone("p3", 2)], now_ms=1)
        store.apply([upsert(f"q{i}", company="c3", vector=vector(ROW)) for i in range(300)], now_ms=2)
        assert ask(at_epoch=pin.epoch) == before
        assert ask().total > before.total


def test_readers_see_whole_epochs_while_a_writer_turns_everything_over(store_of):
    """Every batch gives all rows one new version, in other slots, on a device that is written while it is read."""
    store, reads, wrong, done = store_of(hold_ms=0), [], [], threading.Event()

    def generation(version):
        return [upsert(f"p{i}", version, vector=vector(ROW), skills=(f"s{version % 3}", "x")) for i in range(40)]

    def read():
        while not done.is_set():
            found = store.search(query(ROW), is_in("skills", "x"), 100, now_ms=0)
            versions = {hit.version for hit in found.hits}
            if len(versions) != 1 or (found.total, len(found.hits)) != (40, 40):
                wrong.append((found.total, versions))
            reads.append(versions)

    store.apply(generation(1), now_ms=0)
    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(read)
        try:
            version = 1
            while len(reads) < 8 and version < 5_000 and not reader.done():
                version += 1
                store.apply(generation(version), now_ms=version)
        finally:
            done.set()
        reader.result(60)
    assert wrong == []
    assert len({frozenset(versions) for versions in reads}) > 1
