"""The device cell of percolation: batches of postings against a million standing queries, staging and result included.

Queries and postings are independent unit vectors and every query asks for one of a hundred conditions, which a posting
holds or not, so about half of the queries are scored; thresholds are such that about one pair in a hundred thousand is
found. What is measured goes from the batch on the host to the pairs on the host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.kerneling.timing import BUFFERS
from penstock.kernels.percolate.postings import Postings, staged
from penstock.kernels.percolate.room import Room
from penstock.kernels.percolate.rows import Queries, RowLayout, padded
from penstock.kernels.percolate.standing import Standing
from penstock.kernels.percolate.triton import percolate
from penstock.kernels.percolate.tuning import PLACE

if TYPE_CHECKING:
    from benchmarks.kerneling.cells import Session

POSTINGS = 64  # of a batch
CONDITIONS = 100
SELECTIVITY = 1e-5  # pairs that are found, of those that pass
TERMS = 8

Bits = npt.NDArray[np.int64]


def matching(session: Session, queries: int, width: int) -> dict[str, float]:
    layout = RowLayout(padded(width), TERMS)
    generator = torch.Generator().manual_seed(3)
    standing, places = _standing(layout, queries, width, session.device, generator)
    ids = torch.tensor(places, dtype=torch.int32, device=session.device)
    batches = [_postings(width, generator) for _ in range(BUFFERS)]
    room = Room(session.device, 1 << 20)

    def run(buffer: int) -> int:
        dense, bits, tenants = batches[buffer]
        batch = _staged(layout, dense, bits, tenants, session.device)
        slots, _, _ = percolate(standing, ids, batch, room).read()
        return len(slots)

    pairs = [run(buffer) for buffer in range(BUFFERS)]
    spent = session.timed("percolate", {"ours": run}, queries=queries, width=width, pairs=pairs)
    return {"percolate/1m_postings_per_s": POSTINGS / (spent["ours"].median * 1e-3)}


def _standing(
    layout: RowLayout, queries: int, width: int, device: torch.device, generator: torch.Generator
) -> tuple[Standing, list[int]]:
    standing = Standing(layout, device)
    # The score of two independent unit vectors is about normal, with deviation width^-1/2.
    threshold = 4.3 / width**0.5
    places = []
    for begin in range(0, queries, PLACE):
        count = min(PLACE, queries - begin)
        dense = torch.nn.functional.normalize(torch.randn(count, width, generator=generator), dim=1)
        nothing = np.zeros(0, np.int64)
        made = Queries(
            dense=dense,
            starts=np.zeros(count + 1, np.int64),
            terms=nothing,
            weights=nothing.astype(np.float32),
            norms=np.tile([1 + 2.0**-20, 0.0], (count, 1)),
            thresholds=np.full(count, threshold),
        )
        demands = torch.randint(1, CONDITIONS + 1, (1, count), generator=generator, dtype=torch.int32).numpy()
        places.append(standing.put(made, np.zeros(count, np.int32), demands))
    return standing, places


def _postings(width: int, generator: torch.Generator) -> tuple[torch.Tensor, Bits, Bits]:
    """Vectors, and of each condition the postings for which it holds: of number 0, and of half of the others, all."""
    dense = torch.nn.functional.normalize(torch.randn(POSTINGS, width, generator=generator), dim=1).bfloat16()
    bits = np.full(CONDITIONS + 1, -1, np.int64)
    bits[2::2] = 0
    return dense, bits, np.full(1, -1, np.int64)


def _staged(layout: RowLayout, dense: torch.Tensor, bits: Bits, tenants: Bits, device: torch.device) -> Postings:
    sketch = torch.zeros((len(dense), 0), dtype=torch.int8)
    return staged(layout, dense, sketch, (1 + 2.0**-7, 0.0), bits, tenants, device)
