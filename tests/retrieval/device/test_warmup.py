"""What is compiled ahead is what searches and writes of every shape launch."""

from dataclasses import replace

import pytest

from penstock.retrieval.device.backend import Budget
from penstock.retrieval.device.warmup import warmed
from penstock.retrieval.store.errors import OutOfRoom


def test_every_shape_is_searched_once(device_backend):
    names = [shape.name for shape in warmed(device_backend, 6, 16, ks=[3], batches=[1], page_rows=128)]
    assert names[0] == "writes of 6 dense and 16 sketch values"
    assert names[1:] == [
        f"{kind} of 1 queries, {terms} terms, k 3" for terms in (0, 8, 64, 128) for kind in ("scan", "gather")
    ]


def test_a_device_that_cannot_hold_a_page_says_so(device_backend):
    small = replace(device_backend, budget=Budget(1_000))
    with pytest.raises(OutOfRoom, match="device_bytes"):
        list(warmed(small, 6, 16, ks=[3], batches=[1], page_rows=128))
