"""Without a CUDA device kernels run in Triton's interpreter, which has to be said before one is imported."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_configure(config):
    config.addinivalue_line("markers", "cuda: needs a CUDA device; skipped, with the reason, where there is none")
