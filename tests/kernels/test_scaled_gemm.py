"""Products by int8 against their oracle, and what they lose against the product itself."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.kernels.scaled_gemm import check, reference
from penstock.kernels.scaled_gemm.triton import MOST_DEPTH, quantised, scaled_gemm
from penstock.kernels.scaled_gemm.tuning import Tuning

TUNINGS = [Tuning(), Tuning(rows=64, columns=32, depth=64, group=2)]
DTYPES = [torch.float32, torch.bfloat16]


def random(*shape, seed=0, spread=1.0, dtype=torch.float32):
    return (spread * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def whole(*shape, seed=0):
    chance = torch.Generator().manual_seed(seed)
    return torch.randint(-127, 128, shape, generator=chance, dtype=torch.int8), torch.rand(shape[0], generator=chance)


@settings(max_examples=12, deadline=None)
@given(
    rows=st.sampled_from([1, 5, 65]),
    width=st.sampled_from([16, 48, 130]),
    dtype=st.sampled_from(DTYPES),
    spread=st.sampled_from([0.0, 1e-30, 1.0, 1e30]),
    seed=st.integers(0, 99),
)
def test_rows_become_whole_numbers_and_a_step(rows, width, dtype, spread, seed):
    assert check.differing_numbers(random(rows, width, seed=seed, spread=spread, dtype=dtype)) == 0


def test_the_greatest_is_127_either_way_and_a_row_of_zeros_is_zeros():
    numbers, steps = check.whole(torch.tensor([[0.0] * 16, [-3.0, 1.5] + [0.0] * 14, [0.5, 5.0] + [0.0] * 14]))
    assert numbers[:, :2].tolist() == [[0, 0], [-127, 64], [13, 127]]
    assert (numbers[:, 2:] == 0).all()
    assert steps[0] == 0


@settings(max_examples=10, deadline=None)
@given(
    rows=st.sampled_from([1, 64, 200]),
    columns=st.sampled_from([1, 33, 130]),
    depth=st.sampled_from([16, 128, 144]),
    dtype=st.sampled_from(DTYPES),
    tuning=st.sampled_from(TUNINGS),
    seed=st.integers(0, 99),
)
def test_products_are_exact_but_for_the_last_roundings(rows, columns, depth, dtype, tuning, seed):
    x, w = whole(rows, depth, seed=seed), whole(columns, depth, seed=seed + 1)
    assert check.differing(*x, *w, dtype, tuning) == 0


def test_sums_of_the_greatest_numbers_and_every_row_of_programs_in_a_group():
    x, w = (torch.full((count, 1_024), 127, dtype=torch.int8) for count in (300, 70))
    steps = torch.full((300,), 1e-3), torch.full((70,), -1e3)
    assert check.differing(x, steps[0], w, steps[1], torch.float32, TUNINGS[1]) == 0


def test_what_is_lost_is_within_its_bound_and_a_wrong_step_is_not():
    x, w = random(20, 256, seed=1), random(30, 256, seed=2, spread=0.02)
    x[:, 7] *= 30  # an outlier, which costs all others of the row
    (xq, xs), (wq, ws) = check.whole(x), check.whole(w)
    product = x.double() @ w.double().T
    bound = reference.lost(x, w) * (1 + 1e-5)
    found = scaled_gemm(xq, xs, wq, ws, torch.full((20, 30), torch.nan))
    assert ((found.double() - product).abs() <= bound).all()
    assert (found.double() - product).abs().max() > bound.max() / 1_000  # a bound of something
    assert check.differing(xq, xs, wq, ws, torch.float32, Tuning()) == 0
    off = scaled_gemm(xq, xs * 2, wq, ws, torch.empty(20, 30)).double()
    assert ((off - product).abs() > bound).any()


def test_what_does_not_fit_is_refused():
    (x, xs), (w, ws) = whole(4, 32), whole(5, 32)
    out = torch.zeros(4, 5)
    for given_, said in [
        ((x, xs, w[:, :16].contiguous(), ws, out), "expected int8"),
        ((x.float(), xs, w, ws, out), "x torch.float32"),
        ((x, ws, w, ws, out), r"steps \[5\] and \[5\]: expected \[4\] and \[5\]"),
        ((x[:, :24].contiguous(), xs, w[:, :24].contiguous(), ws, out), "rows of 24 values: expected a multiple of 16"),
        ((x, xs, w, ws, torch.zeros(5, 4).T), "out .* has strides"),
        ((x[:, :1].expand(-1, MOST_DEPTH + 16), xs, w[:, :1].expand(-1, MOST_DEPTH + 16), ws, out), "133,136 at most"),
    ]:
        with pytest.raises(ValueError, match=said):
            scaled_gemm(*given_)
    with pytest.raises(ValueError, match="expected int8 of the rows' shape, and a step a row"):
        quantised(random(4, 16), torch.zeros(4, 16), torch.zeros(4))
