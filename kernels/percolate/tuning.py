"""The tuned forms of the kernels, by the width of a record and the bucket of a batch. Values only.

A tile is 64 queries, which is what one tensor-core instruction takes. Its dense values, 48 KB of 384, are copied to
shared memory while the tile before it is scored; the batch lies there as well where it fits (`resident`). The batch of
a wider space does not, and is read again from L2 for every tile, chunk by chunk: such a tile is 128 queries.
"""

from __future__ import annotations

from dataclasses import dataclass

BUCKETS = (16, 32, 64)  # postings of a batch
CHUNK = 128  # dense values that one step of a tile multiplies
RESIDENT = 512  # values: up to this width a batch stays in shared memory
SHARED = 227 << 10  # bytes that a CTA can have on an H200


@dataclass(frozen=True, slots=True)
class Tuning:
    """How `match` is compiled and launched."""

    width: int
    terms: int
    bucket: int
    warps: int
    stages: int
    ctas: int  # of a multiprocessor at once

    @property
    def chunk(self) -> int:
        return min(self.width, CHUNK)

    @property
    def chunks(self) -> int:
        return self.width // self.chunk if self.width else 0

    @property
    def tile(self) -> int:
        """Queries."""
        return 64 if self.resident else 128

    @property
    def resident(self) -> bool:
        return self.width <= RESIDENT


def bucket_of(postings: int) -> int:
    """The smallest bucket that holds so many."""
    for bucket in BUCKETS:
        if postings <= bucket:
            return bucket
    raise ValueError(f"{postings} postings in a batch: expected at most {BUCKETS[-1]}; percolate the rest in another")


def tuned(width: int, terms: int, bucket: int) -> Tuning:
    """What an H200 is given."""
    return Tuning(width, terms, bucket, warps=8 if bucket == 64 else 4, stages=3, ctas=1)
