"""What tests of the engine share: engines that end with their test, and the backends, one suite for all.

On a machine with a CUDA device `cuda` replaces the interpreter.
"""

import pytest
import torch
from known_scores import KNOWN, PositionSum
from quick_interpreter import replace_once_a_launch

from penstock.ranker.engine import devices
from penstock.ranker.engine.engine import Engine

if not torch.cuda.is_available():
    replace_once_a_launch()

DEVICES = [pytest.param("cpu"), pytest.param("interpreter"), pytest.param("cuda", marks=pytest.mark.cuda)]


@pytest.fixture(scope="module", params=DEVICES)
def device(request):
    """As `ranker.device` names it."""
    return request.param


@pytest.fixture(scope="module")
def slow(device):
    """Whether a forward takes half a second: then a test does less of the same."""
    return device == "interpreter"


@pytest.fixture(scope="module")
def backend_of(device):
    """Makes the device's backend of weights."""

    def made(weights):
        return devices.made(weights, device, threads=1, most_tokens=2_048, longest=weights.shape.max_positions)

    return made


@pytest.fixture(scope="module", params=[1, 2], ids=["one in flight", "two in flight"])
def in_flight(request):
    """How many forwards these tests' backends take at once; a module's, for hypothesis runs a test many times."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(PositionSum, "in_flight", request.param)
        yield request.param


@pytest.fixture
def engines():
    made = []

    def make(backend=None, limits=None, start=True, **options):
        engine = Engine(backend if callable(backend) else lambda: backend or PositionSum(), KNOWN, limits, **options)
        made.append(engine)
        if start:
            engine.start()
        return engine

    yield make
    for engine in made:
        engine.close(20)
