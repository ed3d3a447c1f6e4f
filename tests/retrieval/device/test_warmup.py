"""What is compiled ahead is what searches and writes of every shape launch."""

from dataclasses import replace

import pytest
import torch
from store_inputs import query, upsert, vector
from store_oracle import Oracle, shown
from triton.runtime import interpreter

from penstock.kernels.filtered_topk import run
from penstock.retrieval.device import search
from penstock.retrieval.device.backend import BF16, INT8, Budget
from penstock.retrieval.device.warmup import warmed
from penstock.retrieval.search.plan import Choice
from penstock.retrieval.store.errors import OutOfRoom
from penstock.retrieval.store.store import Store
from penstock.schemas.filters import is_in


def test_every_shape_is_searched_once(device_backend):
    names = [shape.name for shape in warmed(device_backend, 6, 16, ks=[3], batches=[1], page_rows=128)]
    assert names[0] == "writes of 6 dense and 16 sketch values"
    assert names[1:] == [
        f"{kind} of 1 queries, {terms} terms, k 3" for terms in (0, 8, 64, 128) for kind in ("scan", "gather")
    ]


@pytest.fixture
def launched(monkeypatch):
    """Kernels by name, with what they are compiled for, as they are launched in the interpreter."""
    seen, honest = set(), interpreter.GridExecutor.__call__

    def noted(self, *args, **how):
        names = {name for name in how if name.isupper() and name != "INTERPRET"} | {"num_warps"} & how.keys()
        dtypes = tuple(one.dtype for one in args if isinstance(one, torch.Tensor))
        seen.add((self.fn.__name__, dtypes, *sorted((name, how[name]) for name in names)))
        return honest(self, *args, **how)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", noted)
    return seen


@pytest.mark.parametrize("planes", [BF16, INT8])
def test_a_search_that_needs_a_rerun_or_a_seed_launches_nothing_that_was_not_warmed_up(
    device_backend, launched, monkeypatch, planes
):
    if device_backend.is_cuda:
        pytest.skip("launches are seen in the interpreter")
    backend = replace(device_backend, planes=planes, scatters=True)
    monkeypatch.setattr(run, "room_for", lambda *_: 64)  # as pages of 65,536 rows have more: a seed is worth it
    list(warmed(backend, 6, 16, ks=[3], batches=[1], page_rows=128))
    warm = set(launched)
    launched.clear()
    monkeypatch.setattr(search, "room_of", lambda _: 512)
    store = Store(page_rows=128, hold_ms=0, backend=backend)
    row = [1.0, 0.5, 0.0, 0.0, 0.0, 0.0]
    batch = [upsert(f"p{i}", vector=vector(row, [1] * 16), company=f"c{i % 7}") for i in range(510)]
    store.apply(batch, now_ms=0)
    for tree, plan in ((None, Choice.DEVICE_SCAN), (is_in("company", "c1"), Choice.DEVICE_GATHER)):
        found = store.search(query(row, [0.5] * 8 + [0.0] * 8), tree, 3, now_ms=0)
        assert shown(found) == Oracle(batch).search(query(row, [0.5] * 8 + [0.0] * 8), tree, 3, now_ms=0)
        assert found.plan == plan and found.rescored > 64  # asked again: all that tie
    names = {kernel for kernel, *_ in launched}
    assert {"scan", "gather", "threshold", "norms", "rescore"} <= names
    assert launched <= warm


def test_a_device_that_cannot_hold_a_page_says_so(device_backend):
    small = replace(device_backend, budget=Budget(1_000))
    with pytest.raises(OutOfRoom, match="device_bytes"):
        list(warmed(small, 6, 16, ks=[3], batches=[1], page_rows=128))
