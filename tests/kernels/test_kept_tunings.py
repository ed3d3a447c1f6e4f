"""What is measured, and what is kept of it: one file for every operator, and for those who decide by timings."""

import json
import logging
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from penstock.kernels.filtered_topk.autotune import key_of as key_of_scan
from penstock.kernels.filtered_topk.tuning import Tuning
from penstock.kernels.tunings import kept
from penstock.kernels.tunings.kept import Tunings, digest_of, key_of
from penstock.kernels.tunings.measured import medians, quickest

CPU = torch.device("cpu")


def test_the_quickest_is_found_by_its_median_and_the_refused_are_left_out():
    costs = {Tuning(tile=128): 3.0, Tuning(tile=64): 1.0, Tuning(tile=32): 2.0}
    now = 0.0
    runs = []

    def run(tuning):
        nonlocal now
        runs.append(tuning)
        if tuning.tile == 32:
            raise RuntimeError("out of resource: shared memory")
        now += costs[tuning] if len(runs) % 7 else 100.0  # now and then somebody else has the device

    assert quickest(list(costs), run, lambda: now) == Tuning(tile=64)
    with pytest.raises(RuntimeError, match="the device refused all 1 tunings, the last: out of resource"):
        quickest([Tuning(tile=32)], run, lambda: now)


def test_contenders_take_turns():
    order = []
    medians({name: lambda name=name: order.append(name) for name in "ab"}, lambda: 0.0)
    assert order == ["a", "a", "b", "b", *"ab" * 9]


def test_what_is_kept_is_found_by_another_process_and_by_its_own_key_only(tmp_path):
    path = tmp_path / "cache" / "tunings.json"
    key = key_of_scan("scan", 256, 16, 0, CPU)
    assert Tunings(path).get(key, Tuning) is None
    Tunings(path).keep(key, Tuning(stages=4))
    Tunings(path).keep("another", Tuning(stages=2))
    assert Tunings(path).get(key, Tuning) == Tuning(stages=4)
    assert Tunings(path).get(key_of_scan("scan", 256, 32, 0, CPU), Tuning) is None


def test_processes_that_keep_at_once_lose_nothing(tmp_path):
    path = tmp_path / "tunings.json"

    def keep(writer):
        for number in range(20):
            Tunings(path).keep(f"{writer} {number}", Tuning())  # a file of its own to lock, as a process has

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(keep, range(4)))
    assert len(json.loads(path.read_text())) == 80
    assert {one.name for one in tmp_path.iterdir()} == {path.name, f".{path.name}.lock"}


def test_a_key_names_all_that_a_timing_depends_on(monkeypatch):
    def key(shape="d256", sources=("rowwise",)):
        return key_of("scan", shape, CPU, sources=sources)

    keys = [key(), key("d128"), key(sources=("rowwise", "slabs"))]
    monkeypatch.setattr(torch, "__version__", "9.9")
    keys.append(key())
    monkeypatch.setattr("triton.__version__", "9.9")
    keys.append(key())
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"a GPU, {device.index}")
    keys.append(key_of("scan", "d256", torch.device("cuda", 1), sources=("rowwise",)))
    assert len(set(keys)) == len(keys)
    assert "a GPU, 1, torch 9.9, triton 9.9, source " in keys[-1]


def test_a_change_of_the_source_changes_its_digest(tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "KERNELS", tmp_path)
    (tmp_path / "scan").mkdir()
    found = set()
    for text in ("a", "b", "b "):
        digest_of.cache_clear()
        (tmp_path / "scan" / "triton.py").write_text(text)
        found.add(digest_of("scan"))
    digest_of.cache_clear()
    assert len(found) == 3


DAMAGED = ["", "[]", "{not json", "\xff\xfe", json.dumps({"a": 3})]


@pytest.mark.parametrize("held", DAMAGED)
def test_a_damaged_or_foreign_file_is_ignored_with_a_warning_and_replaced(tmp_path, caplog, held):
    path = tmp_path / "tunings.json"
    path.write_bytes(held.encode("latin-1"))
    tunings = Tunings(path)
    with caplog.at_level(logging.WARNING):
        assert tunings.get("a", Tuning) is None
    assert str(path) in caplog.text
    tunings.keep("a", Tuning())
    caplog.clear()
    assert Tunings(path).get("a", Tuning) == Tuning()
    assert not caplog.text


@pytest.mark.parametrize("entry", [{"tile": 64}, {"form": "int8"}, {}])
def test_an_entry_of_another_kind_is_as_good_as_none(tmp_path, entry):
    path = tmp_path / "tunings.json"
    path.write_text(json.dumps({"a": entry}))
    assert Tunings(path).get("a", Tuning) is None
