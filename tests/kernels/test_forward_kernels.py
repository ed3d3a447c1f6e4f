"""The kernels between a forward's products against their oracles: what a row becomes, and what is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.kernels.add_rmsnorm import check as norms
from penstock.kernels.add_rmsnorm.triton import add_rmsnorm
from penstock.kernels.gather_embeddings import check as gathers
from penstock.kernels.gather_embeddings.triton import gather_embeddings
from penstock.kernels.qk_norm_rope import check as turns
from penstock.kernels.qk_norm_rope.triton import qk_norm_rope
from penstock.kernels.rowwise.rounding import beyond, unit
from penstock.kernels.swiglu import check as gates
from penstock.kernels.swiglu.triton import swiglu
from penstock.kernels.yes_no_head import check as heads_of
from penstock.kernels.yes_no_head.triton import yes_no_head

# numpy, under the interpreter, on what these tests are about: exp(88.8), 1e20 squared and infinity times 0
pytestmark = pytest.mark.filterwarnings(
    "ignore:overflow encountered:RuntimeWarning", "ignore:invalid value:RuntimeWarning"
)

DTYPES = [torch.float64, torch.float32, torch.bfloat16]
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
dtypes = st.sampled_from(DTYPES)
rows_of = st.sampled_from([1, 3, 64, 65])  # the interpreter's programs have 64
widths = st.sampled_from([16, 48, 130])
spreads = st.sampled_from([0.0, 1e-39, 1e-3, 1.0, 1e4])
seeds = st.integers(0, 99)
cases = settings(max_examples=15, deadline=None)


class Chance:
    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape, dtype=torch.float32, spread=1.0):
        return (spread * torch.randn(*shape, generator=self.generator)).to(dtype)

    def whole(self, low, high, count):
        return torch.randint(low, high, (count,), generator=self.generator, dtype=torch.int32)


def wide_of(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


@cases
@given(rows=rows_of, width=widths, dtype=dtypes, narrow=st.booleans(), adds=st.booleans(), spread=spreads, seed=seeds)
def test_add_rmsnorm(rows, width, dtype, narrow, adds, spread, seed):
    chance = Chance(seed)
    residual = chance(rows, width, dtype=dtype if narrow else wide_of(dtype), spread=spread)
    delta = chance(rows, width, dtype=dtype, spread=spread) if adds else None
    assert norms.differing(residual, delta, chance(width, dtype=dtype), dtype) == 0


@every_dtype
def test_a_row_of_zeros_has_a_norm_of_zeros_and_a_finite_one_a_finite_norm(dtype):
    """Squares of 1e20 are infinite in float32: attention's values have to be finite even then."""
    residual = torch.zeros(2, 48, dtype=wide_of(dtype))
    residual[1] = 1e20
    out = torch.full((2, 48), torch.nan, dtype=dtype)
    add_rmsnorm(residual, torch.zeros_like(residual), torch.full((48,), 3.0, dtype=dtype), out, 2.0**-20)
    assert (out[0] == 0).all()
    assert out.isfinite().all()


@every_dtype
def test_a_bad_row_stays_among_itself(dtype):
    chance = Chance(1)
    residual, delta = chance(3, 48, dtype=wide_of(dtype)), chance(3, 48, dtype=dtype)
    clean = add_rmsnorm(residual.clone(), delta, torch.ones(48, dtype=dtype), torch.empty(3, 48, dtype=dtype), 1e-6)
    residual[1, 5], delta[1, 6] = torch.nan, torch.inf
    out = add_rmsnorm(residual, delta, torch.ones(48, dtype=dtype), torch.empty(3, 48, dtype=dtype), 1e-6)
    assert torch.equal(out[[0, 2]], clean[[0, 2]])
    assert out[1].isnan().any()


