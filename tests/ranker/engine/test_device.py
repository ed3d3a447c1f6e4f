"""The forward on a device: buckets and their graphs, two in flight, memory, and what is refused.

In Triton's interpreter the graphs are stand-ins, which launch again what they were made of: as captured, over the
bucket's buffers with all their padding. On a machine with a CUDA device they are its own.
"""

import numpy as np
import pytest
import torch
from captured import Captured
from hypothesis import given
from hypothesis import strategies as st
from random_qwen3 import random_qwen3
from torch._subclasses.fake_tensor import FakeTensorMode

from penstock.ranker.engine import buffers, devices
from penstock.ranker.engine import device as device_module
from penstock.ranker.engine.buffers import Bucket, Buffers, bytes_of
from penstock.ranker.engine.device import GRAPHS, DeviceBackend
from penstock.ranker.engine.forward import BOUND, TorchBackend
from penstock.ranker.engine.plan import MalformedRequest, Request, Text, Vectors, plan
from penstock.ranker.engine.weights import Layer, Weights
from penstock.ranker.errors import UnfitScorer

BOUND_OF_LOGITS = 1e-5  # float32, as in test_forward.py
MOST = 700


@pytest.fixture(scope="module", params=[pytest.param("interpreter"), pytest.param("cuda", marks=pytest.mark.cuda)])
def place(request):
    return devices.checked(request.param)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return Weights.load(random_qwen3(tmp_path_factory.mktemp("qwen3"), head_dim=16, num_hidden_layers=1))


@pytest.fixture(scope="module")
def right(weights):
    return TorchBackend(weights, threads=1).logits


class Graphs:
    """Counts what is captured, and what is launched of it."""

    def __init__(self):
        self.captured = self.replayed = 0

    def __call__(self, launch):
        self.captured += 1
        launch()  # as CUDA does, to compile and allocate

        def replay():
            self.replayed += 1
            launch()

        return replay


@pytest.fixture
def graphs(place):
    return Graphs() if place.type == "cpu" else None


@pytest.fixture
def backend(weights, place, graphs):
    return DeviceBackend(weights, place, MOST, capture=graphs)


def forward_of(seed, prefix, lengths, vectors=0):
    rng = np.random.default_rng(seed)
    items = [Text(rng.integers(0, 64, length, dtype=np.int32)) for length in lengths]
    items += [Vectors(rng.standard_normal((1, 32), dtype=np.float32), np.ones(1, np.int32)) for _ in range(vectors)]
    (forward,) = plan([Request(rng.integers(0, 64, prefix, dtype=np.int32), tuple(items))], 10_000, 10_000)
    return forward


def poison(backend):
    """What no forward has written must not matter: numbers that would spread, and places that would be read."""
    with torch.inference_mode():
        for owner in (backend._buffers, *backend._slots):
            for tensor in tensors_of(owner):
                tensor.copy_(torch.arange(tensor.numel()).view_as(tensor) % 5)
                if tensor.is_floating_point():
                    tensor.fill_(torch.nan)


def tensors_of(owner):
    return [value for value in vars(owner).values() if isinstance(value, torch.Tensor)]


def near(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=0, atol=BOUND_OF_LOGITS)


# --- buckets and graphs --------------------------------------------------------------------------------------------


@given(st.integers(1, 20_000), st.data())
def test_a_bucket_holds_its_forward_with_little_to_spare(tokens, data):
    places, tiles = data.draw(st.integers(1, tokens)), data.draw(st.integers(1, tokens))
    bucket = Bucket.of(tokens, places, tiles)
    assert tokens <= bucket.tokens <= max(256, tokens * 9 / 8)
    assert places <= bucket.places <= bucket.tokens
    assert tiles <= bucket.tiles
    assert bucket.numbers <= buffers.most_numbers(bucket.tokens)
    assert Bucket.of(bucket.tokens, places, tiles) == bucket
    assert Bucket.of(tokens, 1, 1) in Bucket.usual(tokens)


def test_usual_forwards_have_a_bounded_number_of_buckets():
    assert len(Bucket.usual(2_048)) == 25
    assert [one.tokens for one in Bucket.usual(600)] == [256, 288, 320, 352, 384, 416, 448, 480, 512, 576, 640]
    assert len(Bucket.usual(16_384)) == 49 <= GRAPHS
    fifty_postings = plan([request_of(70, [150] * 50)], 8_192, 8_192)[0]
    assert Bucket.of(len(fifty_postings), 50, len(fifty_postings.tiles)) in Bucket.usual(8_192)


def request_of(prefix, lengths):
    return Request(np.ones(prefix, np.int32), tuple(Text(np.ones(length, np.int32)) for length in lengths))


