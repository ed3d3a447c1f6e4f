"""A score depends on its pair: over slots, orders, companies, splits and classes it stays within the stated bound."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_qwen3 import random_qwen3

from penstock.ranker.backends.scorer import probability
from penstock.ranker.engine.forward import BOUND
from penstock.ranker.engine.plan import Request, Text, Vectors, plan, unpack
from penstock.ranker.engine.weights import Weights

HIDDEN = 256
EXAMPLES = {torch.float32: 40, torch.bfloat16: 8}  # a core without AMX or AVX-512 computes bfloat16 slowly


@pytest.fixture(scope="module")
def backends(tmp_path_factory, backend_of):
    directory = random_qwen3(
        tmp_path_factory.mktemp("qwen3"),
        hidden_size=HIDDEN,
        intermediate_size=512,
        num_hidden_layers=3,
        head_dim=64,
        initializer_range=0.08,  # logits of some units, so that probabilities stand where they are steepest and beyond
    )
    return {dtype: backend_of(Weights.load(directory, dtype)) for dtype in BOUND}


LENGTHS = st.sampled_from([1, 2, 3, 17, 63, 64, 65, 120])


@st.composite
def _items(draw, rng):
    if draw(st.integers(0, 3)):
        return Text(rng.integers(0, 64, draw(LENGTHS), dtype=np.int32))
    rows = 0.1 * rng.standard_normal((draw(st.integers(1, 3)), HIDDEN), dtype=np.float32)
    return Vectors(rows, rng.integers(0, 64, draw(st.integers(0, 2)), dtype=np.int32))


@st.composite
def _requests(draw, most):
    """Some with a prefix in common, some without any, and items that stand in several of them."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    prefixes = [rng.integers(0, 64, length, dtype=np.int32) for length in (0, draw(LENGTHS), draw(LENGTHS))]
    items = [draw(_items(rng)) for _ in range(draw(st.integers(1, 6)))]
    return [
        Request(draw(st.sampled_from(prefixes)), tuple(draw(st.lists(st.sampled_from(items), max_size=most))))
        for _ in range(draw(st.integers(1, 3)))
    ]


def scores(backend, requests, budget, interactive):
    forwards = plan(requests, budget, interactive)
    found = unpack(requests, forwards, [backend.logits(forward) for forward in forwards])
    return [probability(one) for one in found]


def alone(backend, request):
    """One item a forward."""
    single = [Request(request.prefix, (item,)) for item in request.items]
    return np.array([scores(backend, [one], 2_048, 2_048)[0][0] for one in single])


@pytest.mark.parametrize("dtype", BOUND, ids=str)
def test_a_probability_moves_by_no_more_than_the_bound_whatever_shares_its_forwards(backends, dtype, slow):
    backend, worst = backends[dtype], [0.0]

    least = 250 if slow else 1  # tokens a forward

    @settings(max_examples=4 if slow else EXAMPLES[dtype])
    @given(
        _requests(2 if slow else 5), st.integers(least, 500), st.integers(least, 500), st.randoms(use_true_random=False)
    )
    def holds(requests, budget, interactive, random):
        expected = [alone(backend, request) for request in requests]
        order = random.sample(range(len(requests)), len(requests))
        within = [random.sample(range(len(one.items)), random.randint(0, len(one.items))) for one in requests]
        mixed = [
            Request(requests[at].prefix, tuple(requests[at].items[item] for item in within[at]), random.random() < 0.5)
            for at in order
        ]
        for at, found in zip(order, scores(backend, mixed, budget, interactive), strict=True):
            moved = np.abs(found - expected[at][within[at]]).max(initial=0.0)
            worst[0] = max(worst[0], float(moved))
            assert moved <= BOUND[dtype]

    holds()
    assert worst[0] > 0 or slow  # packings do differ in their last digits, so there is something to bound
    print(f"{dtype}: {worst[0]:.1e}")
