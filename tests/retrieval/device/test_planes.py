"""A store whose scans read int8 planes: its pages on the device, through all that pages live, and its answers."""

from dataclasses import replace

import numpy as np
import pytest
from mirrored import differences
from pydantic import ValidationError
from store_inputs import gone, query, upsert, vector
from store_oracle import Oracle, shown

from penstock.infra.settings import RetrievalSettings
from penstock.retrieval.device import graphs
from penstock.retrieval.device.backend import INT8
from penstock.retrieval.device.warmup import warmed
from penstock.retrieval.search.plan import Choice
from penstock.retrieval.store.slabs import POSTINGS
from penstock.retrieval.store.snapshot import Covered, Snapshots
from penstock.retrieval.store.store import Store
from penstock.schemas.filters import is_in, negate


@pytest.fixture(params=["by kernels", "by torch"])
def backend(request, device_backend):
    return replace(device_backend, planes=INT8, scatters=request.param == "by kernels")


def rows(count, seed=0):
    rng = np.random.default_rng(seed)
    planes, sketches = rng.standard_normal((count, 6)).astype(np.float32), rng.integers(-9, 10, (count, 16))
    return [upsert(f"p{i}", vector=vector(planes[i], sketches[i]), company=f"c{i % 50}") for i in range(count)]


def test_planes_come_go_widen_and_are_restored_with_the_rows(backend, tmp_path):
    bare, batch = [upsert(f"b{i}") for i in range(20)], rows(200)
    store = Store(page_rows=128, hold_ms=0, expiry_grace_ms=0, backend=backend)
    store.apply(bare, now_ms=0)  # before there is a plane of any width
    store.apply(batch, now_ms=1)
    store.apply([gone("p3", 2), gone("b3", 2)], now_ms=2)
    assert differences(store) == []
    snapshots = Snapshots(tmp_path, POSTINGS)
    snapshots.write(store.capture(), Covered({}, ""))
    back = Store(page_rows=128, backend=backend)
    snapshots.restore(back)
    assert differences(back) == []
    oracle = Oracle([*bare, *batch, gone("p3", 2), gone("b3", 2)])
    for one in (store, back):
        found = one.search(query([1.0, -2.0, 0.5, 0.0, 1.0, 0.0], [0.25] * 16), None, 9, now_ms=2)
        assert found.plan == Choice.DEVICE_SCAN
        assert shown(found) == oracle.search(query([1.0, -2.0, 0.5, 0.0, 1.0, 0.0], [0.25] * 16), None, 9, now_ms=2)
    plain = Store(page_rows=128, backend=replace(backend, planes="bf16"))
    snapshots.restore(plain)
    assert back._device.mirror.nbytes > plain._device.mirror.nbytes


def test_graphs_scan_them_too(device_backend):
    store = Store(page_rows=128, backend=replace(device_backend, planes=INT8))
    batch = rows(150)
    store.apply(batch, now_ms=0)

    def relaunched(launch):
        launch()
        return launch

    store._device._graphs = store._device.graphs(graphs.captured if device_backend.is_cuda else relaunched)
    asked, tree = query([1.0, -2.0, 0.5, 0.0, 1.0, 0.0], [0.25] * 16), negate(is_in("company", "c3"))
    for _ in range(2):
        assert shown(store.search(asked, tree, 9, now_ms=0)) == Oracle(batch).search(asked, tree, 9, now_ms=0)
    (kept,) = store._device._graphs._kept.values()
    assert kept._run.quantised and kept._queries.vectors.dtype.itemsize == 1


def test_their_shapes_are_warmed_up(device_backend):
    backend = replace(device_backend, planes=INT8)
    names = [shape.name for shape in warmed(backend, 6, 0, ks=[3], batches=[1], page_rows=128)]
    assert names[:2] == ["writes of 6 dense and 0 sketch values", "scan of 1 queries, 0 terms, k 3"]


def test_another_kind_of_plane_is_refused():
    assert RetrievalSettings(device_planes="int8").device_planes == INT8
    with pytest.raises(ValidationError, match="device_planes"):
        RetrievalSettings(device_planes="int4")
