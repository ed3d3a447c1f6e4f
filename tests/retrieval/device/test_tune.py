"""What is measured is kept where searches look for it."""

from dataclasses import replace

import pytest

from penstock.kernels.filtered_topk import autotune
from penstock.kernels.filtered_topk.autotune import key_of
from penstock.retrieval.device.arenas import layout_of
from penstock.retrieval.device.backend import BF16, INT8
from penstock.retrieval.device.tune import tuned


@pytest.mark.parametrize(("planes", "operator"), [(BF16, "filtered_topk"), (INT8, "int8_topk")])
def test_each_shape_is_measured_and_kept_for_this_device(device_backend, monkeypatch, tmp_path, planes, operator):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(autotune, "RUNS", 1)
    monkeypatch.setattr(autotune, "WARM", 0)
    backend = replace(device_backend, planes=planes)
    shapes = list(tuned(backend, 6, 16, 3, batches=[1], pages=1, page_rows=128))
    assert [shape.name.partition(":")[0] for shape in shapes] == [
        "1 queries, 0 terms",
        *["1 queries, 16 terms"] * 3,
    ]
    width = layout_of(128, 6, 16).width
    for terms in (0, 16):
        kept = backend.tunings.get(key_of(operator, width, 16, terms, backend.device))
        assert kept is not None
        assert shapes[-1 if terms else 0].name.endswith(f"{kept.warps} warps")
    assert (tmp_path / "penstock-tunings.json").exists()