def test_what_is_padded_or_was_there_before_reaches_no_logit(backend, right):
    forwards = [
        forward_of(1, 20, [5, 70, 5, 9], vectors=2),
        forward_of(2, 3, [1] * 280),  # as many places as tokens, nearly
        forward_of(3, 0, [2]),
    ]
    for forward in forwards:
        poison(backend)
        near(backend.logits(forward), right(forward))


def test_a_graph_is_captured_once_a_bucket_and_launched_again(backend, right, graphs):
    if graphs is None:
        pytest.skip("counted where graphs are stand-ins")
    for seed, lengths in enumerate([[5, 70], [6, 71], [5, 300]]):
        forward = forward_of(seed, 20, lengths)
        near(backend.logits(forward), right(forward))
    assert (graphs.captured, graphs.replayed) == (2, 3)


def test_usual_graphs_are_captured_ahead(weights, place, graphs):
    backend = DeviceBackend(weights, place, 300, capture=graphs)
    assert backend.warm() == len(Bucket.usual(300)) == 3
    if graphs is not None:
        backend.logits(forward_of(4, 20, [5, 70]))
        assert (graphs.captured, graphs.replayed) == (3, 1)
    assert DeviceBackend(weights, torch.device("cpu"), 300).warm() == 0 or place.type == "cuda"


def test_the_graph_that_rested_longest_goes(backend, right, graphs, monkeypatch):
    if graphs is None:
        pytest.skip("counted where graphs are stand-ins")
    monkeypatch.setattr(device_module, "GRAPHS", 2)
    small, middle, large = forward_of(5, 0, [3]), forward_of(6, 0, [270]), forward_of(7, 0, [300])
    for forward in (small, middle, small, large, small):
        near(backend.logits(forward), right(forward))
    assert graphs.captured == 3
    backend.logits(middle)
    assert graphs.captured == 4


# --- in flight -----------------------------------------------------------------------------------------------------


def test_forwards_in_flight_do_not_meet(backend, right):
    forwards = [forward_of(8, 20, [5, 70], vectors=1), forward_of(9, 0, [3]), forward_of(10, 9, [5, 7], vectors=3)]
    wanted = [right(forward) for forward in forwards]
    assert backend.in_flight == 2
    first, second = backend.launch(forwards[0]), backend.launch(forwards[1])
    near(first.wait(), wanted[0])
    third = backend.launch(forwards[2])
    near(second.wait(), wanted[1])
    near(third.wait(), wanted[2])


def test_what_was_refused_or_abandoned_leaves_the_next_alone(backend, right):
    forward = forward_of(11, 4, [5])
    backend.launch(forward_of(12, 20, [5, 70]))
    with pytest.raises(MalformedRequest):
        backend.launch(plan([Request(np.array([64], np.int32), (Text(np.ones(1, np.int32)),))], 9, 9)[0])
    backend.launch(forward_of(13, 20, [5, 70]))
    near(backend.logits(forward), right(forward))


# --- what is refused -----------------------------------------------------------------------------------------------


def test_prompts_and_forwards_longer_than_it_was_made_for(weights, place):
    backend = DeviceBackend(weights, place, 256, longest=40, capture=lambda launch: launch)
    with pytest.raises(MalformedRequest, match="a prompt of 41 tokens: the model takes 40"):
        backend.launch(forward_of(14, 20, [21]))
    with pytest.raises(ValueError, match="a forward of 272 tokens: this backend was made for 256"):
        backend.launch(forward_of(15, 2, [30] * 9))


def test_heads_that_kernels_do_not_take(tmp_path, place):
    weights = Weights.load(random_qwen3(tmp_path, head_dim=24))
    with pytest.raises(
        UnfitScorer, match=r"heads of 24: kernels take powers of two from 16; set ranker\.device to cpu"
    ):
        DeviceBackend(weights, place, 256)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_bytes_that_are_asked_for_are_those_that_are_taken(tmp_path, place, dtype):
    weights = Weights.load(random_qwen3(tmp_path, head_dim=16, attention_bias=True), dtype)
    backend = DeviceBackend(weights, place, MOST, longest=300, capture=lambda launch: launch)
    held = [*tensors_of(backend._buffers), backend._cosines, backend._sines]
    held += [weights.embedding, weights.norm, weights.answer]
    held += [one for layer in weights.layers for name in Layer.__slots__ if (one := getattr(layer, name)) is not None]
    assert backend.nbytes == bytes_of(weights, backend.most_tokens, 300) == sum(tensor.nbytes for tensor in held)


def test_a_device_with_too_little_memory_is_refused_with_the_numbers(weights, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (100 << 20, 1 << 30))
    with pytest.raises(
        UnfitScorer, match=r"need \d+ MiB of cuda:1, which has 100 of 1,024 MiB free: lower ranker\.for"
    ):
        DeviceBackend(weights, torch.device("cuda:1"), MOST)


