"""A handful of seeded cases against the specification, for benchmarks/kernels.py."""

from __future__ import annotations

from penstock.kernels.int8_topk.triton import int8_topk
from penstock.kernels.slabs import sample


def mismatches() -> int:
    """How many ids and scores are not the specification's."""
    return sample.mismatches(int8_topk)
