"""The tuned forms of the kernels, by the width of a record and the bucket of a batch. Values only.

A tile's dense values, 48 KB of 384, are copied to shared memory while the tile before it is scored; the batch lies
there as well where it fits (`resident`). The batch of a wider space does not, and is read again from L2 for every tile,
chunk by chunk.
"""

from __future__ import annotations

from dataclasses import dataclass

PLACE = 1_024  # queries that a writer replaces together, and that one program of `select` reads
SLAB = 64  # places that are allocated together: 57 MB of 384 values
DEMANDS = 4  # conditions of a query, all of which must hold
BUCKETS = (16, 32, 64)  # postings of a batch
TILE = 64  # queries: what one tensor-core instruction takes
CHUNK = 128  # dense values that one step of a tile multiplies
SELECT_WARPS = 4  # of a program of `select`
SHARED = 227 << 10  # bytes that a CTA can have
SCRATCH = 33 << 10  # bytes of them for addresses, reductions and changes of layout
RESIDENT = 512  # values: up to this width a batch stays in shared memory


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
    def resident(self) -> bool:
        return self.width <= RESIDENT

    def constants(self, *, interpret: bool) -> dict[str, object]:
        """Of the kernel."""
        return {
            "WIDTH": self.width,
            "CHUNK": self.chunk,
            "CHUNKS": self.chunks,
            "TERMS": self.terms,
            "BM": TILE,
            "BN": self.bucket,
            "RESIDENT": self.resident,
            "INTERPRET": interpret,
        }


def bucket_of(postings: int) -> int:
    """The smallest bucket that holds so many."""
    for bucket in BUCKETS:
        if postings <= bucket:
            return bucket
    raise ValueError(f"{postings} postings in a batch: expected at most {BUCKETS[-1]}; percolate the rest in another")


def tuned(width: int, terms: int, bucket: int) -> Tuning:
    """What an H200 is given.

    Addresses are loaded before what lies there, so five stages are two tiles on their way, and three are one.
    """
    stages = 4 if width > RESIDENT else 5 if 2 * width * (3 * TILE + bucket) + SCRATCH <= SHARED else 3
    return Tuning(width, terms, bucket, warps=8 if bucket == 64 else 4, stages=stages, ctas=1)
