"""What a kernel is asked: the pages to look at, the distinct filters of a batch, and its queries.

All tensors of one batch lie on one device; who makes them says which.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from penstock.kernels.slabs.layout import Layout

FILTERS = 64  # distinct filters of a batch: a row has a bit of each
QUERIES = 256  # queries of a batch
TERMS = 256  # distinct terms of a batch that are multiplied on tensor cores; lighter ones are left to the bound


@dataclass(frozen=True, slots=True)
class Slabs:
    """Pages of one layout. `table` int64 [pages]: addresses; `offsets` int64: the layout's, on the device."""

    layout: Layout
    table: Tensor
    offsets: Tensor

    @property
    def pages(self) -> int:
        return self.table.shape[0]


@dataclass(frozen=True, slots=True)
class Filters:
    """F distinct filters: a clause program (kernels/slabs/program.py), and which rows may be seen at all.

    steps int32 [S, STEP], marks int64 [S], codes int32, numbers float64, longs int64: all programs' together;
    bounds int32 [F + 1]: the steps of filter f are bounds[f] to bounds[f + 1], none where everything passes.
    epochs, nows int64 [F]; tenants int32 [F]: codes, -2 of one that has no row; owners int64 [F]: the bit of each code
    in the blocks' zone maps.
    """

    steps: Tensor
    marks: Tensor
    codes: Tensor
    numbers: Tensor
    longs: Tensor
    bounds: Tensor
    epochs: Tensor
    nows: Tensor
    tenants: Tensor
    owners: Tensor

    @property
    def count(self) -> int:
        return self.epochs.shape[0]


@dataclass(frozen=True, slots=True)
class Queries:
    """B queries: dense float32 [B, D] (D: the layout's `dense`), finite; of the lexical part what is not zero:
    starts int32 [B + 1], terms int32 [t] ascending within a query, weights float32 [t]. filter_of int32 [B]."""

    dense: Tensor
    starts: Tensor
    terms: Tensor
    weights: Tensor
    filter_of: Tensor

    @property
    def count(self) -> int:
        return self.dense.shape[0]
