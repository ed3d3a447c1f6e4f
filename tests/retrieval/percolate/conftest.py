"""The stores of these tests find pairs on a CPU, and by the kernels: on a GPU, or where there is none interpreted.

Triton has to be told before the first kernel is imported.
"""

import os

import pytest
import torch

CUDA = torch.cuda.is_available()
if not CUDA:
    os.environ["TRITON_INTERPRET"] = "1"


KERNELS = "cuda" if CUDA else "interpreter"


@pytest.fixture(params=["cpu", KERNELS], scope="module")
def device(request):
    return request.param


@pytest.fixture(scope="module")
def kernels():
    return KERNELS
