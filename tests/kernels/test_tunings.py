"""What fits: of every shape some tuning does."""

import pytest

from penstock.kernels.filtered_topk.tuning import SHARED, fitting, shared, tuning_for
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
