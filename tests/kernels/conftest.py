"""Without a CUDA device kernels run in Triton's interpreter, which has to be said before one is imported."""

import os

import torch
from quick_interpreter import replace_once_a_launch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    replace_once_a_launch()


def pytest_configure(config):
    config.addinivalue_line("markers", "cuda: needs a CUDA device; skipped, with the reason, where there is none")
