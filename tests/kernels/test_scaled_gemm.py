"""Products by numbers of one byte against their oracle, and what they lose against the product itself."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.kernels.scaled_gemm import check, numbers, reference
from penstock.kernels.scaled_gemm.numbers import FORMS
from penstock.kernels.scaled_gemm.triton import MOST_DEPTH, quantised, scaled_gemm
from penstock.kernels.scaled_gemm.tuning import Tuning, bucket, fitting, tuning_for

# numpy, under the interpreter, on rows that are not finite: infinity over infinity, and times 0
pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")

INT8, FP8 = FORMS.values()
TUNINGS = [Tuning(), Tuning(rows=64, columns=32, depth=64, group=2)]
DTYPES = [torch.float32, torch.bfloat16]
every_form = pytest.mark.parametrize("number", FORMS.values(), ids=list(FORMS))


def random(*shape, seed=0, spread=1.0, dtype=torch.float32):
    return (spread * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def whole(*shape, seed=0, number=INT8):
    """Every number there is, NaN left out."""
    chance = torch.Generator().manual_seed(seed)
    found = torch.randint(-127, 128, shape, generator=chance, dtype=torch.int8)
    if number != INT8:
        found = torch.where((found & 0x7F) == 0x7F, 0, found)
    return found.view(number), torch.rand(shape[0], generator=chance)


@settings(max_examples=12, deadline=None)
@given(
    rows=st.sampled_from([1, 5, 65]),
    width=st.sampled_from([16, 48, 130]),
    dtype=st.sampled_from(DTYPES),
    number=st.sampled_from([INT8, FP8]),
    spread=st.sampled_from([0.0, 1e-30, 1.0, 1e30]),
    seed=st.integers(0, 99),
)
def test_rows_become_numbers_and_a_step(rows, width, dtype, number, spread, seed):
    assert check.differing_numbers(random(rows, width, seed=seed, spread=spread, dtype=dtype), number) == 0


def test_the_greatest_is_127_either_way_and_a_row_of_zeros_is_zeros():
    found, steps = check.whole(torch.tensor([[0.0] * 16, [-3.0, 1.5] + [0.0] * 14, [0.5, 5.0] + [0.0] * 14]))
    assert found[:, :2].tolist() == [[0, 0], [-127, 64], [13, 127]]
    assert (found[:, 2:] == 0).all()
    assert steps[0] == 0


def test_the_greatest_is_448_either_way_and_ties_go_to_even():
    rows = torch.tensor([[0.0] * 16, [-448.0, 1.0625, 1.1875, 17.0, 2.0**-9, 2.0**-10] + [0.0] * 10])
    found, steps = check.whole(rows, FP8)
    assert found.float()[:, :6].tolist() == [[0.0] * 6, [-448.0, 1.0, 1.25, 16.0, 2.0**-9, 0.0]]
    assert steps.tolist() == [0.0, 1.0]


@every_form
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_has_no_finite_product(number, bad):
    rows = random(3, 16, seed=4)
    rows[1, 5] = bad
    found = scaled_gemm(*check.whole(rows, number), *whole(4, 16, number=number), torch.zeros(3, 4))
    assert found.isfinite().all(dim=1).tolist() == [True, False, True]


@every_form
def test_a_matrix_is_quantised_on_the_host_as_rows_are_by_the_kernel(number):
    rows = random(40, 48, seed=3)
    (mine, my_steps), (theirs, their_steps) = numbers.quantised(rows, number), check.whole(rows, number)
    assert check.differing_steps(mine, my_steps, rows, 2.0**-24) == 0
    assert (mine.float() != theirs.float()).float().mean() < 0.01  # where a quotient lies between two numbers
    torch.testing.assert_close(my_steps, their_steps)


@settings(max_examples=16, deadline=None)
@given(
    rows=st.sampled_from([1, 64, 200]),
    columns=st.sampled_from([1, 33, 130]),
    depth=st.sampled_from([16, 128, 144]),
    dtype=st.sampled_from(DTYPES),
    number=st.sampled_from([INT8, FP8]),
    tuning=st.sampled_from(TUNINGS),
    biased=st.booleans(),
    seed=st.integers(0, 99),
)
def test_products_are_exact_but_for_the_last_roundings(rows, columns, depth, dtype, number, tuning, biased, seed):
    x, w = whole(rows, depth, seed=seed, number=number), whole(columns, depth, seed=seed + 1, number=number)
    bias = random(columns, seed=seed, spread=1e3, dtype=dtype) if biased else None
    assert check.differing(*x, *w, dtype, tuning, bias) == 0


def test_sums_of_the_greatest_numbers_and_every_row_of_programs_in_a_group():
    x, w = (torch.full((count, 1_024), 127, dtype=torch.int8) for count in (300, 70))
    steps = torch.full((300,), 1e-3), torch.full((70,), -1e3)
    assert check.differing(x, steps[0], w, steps[1], torch.float32, TUNINGS[1]) == 0


@every_form
def test_what_is_lost_is_within_its_bound_and_a_wrong_step_is_not(number):
    x, w = random(20, 256, seed=1), random(30, 256, seed=2, spread=0.02)
    x[:, 7] *= 30  # an outlier, which costs all others of the row in int8
    (xq, xs), (wq, ws) = check.whole(x, number), check.whole(w, number)
    product = x.double() @ w.double().T
    bound = reference.lost(x, w, number) * (1 + 1e-5)
    found = scaled_gemm(xq, xs, wq, ws, torch.full((20, 30), torch.nan))
    assert ((found.double() - product).abs() <= bound).all()
    assert (found.double() - product).abs().max() > bound.max() / 1_000  # a bound of something
    off = scaled_gemm(xq, xs * 2, wq, ws, torch.empty(20, 30)).double()
    assert ((off - product).abs() > bound).any()


def test_an_output_depends_on_its_row_and_its_column_alone():
    (x, xs), (w, ws) = whole(130, 144, number=FP8), whole(70, 144, seed=1, number=FP8)
    together = scaled_gemm(x, xs, w, ws, torch.empty(130, 70))
    alone = scaled_gemm(x[129:].contiguous(), xs[129:], w, ws, torch.empty(1, 70))
    assert torch.equal(together[129:], alone)


def test_what_does_not_fit_is_refused():
    (x, xs), (w, ws) = whole(4, 32), whole(5, 32)
    out = torch.zeros(4, 5)
    for given_, said in [
        ((x, xs, w[:, :16].contiguous(), ws, out), r"expected \[M, K\], \[N, K\]"),
        ((x.float(), xs, w.float(), ws, out), "x torch.float32"),
        ((x.view(FP8), xs, w, ws, out), "x torch.float8_e4m3fn .* w torch.int8"),
        ((x, ws, w, ws, out), r"steps \[5\] and \[5\], bias None: expected \[4\]"),
        ((x[:, :24].contiguous(), xs, w[:, :24].contiguous(), ws, out), "rows of 24 values: expected a multiple of 16"),
        ((x, xs, w, ws, torch.zeros(5, 4).T), "out .* has strides"),
        ((x[:, :1].expand(-1, MOST_DEPTH + 16), xs, w[:, :1].expand(-1, MOST_DEPTH + 16), ws, out), "133,136 at most"),
    ]:
        with pytest.raises(ValueError, match=said):
            scaled_gemm(*given_)
    with pytest.raises(ValueError, match=r"bias \[4\]: expected"):
        scaled_gemm(x, xs, w, ws, out, bias=torch.zeros(4))
    with pytest.raises(ValueError, match=r"expected int8 or float8_e4m3fn, and float32 \[4\]"):
        quantised(random(4, 16), torch.zeros(4, 16), torch.zeros(4))


@pytest.mark.parametrize("form", FORMS)
def test_what_is_measured_begins_with_what_is_taken_unmeasured(form):
    tunings = list(fitting(form))
    assert tunings[0] == tuning_for(form)
    assert len(set(tunings)) == len(tunings) > 1
    assert [bucket(rows) for rows in (1, 256, 257, 1_025, 16_384)] == [256, 256, 1_024, 4_096, 16_384]
