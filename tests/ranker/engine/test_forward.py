"""The forward against transformers' own, prompt by prompt in float64, and against itself in other packings."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_qwen3 import NO, YES, random_qwen3

from penstock.ranker.engine import forward as forward_module
from penstock.ranker.engine.forward import TorchBackend
from penstock.ranker.engine.plan import MalformedRequest, Request, Text, Vectors, plan, unpack
from penstock.ranker.engine.weights import Weights

EXACT = 1e-9  # float64
FP32 = 1e-5  # the bound, for logits of some units
HIDDEN = 32


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return random_qwen3(tmp_path_factory.mktemp("qwen3"), head_dim=16)  # the least that kernels take


@pytest.fixture(scope="module")
def oracle(directory):
    return oracle_of(directory)


def oracle_of(directory):
    """Logits of one request's items by transformers, float64 [items]: each prompt alone, plain attention."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from transformers import Qwen3ForCausalLM
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

    class Norm(Qwen3RMSNorm):  # transformers' own computes in float32 whatever it is given
        def forward(self, x):
            return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    model = Qwen3ForCausalLM.from_pretrained(directory, dtype=torch.float64, attn_implementation="sdpa").eval()
    for module in model.modules():
        if type(module) is Qwen3RMSNorm:
            module.__class__ = Norm

    def embedded(tokens):
        return model.get_input_embeddings()(torch.from_numpy(tokens).long())

    @torch.inference_mode()
    def logits(request):
        found = []
        for item in request.items:
            parts = [embedded(request.prefix)]
            if isinstance(item, Vectors):
                parts += [torch.from_numpy(item.rows).double(), embedded(item.tail)]
            else:
                parts.append(embedded(item.tokens))
            with sdpa_kernel(SDPBackend.MATH):
                out = model(inputs_embeds=torch.cat(parts)[None]).logits[0, -1]
            found.append(float(out[YES] - out[NO]))
        return np.array(found)

    return logits


@pytest.fixture(scope="module")
def exact(directory):
    return TorchBackend(Weights.load(directory, torch.float64), threads=1)


@pytest.fixture(scope="module")
def backend(directory, backend_of):
    return backend_of(Weights.load(directory))


def scores(backend, requests, budget=10_000):
    forwards = plan(requests, budget, budget)
    return unpack(requests, forwards, [backend.logits(forward) for forward in forwards])


def text(rng, length):
    return Text(rng.integers(0, 64, length, dtype=np.int32))


def vectors(rng, count, tail):
    return Vectors(rng.standard_normal((count, HIDDEN), dtype=np.float32), rng.integers(0, 64, tail, dtype=np.int32))


def drawn(rng, prefix, lengths):
    return Request(rng.integers(0, 64, prefix, dtype=np.int32), tuple(text(rng, length) for length in lengths))


@st.composite
def requests_of(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shared = rng.integers(0, 64, draw(st.integers(0, 30)), dtype=np.int32)
    requests = []
    for _ in range(draw(st.integers(1, 4))):
        prefix = draw(st.one_of(st.just(None), st.integers(0, 70)))
        items = []
        for _ in range(draw(st.integers(0, 6))):
            if draw(st.booleans()):
                items.append(text(rng, draw(st.integers(1, 80))))
            else:
                items.append(vectors(rng, draw(st.integers(1, 3)), draw(st.integers(0, 2))))
        chosen = shared if prefix is None else rng.integers(0, 64, prefix, dtype=np.int32)
        requests.append(Request(chosen, tuple(items)))
    return requests


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(requests_of(), st.integers(1, 600))
def test_every_logit_is_transformers_own(exact, oracle, requests, budget):
    for request, found in zip(requests, scores(exact, requests, budget), strict=True):
        np.testing.assert_allclose(found, oracle(request), rtol=0, atol=EXACT)


def test_a_score_depends_on_nothing_but_its_prompt(backend, exact, slow):
    """Slots, orders, batch sizes and packings: float32 stays within the bound of float64, so within twice of itself."""

    @settings(max_examples=5 if slow else 30)
    @given(requests_of(), st.integers(300 if slow else 1, 600), st.randoms(use_true_random=False))
    def holds(requests, budget, random):
        right = scores(exact, requests)
        for found in (scores(backend, requests, 2_048), scores(backend, requests, budget)):
            for one, other in zip(found, right, strict=True):
                np.testing.assert_allclose(one, other, rtol=0, atol=FP32)
        order = random.sample(range(len(requests)), len(requests))
        within = [random.sample(range(len(one.items)), len(one.items)) for one in requests]
        mixed = [Request(requests[at].prefix, tuple(requests[at].items[item] for item in within[at])) for at in order]
        for at, found in zip(order, scores(backend, mixed, budget), strict=True):
            np.testing.assert_allclose(found, right[at][within[at]], rtol=0, atol=FP32)

    holds()


def test_the_same_forward_twice_is_the_same_to_the_bit(backend):
    rng = np.random.default_rng(1)
    (one,) = plan([drawn(rng, 20, [5, 70, 5, 9])], 1_000, 1_000)
    (other,) = plan([drawn(rng, 90, [200])], 1_000, 1_000)
    first = backend.logits(one)
    backend.logits(other)  # leaves its own in the scratch
    assert backend.logits(one).tobytes() == first.tobytes()


def test_nothing_is_read_that_was_not_written(directory):
    rng = np.random.default_rng(2)
    requests = [drawn(rng, 20, [5, 70, 5, 9]), drawn(rng, 0, [3, 3])]
    clean = scores(TorchBackend(Weights.load(directory), threads=1), requests)
    poisoned = TorchBackend(Weights.load(directory), threads=1)
    scores(poisoned, [drawn(rng, 300, [500])])
    with torch.inference_mode():
        for buffer in poisoned._scratch._kept.values():
            buffer.fill_(float("nan"))
    for one, other in zip(scores(poisoned, requests), clean, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=FP32)


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_chunks_do_not_matter(exact, oracle, monkeypatch, chunk):
    monkeypatch.setattr(forward_module, "CHUNK_TOKENS", chunk)
    request = drawn(np.random.default_rng(3), 30, [1, 4, 4, 60])
    np.testing.assert_allclose(scores(exact, [request])[0], oracle(request), rtol=0, atol=EXACT)


def test_threads_change_nothing_beyond_the_bound(directory):
    request = drawn(np.random.default_rng(4), 30, [1, 4, 4, 60, 150])
    alone = scores(TorchBackend(Weights.load(directory), threads=1), [request])[0]
    try:
        both = scores(TorchBackend(Weights.load(directory), threads=2), [request])[0]
    finally:
        torch.set_num_threads(1)
    np.testing.assert_allclose(both, alone, rtol=0, atol=FP32)


other_shapes = pytest.mark.parametrize(
    "changes",
    [
        {"tie_word_embeddings": True},
        {"attention_bias": True},
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 1},
        {"num_attention_heads": 6, "hidden_size": 48},
        {"num_hidden_layers": 1},
        {"head_dim": 32},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0}},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}},
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10_000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 256,
            }
        },
    ],
    ids=str,
)


