"""A handful of seeded cases against the specification, for benchmarks/kernels.py."""

from __future__ import annotations

from penstock.kernels.gather_topk.triton import gather_topk
from penstock.kernels.slabs import sample


def mismatches() -> int:
    """How many ids and scores are not the specification's."""
    return sample.mismatches(gather_topk)