def test_forwards_that_attention_cannot_count_are_refused_before_anything_is_taken(weights, place):
    with pytest.raises(UnfitScorer, match=r"forwards of 33,554,432 tokens: attention takes less than .* lower ranker"):
        DeviceBackend(weights, place, 1 << 25)


def test_a_device_that_runs_out_while_graphs_are_captured_is_refused(weights, monkeypatch):
    def warm(_):
        raise torch.OutOfMemoryError("tried to allocate 2 MiB")

    monkeypatch.setattr(DeviceBackend, "warm", warm)
    device = "cuda" if torch.cuda.is_available() else "interpreter"
    with pytest.raises(UnfitScorer, match=r"tried to allocate 2 MiB: lower ranker\.forward_tokens"):
        devices.made(weights, device, threads=1, most_tokens=256, longest=64)


# --- what a graph may hold -----------------------------------------------------------------------------------------


def test_a_forward_reads_nothing_back_and_moves_nothing_while_it_is_captured(weights, monkeypatch):
    """Over tensors of a device that is only pretended, with kernels that are noted and not run."""
    launched = []

    def noted(name):
        def launch(*given, **how):
            tensors = [one for one in (*given, *how.values()) if isinstance(one, torch.Tensor)]
            assert all(one.device.type == "cuda" and one.is_contiguous() for one in tensors)
            launched.append(name)

        return launch

    for name in ("gather_embeddings", "add_rmsnorm", "qk_norm_rope", "prefix_attention", "swiglu", "yes_no_head"):
        monkeypatch.setattr(device_module, name, noted(name))
    backend = DeviceBackend(weights, torch.device("cpu"), MOST)
    there = torch.device("cuda")
    with FakeTensorMode(allow_non_fake_inputs=False), torch.inference_mode():
        backend.weights = _there(weights)
        backend._cosines, backend._sines = (torch.empty(table.shape, device=there) for table in _tables(backend))
        backend._buffers = Buffers(backend.weights, there, backend.most_tokens)
        with Captured():
            backend._run(backend._buffers.inputs(Bucket.of(300, 20, 9)))
    assert launched == [
        "gather_embeddings",
        "add_rmsnorm",
        "qk_norm_rope",
        "prefix_attention",
        "add_rmsnorm",
        "swiglu",
        "yes_no_head",
    ]


def _tables(backend):
    return backend._cosines, backend._sines


def _there(weights):
    def fake(one):
        return torch.empty(one.shape, dtype=one.dtype, device="cuda") if isinstance(one, torch.Tensor) else one

    layers = tuple(Layer(*(fake(getattr(layer, name)) for name in Layer.__slots__)) for layer in weights.layers)
    return Weights(
        weights.shape,
        fake(weights.embedding),
        layers,
        fake(weights.norm),
        fake(weights.answer),
        fake(weights.inv_freq),
        weights.rope_scale,
    )


# --- a whole model's size, on a real device ------------------------------------------------------------------------


@pytest.mark.cuda
def test_bfloat16_on_a_real_device_is_the_processors_within_the_bound(tmp_path):
    """Tensor cores, asynchronous copies and graphs: none of them is at work in the interpreter."""
    directory = random_qwen3(
        tmp_path,
        hidden_size=1_024,
        intermediate_size=3_072,
        num_hidden_layers=4,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        initializer_range=0.02,
        dtype=torch.bfloat16,
    )
    weights = Weights.load(directory, torch.bfloat16)
    backend = DeviceBackend(weights, torch.device("cuda", 0), 8_192)
    backend.warm()
    processor = TorchBackend(weights, threads=8)
    forwards = [forward_of(seed, 70, [150, 120, 11, 1] * 8) for seed in range(4)]
    launched = [backend.launch(forwards[0]), backend.launch(forwards[1])]
    found = [each.wait() for each in launched] + [backend.logits(forward) for forward in forwards[2:]]
    for forward, logits in zip(forwards, found, strict=True):
        p, wanted = (1 / (1 + np.exp(-each)) for each in (logits, processor.logits(forward)))
        assert np.abs(p - wanted).max() <= BOUND[torch.bfloat16]


@pytest.mark.cuda
def test_a_device_waits_for_no_value_of_a_forward_before_the_next_is_launched(weights):
    """torch raises where the host waits for the device."""
    backend = DeviceBackend(weights, torch.device("cuda", 0), MOST)
    backend.warm()
    forwards = [forward_of(seed, 20, [5, 70]) for seed in range(2)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        launched = [backend.launch(forward) for forward in forwards]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(np.isfinite(each.wait()).all() for each in launched)
