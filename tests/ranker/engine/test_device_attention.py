"""The device's forward in float64, which the interpreter has: by tiles and by two calls it is the processor's."""

import numpy as np
import pytest
import torch
from random_qwen3 import random_qwen3

from penstock.ranker.engine import devices
from penstock.ranker.engine.forward import TorchBackend
from penstock.ranker.engine.plan import Request, Text, Vectors, plan
from penstock.ranker.engine.weights import Weights

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter's, and kernels are compiled here")
EXACT = 1e-9  # logits of some units; epsilon is float32 on its way to a kernel


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("qwen3")
    return Weights.load(
        random_qwen3(path, num_attention_heads=6, head_dim=16, attention_bias=True), torch.float64
    )  # three heads to a key head


@pytest.mark.parametrize("attention", ["tiles", "two_calls"])
def test_every_logit_is_the_processors(weights, attention):
    from penstock.ranker.engine.device import DeviceBackend

    place = devices.checked("interpreter")
    backend = DeviceBackend(weights, place, 512, attention=attention)
    rng = np.random.default_rng(3)

    def tokens(count):
        return rng.integers(0, 64, count, dtype=np.int32)

    requests = [
        Request(tokens(70), tuple(Text(tokens(count)) for count in (1, 40, 40, 90))),
        Request(tokens(0), (Text(tokens(3)), Vectors(rng.standard_normal((2, 32), dtype=np.float32), tokens(2)))),
        Request(tokens(5), (Vectors(rng.standard_normal((1, 32), dtype=np.float32), tokens(0)),)),
    ]
    processor = TorchBackend(weights, threads=1)
    for forward in plan(requests, 300, 300):
        np.testing.assert_allclose(backend.logits(forward), processor.logits(forward), rtol=0, atol=EXACT)


def test_logits_stay_what_they_were_when_the_slot_is_filled_again(weights):
    """In float64 they need no conversion, so nothing else takes them out of the slot's memory."""
    from penstock.ranker.engine.device import DeviceBackend

    place = devices.checked("interpreter")
    backend = DeviceBackend(weights, place, 256)
    forwards = [
        forward
        for token in range(3)
        for forward in plan([Request(np.full(2, token, np.int32), (Text(np.ones(3, np.int32)),))], 256, 256)
    ]
    found = [backend.logits(forward) for forward in forwards]
    assert len({float(logits[0]) for logits in found}) == len(forwards) == 3
