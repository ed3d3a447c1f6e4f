"""What the tunings of a scaled product are kept by (kernels/tunings)."""

from __future__ import annotations

import torch

from penstock.kernels.scaled_gemm.numbers import FORMS
from penstock.kernels.tunings import kept

SOURCES = ("scaled_gemm", "rowwise")  # folders that its code is in


def key_of(number: torch.dtype, rows: int, columns: int, depth: int, device: torch.device) -> str:
    """`rows`: of tuning.py's `bucket`."""
    form = next(form for form, dtype in FORMS.items() if dtype == number)
    return kept.key_of("scaled_gemm", f"{form} m{rows} n{columns} k{depth}", device, sources=SOURCES)
