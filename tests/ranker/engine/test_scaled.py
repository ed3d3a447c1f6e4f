"""Forwards whose products multiply numbers of one byte: near those of whole weights, the same every time, finite.

**The bound.** A number is off by half a step of int8 at most, uniformly: 1 / sqrt(12) of it in the mean square. A step
is the row's greatest over 127. Of a row of normal values the greatest is some CREST of their root mean square, so a
value is off by CREST / (127 sqrt(12)) of that; a value of e4m3 by 2^-4 / sqrt(3) of itself at most. Both operands are,
independently, so a product is off by sqrt(2) as much of its own root mean square. Every product on the way to an answer
adds that to what the final norm makes a vector of root mean square 1: with P of them, log-odds h . a are off by
sqrt(P) * error * |a * norm|, a normal deviation, of which SIGMAS are never passed.
"""

import math

import numpy as np
import pytest
import torch
from random_qwen3 import random_qwen3

from penstock.kernels.scaled_gemm.numbers import FORMS
from penstock.ranker.backends.scorer import probability
from penstock.ranker.engine import devices
from penstock.ranker.engine.device import DeviceBackend
from penstock.ranker.engine.plan import Request, Text, plan, unpack
from penstock.ranker.engine.scaled import COMPANY, PRODUCTS, Choice, scaled
from penstock.ranker.engine.weights import Weights
from penstock.ranker.errors import UnfitScorer

CREST = 3.0  # of some hundred normal values
SIGMAS = 5.0
ERROR = {"int8": math.sqrt(2) * CREST / (127 * math.sqrt(12)), "fp8": math.sqrt(2) * 2**-4 / math.sqrt(3)}
MOST = 512

# numpy, under the interpreter, on rows that are not finite: infinity over infinity, and times 0
pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")

every_form = pytest.mark.parametrize("form", FORMS)


@pytest.fixture(scope="module", params=[pytest.param("interpreter"), pytest.param("cuda", marks=pytest.mark.cuda)])
def place(request):
    return devices.checked(request.param)


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=str)
def weights(request, tmp_path_factory):
    directory = random_qwen3(
        tmp_path_factory.mktemp("qwen3"),
        hidden_size=64,
        intermediate_size=128,
        head_dim=16,
        attention_bias=True,
        initializer_range=0.12,
    )
    return Weights.load(directory, request.param)


@pytest.fixture(scope="module")
def whole(weights, place):
    return logits(DeviceBackend(weights, place, MOST), forward_of())


def forward_of(seed=3, lengths=(5, 70, 9, 1, 30, 64)):
    rng = np.random.default_rng(seed)
    items = tuple(Text(rng.integers(0, 64, length, dtype=np.int32)) for length in lengths)
    (forward,) = plan([Request(rng.integers(0, 64, 20, dtype=np.int32), items)], MOST, MOST)
    return forward


def logits(backend, forward):
    return backend.logits(forward)


def bound(weights, choice):
    products = len(choice.products) * weights.shape.layers
    size = float((weights.answer.double() * weights.norm.double()).norm())
    return SIGMAS * math.sqrt(products) * ERROR[choice.form] * size


@every_form
def test_log_odds_are_near_those_of_whole_weights_and_the_same_again(weights, place, whole, form):
    choice = Choice(form, PRODUCTS)
    backend = DeviceBackend(scaled(weights, choice), place, MOST)
    found = logits(backend, forward_of())
    off = np.abs(found - whole).max()
    print(f"{form} {weights.dtype}: {off:.3f} of {bound(weights, choice):.3f}, log-odds {np.abs(whole).max():.2f}")
    assert 0 < off <= bound(weights, choice)
    assert np.isfinite(found).all()
    assert np.array_equal(found, logits(backend, forward_of()))


@every_form
@pytest.mark.parametrize("product", PRODUCTS)
def test_each_product_is_near_alone_and_no_matrix_is_taken_for_another(weights, place, whole, form, product):
    if weights.dtype != torch.float32:
        pytest.skip("once is enough")
    choice = Choice(form, (product,))
    found = logits(DeviceBackend(scaled(weights, choice), place, MOST), forward_of())
    assert 0 < np.abs(found - whole).max() <= bound(weights, choice)
    wrong = scaled(weights, choice)
    steps = getattr(wrong.layers[0], f"{product}_steps")
    steps.copy_(steps.flip(0))  # of other rows
    off = np.abs(logits(DeviceBackend(wrong, place, MOST), forward_of()) - whole).max()
    assert off > np.abs(found - whole).max()


@every_form
def test_company_moves_a_probability_by_no_more_than_its_bound(weights, place, form):
    backend = DeviceBackend(scaled(weights, Choice(form, PRODUCTS)), place, MOST)
    rng = np.random.default_rng(5)
    prefix = rng.integers(0, 64, 20, dtype=np.int32)
    items = [Text(rng.integers(0, 64, length, dtype=np.int32)) for length in (3, 64, 17, 120, 65, 2)]

    def scores(order):
        requests = [Request(prefix, tuple(items[at] for at in order))]
        forwards = plan(requests, MOST, MOST)
        return probability(unpack(requests, forwards, [backend.logits(one) for one in forwards])[0])

    together = scores(range(6))
    moved = [np.abs(scores(order) - together[list(order)]).max() for order in ((5, 4, 3, 2, 1, 0), (3,), (1, 5))]
    print(f"{form} {weights.dtype}: {max(moved):.1e}")
    assert max(moved) <= COMPANY[form]


@every_form
def test_a_value_that_is_not_finite_is_never_a_finite_score(weights, place, form):
    choice = scaled(weights, Choice(form, PRODUCTS))
    for value in (torch.nan, torch.inf):
        broken = scaled(weights, Choice(form, PRODUCTS))
        broken.layers[0].norm_mlp.data = torch.full_like(choice.layers[0].norm_mlp, value)
        assert not np.isfinite(DeviceBackend(broken, place, MOST).logits(forward_of())).any()
        broken.layers[0].norm_mlp.data = torch.ones_like(choice.layers[0].norm_mlp)


def test_a_model_is_named_by_what_is_scaled():
    assert [one.name for one in (Choice(), Choice("int8", PRODUCTS), Choice("fp8", ("qkv", "down")))] == [
        "",
        "-int8",
        "-fp8.qkv.down",
    ]


def test_a_scaled_matrix_takes_about_half_the_bytes_of_bfloat16(weights):
    if weights.dtype != torch.bfloat16:
        pytest.skip("said of bfloat16")
    layer, other = weights.layers[0], scaled(weights, Choice("int8", ("gate_up",))).layers[0]
    assert other.gate_up.nbytes + other.gate_up_steps.nbytes < 0.6 * layer.gate_up.nbytes
    assert other.qkv is layer.qkv


def test_widths_that_the_kernel_does_not_take_are_refused(tmp_path):
    weights = Weights.load(random_qwen3(tmp_path, intermediate_size=40, head_dim=16))
    assert scaled(weights, Choice("int8", ("qkv",)))
    with pytest.raises(UnfitScorer, match=r"ranker\.weights is int8, and of this model {'down': 40} values .* plain"):
        scaled(weights, Choice("int8", PRODUCTS))
