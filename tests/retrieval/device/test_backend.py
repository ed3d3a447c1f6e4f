"""Which device is chosen, what is said where it cannot be, and that a process on the host alone loads nothing of it."""

import os
import subprocess
import sys

import pytest
import torch
from pydantic import ValidationError

from penstock.infra.settings import RetrievalSettings
from penstock.retrieval.device.backend import Budget, DeviceUnavailable, choose
from penstock.retrieval.store.errors import OutOfRoom

WITHOUT_DEVICE = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")


def told(script, **environ):
    """What a process of its own prints."""
    environ = {**{key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}, **environ}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False, env=environ
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@WITHOUT_DEVICE
def test_auto_is_the_host_where_there_is_no_device():
    assert choose("auto") is None and choose("cpu") is None


@WITHOUT_DEVICE
def test_cuda_without_a_device_says_what_to_do():
    with pytest.raises(DeviceUnavailable, match="finds no CUDA device: set it to auto or cpu"):
        choose("cuda")


def test_a_name_that_is_none_of_them_is_refused():
    with pytest.raises(ValueError, match="got 'tpu', expected auto, cpu, cuda or interpreter"):
        choose("tpu")
    with pytest.raises(ValidationError, match="device"):
        RetrievalSettings(device="tpu")


def test_the_interpreter_chooses_itself_where_nothing_of_triton_is_loaded_yet():
    script = "from penstock.retrieval.device.backend import choose; print(choose('interpreter').name)"
    assert told(script) == "interpreter"


def test_the_interpreter_in_a_process_that_has_triton_already_says_what_to_do():
    script = """
import triton
from penstock.retrieval.device.backend import DeviceUnavailable, choose
try:
    choose("interpreter")
except DeviceUnavailable as error:
    print(error)
"""
    assert "start with TRITON_INTERPRET=1" in told(script)
    assert told(script, TRITON_INTERPRET="1") == ""


@WITHOUT_DEVICE
def test_a_shard_on_the_host_loads_neither_triton_nor_a_kernel():
    script = """
import sys, penstock.retrieval.server
from penstock.infra.settings import Settings
from penstock.retrieval import kinds
own = Settings()
store = kinds.postings(own, kinds.lexicon_of(own), kinds.backend_of(own)).make(7)
print(store.device, *(name for name in sys.modules if name == "triton" or name.startswith("penstock.kernels.slabs")))
"""
    assert told(script) == "cpu"


def test_a_budget_refuses_with_the_numbers_and_takes_back():
    budget = Budget(1_000)
    budget.take("one", 600)
    with pytest.raises(OutOfRoom, match=r"two needs 401 bytes, the store holds 600 of 1,000: raise retrieval.device_b"):
        budget.take("two", 401)
    assert budget.held == 600
    budget.give_back(600)
    budget.take("two", 1_000)
    assert budget.held == 1_000