@other_shapes
@pytest.mark.parametrize("head_dim", [8, 16])
def test_other_shapes_of_the_architecture(tmp_path, changes, head_dim):
    directory = random_qwen3(tmp_path, **{"head_dim": head_dim, **changes})
    request = drawn(np.random.default_rng(5), 40, [3, 3, 50, 1])
    found = scores(TorchBackend(Weights.load(directory, torch.float64), threads=1), [request])[0]
    np.testing.assert_allclose(found, oracle_of(directory)(request), rtol=0, atol=EXACT)


@other_shapes
def test_other_shapes_on_each_device(tmp_path, backend_of, changes):
    directory = random_qwen3(tmp_path, **{"head_dim": 16, **changes})
    request = drawn(np.random.default_rng(5), 40, [3, 3, 50, 1])
    found = scores(backend_of(Weights.load(directory)), [request])[0]
    np.testing.assert_allclose(found, oracle_of(directory)(request), rtol=0, atol=FP32)


def test_bfloat16_stays_near(tmp_path, backend_of):
    directory = random_qwen3(tmp_path, head_dim=16, initializer_range=0.1, dtype=torch.bfloat16)
    request = drawn(np.random.default_rng(6), 40, [3, 3, 50, 120])
    backend = backend_of(Weights.load(directory, torch.bfloat16))
    np.testing.assert_allclose(scores(backend, [request])[0], oracle_of(directory)(request), rtol=0, atol=2e-2)


def test_a_long_prompt_beside_short_ones(exact, oracle):
    request = drawn(np.random.default_rng(7), 300, [700, 1])
    np.testing.assert_allclose(scores(exact, [request])[0], oracle(request), rtol=0, atol=EXACT)


def test_items_as_vectors_between_texts(backend, exact):
    rng = np.random.default_rng(8)
    prefix = rng.integers(0, 64, 20, dtype=np.int32)
    request = Request(prefix, (text(rng, 5), vectors(rng, 2, 1), vectors(rng, 3, 0), text(rng, 70), vectors(rng, 1, 2)))
    np.testing.assert_allclose(scores(backend, [request])[0], scores(exact, [request])[0], rtol=0, atol=FP32)


def test_no_items(backend):
    (forward,) = plan([drawn(np.random.default_rng(9), 3, [2])], 10, 10)
    empty = replace(forward, items=forward.items[:0], prefix_of=forward.prefix_of[:0], last=forward.last[:0])
    assert backend.logits(empty).shape == (0,)


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (
            Request(np.array([1, 64], np.int32), (Text(np.array([1], np.int32)),)),
            "tokens from 1 to 64: the model has 0 to 63",
        ),
        (Request(np.array([-1], np.int32), (Text(np.array([1], np.int32)),)), "tokens from -1 to 1"),
        (Request(np.ones(1_000, np.int32), (Text(np.ones(25, np.int32)),)), "1025 tokens: the model takes 1024"),
        (
            Request(np.ones(1, np.int32), (Vectors(np.zeros((1, 31), np.float32), np.ones(1, np.int32)),)),
            "vectors of 31 numbers: the model's have 32",
        ),
    ],
    ids=["vocabulary", "negative", "positions", "hidden"],
)
def test_what_this_model_cannot_score(backend, request_, said):
    (forward,) = plan([request_], 10_000, 10_000)
    with pytest.raises(MalformedRequest, match=said):
        backend.logits(forward)
