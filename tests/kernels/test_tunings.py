"""What fits, what is measured, and what is kept of it."""

import json

import pytest
import torch

from penstock.kernels.filtered_topk.autotune import Tunings, key_of, quickest
from penstock.kernels.filtered_topk.tuning import SHARED, Tuning, fitting, shared, tuning_for
from penstock.kernels.gather_topk.tuning import gather_tuning


@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize("terms", [0, 64, 256])
@pytest.mark.parametrize("batch", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("width", [16, 64, 128, 256, 384, 512, 768, 1_024, 1_408, 4_096])
def test_every_choice_fits_into_shared_memory(width, batch, terms, quantised):
    tunings = list(fitting(width, batch, terms, quantised=quantised))
    assert tunings[0] == tuning_for(width, batch, terms, quantised=quantised)
    for one in tunings:
        taken = shared(width, one.tile, one.queries, terms, one.stages, quantised=quantised, parts=one.parts)
        assert taken * one.resident <= SHARED
        assert batch % one.queries == 0
        assert width // one.parts % one.piece(width) == 0
        assert one.tile >= 64  # whole warp groups multiply no less


def test_two_programs_hide_each_other_s_waits_where_they_fit():
    assert [tuning_for(256, batch, 0).resident for batch in (16, 64)] == [2, 2]
    assert tuning_for(256, 64, 0).parts == 1


@pytest.mark.parametrize("batch", [16, 64, 256])
def test_wide_rows_come_in_parts_with_as_many_queries_a_pass_as_narrow_ones(batch):
    tuning = tuning_for(1_024, batch, 64)
    assert tuning.parts > 1
    assert tuning.queries == min(batch, 64)
    assert tuning.resident == 2


def test_rows_too_wide_for_a_tile_are_refused():
    for refused in (lambda: tuning_for(4_224, 16, 0), lambda: gather_tuning(4_224, 0)):
        with pytest.raises(ValueError, match="rows of 4224 values: expected at most 4,096"):
            refused()


@pytest.mark.parametrize("width", [*range(128, 4_097, 128), 16, 64])
def test_a_gather_takes_every_width_that_a_scan_does(width):
    one = gather_tuning(width, 64)
    assert width // one.parts <= 384
    assert width % (one.parts * one.piece(width)) == 0


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


def test_what_is_kept_is_found_by_another_process_and_by_its_own_key_only(tmp_path):
    path = tmp_path / "cache" / "tunings.json"
    key = key_of("scan", 256, 16, 0, torch.device("cpu"))
    assert Tunings(path).get(key) is None
    Tunings(path).keep(key, Tuning(stages=4))
    Tunings(path).keep("another", Tuning(stages=2))
    assert Tunings(path).get(key) == Tuning(stages=4)
    assert Tunings(path).get(key_of("scan", 256, 32, 0, torch.device("cpu"))) is None


@pytest.mark.parametrize("held", ["", "[]", "{not json", json.dumps({"a": {"tile": 64}}), json.dumps({"a": 3})])
def test_a_file_that_says_nothing_is_as_good_as_none(tmp_path, held):
    path = tmp_path / "tunings.json"
    path.write_text(held)
    tunings = Tunings(path)
    assert tunings.get("a") is None
    tunings.keep("a", Tuning())
    assert tunings.get("a") == Tuning()