@cases
@given(
    tokens=st.sampled_from([1, 5, 65]),
    heads=st.sampled_from([1, 3, 6]),
    others=st.sampled_from([0, 2]),
    size=st.sampled_from([2, 16, 32]),
    dtype=dtypes,
    spread=spreads,
    seed=seeds,
)
def test_qk_norm_rope(tokens, heads, others, size, dtype, spread, seed):
    chance = Chance(seed)
    qkv = chance(tokens, (heads + others) * size, dtype=dtype, spread=spread)
    qkv[:, heads * size :] = torch.nan  # values, which nothing touches
    tables = turns.tables(300, size, wide_of(dtype))
    weight = chance(heads, size, dtype=dtype)
    assert turns.differing(qkv, weight, chance.whole(0, 300, tokens), *tables) == 0


def test_position_0_turns_nothing_and_a_quarter_turn_swaps_the_halves():
    qkv = torch.tensor([[3.0, 4.0], [3.0, 4.0]])
    tables = torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0], [1.0]])
    qk_norm_rope(qkv, torch.ones(1, 2), torch.tensor([0, 1], dtype=torch.int32), *tables, 1e-12)
    root = 12.5**0.5
    assert beyond(qkv, torch.tensor([[3 / root, 4 / root], [-4 / root, 3 / root]]), 1e-6) == 0


@cases
@given(rows=rows_of, width=st.sampled_from([1, 16, 130, 1_040]), dtype=dtypes, spread=spreads, seed=seeds)
def test_swiglu(rows, width, dtype, spread, seed):
    assert gates.differing(Chance(seed)(rows, 2 * width, dtype=dtype, spread=spread)) == 0


@every_dtype
def test_swiglu_of_gates_that_are_far_from_zero(dtype):
    gate = torch.tensor([[-1e4, -100.0, -88.0, -1e-39, 0.0, 1e-39, 88.0, 1e4]])
    for up in (1.0, -1e4, 1e-30):
        assert gates.differing(torch.cat([gate, torch.full_like(gate, up)], 1).to(dtype)) == 0


@cases
@given(rows=rows_of, width=st.sampled_from([16, 130, 1_040]), vectors=st.sampled_from([0, 4]), dtype=dtypes, seed=seeds)
def test_gather_embeddings(rows, width, vectors, dtype, seed):
    chance = Chance(seed)
    tokens, items = chance(9, width, dtype=dtype), chance(vectors, width)
    codes = chance.whole(-vectors, 9, rows)
    for out in {wide_of(dtype), dtype}:
        assert gathers.differing(codes, tokens, items, out) == 0


def test_rows_that_no_code_names_reach_nobody():
    tokens, vectors = torch.full((4, 16), torch.nan), torch.full((3, 16), torch.nan)
    tokens[3], vectors[2] = 1.0, 2.0
    out = gather_embeddings(torch.tensor([3, -3], dtype=torch.int32), tokens, vectors, torch.empty(2, 16))
    assert out.tolist() == [[1.0] * 16, [2.0] * 16]


@cases
@given(rows=rows_of, width=widths, dtype=dtypes, spread=spreads, seed=seeds)
def test_yes_no_head(rows, width, dtype, spread, seed):
    chance, wide = Chance(seed), wide_of(dtype)
    residual, delta = chance(rows, width, dtype=wide, spread=spread), chance(rows, width, dtype=dtype, spread=spread)
    assert heads_of.differing(residual, delta, chance(width, dtype=dtype), chance(width, dtype=wide)) == 0


def test_a_logit_does_not_depend_on_its_neighbours():
    chance = Chance(3)
    residual, delta, weight, answer = chance(70, 48), chance(70, 48), chance(48), chance(48)
    together = yes_no_head(residual, delta, weight, answer, torch.full((70,), torch.nan), 1e-6)
    alone = [
        yes_no_head(residual[at : at + 1], delta[at : at + 1], weight, answer, torch.empty(1), 1e-6) for at in (0, 69)
    ]
    assert torch.equal(together[[0, 69]], torch.cat(alone))


