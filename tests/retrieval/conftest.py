"""The store on each backend: one suite for all. On a machine with a CUDA device `cuda` replaces the interpreter."""

import functools

import pytest
import torch
from quick_interpreter import replace_once_a_launch

from penstock.retrieval.device.backend import choose
from penstock.retrieval.store.store import Store

if not torch.cuda.is_available():
    replace_once_a_launch()

BACKENDS = [
    pytest.param("cpu"),
    pytest.param("interpreter", marks=pytest.mark.interpreter),
    pytest.param("cuda", marks=pytest.mark.cuda),
]


@pytest.fixture(scope="session", params=BACKENDS)
def backend_name(request):
    return request.param


@pytest.fixture(scope="session")
def backend(backend_name):
    """None on the host alone."""
    return choose(backend_name)


@pytest.fixture(scope="session")
def slow(backend_name):
    """Whether a search takes tenths of a second: then a test does less of the same."""
    return backend_name == "interpreter"


@pytest.fixture(scope="session")
def make_store(backend):
    """Makes stores of this backend."""
    return functools.partial(Store, backend=backend)


@pytest.fixture(scope="session", params=[param for param in BACKENDS if param.values[0] != "cpu"])
def device_backend(request):
    """A device, or the interpreter in its place."""
    return choose(request.param)