@every_dtype
def test_the_bounds_are_narrow(dtype, monkeypatch):
    """A weight that is off by four roundings is seen in every check that has one."""
    chance, wide = Chance(5), wide_of(dtype)
    off = 1 + 4 * unit(dtype) + 200 * unit(wide)
    rows, delta, weight = chance(20, 48, dtype=wide), chance(20, 48, dtype=dtype), 1 + chance(48, dtype=dtype).abs()
    answer, heads = chance(48, dtype=wide), 1 + chance(3, 16, dtype=dtype).abs()
    qkv, positions, tables = chance(20, 64, dtype=dtype), chance.whole(0, 30, 20), turns.tables(30, 16, wide)
    gate_up = chance(20, 96, dtype=dtype)
    scaled = [
        (norms, "add_rmsnorm", lambda: norms.differing(rows, delta, weight, dtype)),
        (turns, "qk_norm_rope", lambda: turns.differing(qkv, heads, positions, *tables)),
        (gates, "swiglu", lambda: gates.differing(gate_up)),
        (heads_of, "yes_no_head", lambda: heads_of.differing(rows, delta, weight, answer)),
    ]
    places = {"add_rmsnorm": 3, "qk_norm_rope": 0, "swiglu": 1, "yes_no_head": 4}  # of what is written
    for module, name, differing in scaled:
        assert differing() == 0, name
        right = getattr(module, name)

        def wrong(*given, right=right, written=places[name]):
            right(*given)
            return given[written].mul_(off)

        monkeypatch.setattr(module, name, wrong)
        assert differing() > 0, name


def zeros(*shape, dtype=torch.float32):
    return torch.zeros(*shape, dtype=dtype)


def whole(count):
    return torch.zeros(count, dtype=torch.int32)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda: add_rmsnorm(zeros(2, 8), zeros(2, 9), zeros(8), zeros(2, 8), 1e-6),
            r"delta \[2, 9\].*a weight of that",
        ),
        (lambda: add_rmsnorm(zeros(2, 16)[:, :8], None, zeros(8), zeros(2, 8), 1e-6), r"residual \[2, 8\] has strides"),
        (lambda: swiglu(zeros(2, 8), zeros(2, 8)), "expected twice as wide"),
        (lambda: swiglu(zeros(16, 2).T, zeros(2, 8)), "gate_up .* has strides"),
        (lambda: gather_embeddings(whole(2), zeros(3, 8), zeros(0, 9), zeros(2, 8)), "rows of 8 in both tables"),
        (lambda: gather_embeddings(whole(2), zeros(8, 3).T, zeros(0, 8), zeros(2, 8)), "tokens .* has strides"),
        (lambda: yes_no_head(zeros(2, 8), zeros(2, 8), zeros(8), zeros(8), zeros(3), 1e-6), "3 logits"),
        (
            lambda: yes_no_head(zeros(2, 8), zeros(2, 8), zeros(8), zeros(16)[::2], zeros(2), 1e-6),
            "answer .* has strides",
        ),
        (lambda: qk_norm_rope(zeros(2, 8), zeros(1, 6), whole(2), zeros(9, 3), zeros(9, 3), 1e-6), "a power of two"),
        (lambda: qk_norm_rope(zeros(2, 8), zeros(3, 4), whole(2), zeros(9, 2), zeros(9, 2), 1e-6), "fit into a row"),
        (lambda: qk_norm_rope(zeros(2, 8), zeros(2, 4), whole(3), zeros(9, 2), zeros(9, 2), 1e-6), "3 positions"),
        (
            lambda: qk_norm_rope(zeros(2, 8), zeros(2, 4), whole(2), zeros(9, 4), zeros(9, 4), 1e-6),
            r"\[longest, 2\] both",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_no_rows_are_no_launch():
    for dtype in DTYPES:
        assert not len(add_rmsnorm(zeros(0, 8), None, zeros(8), zeros(0, 8, dtype=dtype), 1e-6))
        assert not len(swiglu(zeros(0, 16, dtype=dtype), zeros(0, 8, dtype=dtype)))
        assert not len(yes_no_head(zeros(0, 8), zeros(0, 8), zeros(8), zeros(8), zeros(0), 1e-6))
