"""Compiles what a shard's searches and writes will launch, ahead of the first: a small store on the device, with rows
and searches of the shapes that are served. They take the very way of those to come, and the ways that few take as well:
every query is asked again, and gathers have seeds. So what is compiled is what will be launched; Triton keeps it in its
cache, for every process of this user.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from penstock.kernels.slabs.batch import QUERIES
from penstock.retrieval.device.backend import Backend
from penstock.retrieval.encoder.planes import float_bytes
from penstock.retrieval.store.page import PAGE_ROWS
from penstock.retrieval.store.records import Ask
from penstock.retrieval.store.store import Store
from penstock.schemas.events import Attributes, Filter, IndexOp, IndexUpdate, QueryVector, Vector
from penstock.schemas.filters import in_range, is_in

SPACE = "warmup"
BATCHES = (1, 32, 64, 128, QUERIES)  # queries: what they are padded to
TERMS = (0, 8, 64, 128)  # of a batch, likewise
ROWS = 300


@dataclass(frozen=True, slots=True)
class Compiled:
    """One shape, and how long its first search took: next to nothing where all of it had been compiled before."""

    name: str
    seconds: float


def warmed(
    backend: Backend,
    dense: int,
    sketch: int,
    ks: Sequence[int],
    batches: Sequence[int] = BATCHES,
    page_rows: int = PAGE_ROWS,
) -> Iterator[Compiled]:
    """A shape after the other, as it is done. Raises OutOfRoom where the device cannot hold one page."""
    store = Store(page_rows=page_rows, hold_ms=0, backend=backend)
    device = store.mirrored
    assert device is not None
    began = time.perf_counter()
    for version in (1, 2):  # the second time rows die as well, and then they are given back
        applied = store.apply([_row(i, version, dense, sketch) for i in range(ROWS)], now_ms=version)
        if applied.refused:
            raise applied.refused[0].error
    store.reclaim(now_ms=3)
    yield Compiled(f"writes of {dense} dense and {sketch} sketch values", time.perf_counter() - began)
    gathered, scanned = is_in("company", "c7"), in_range("posted_at", minimum=0)
    for k in ks:
        for batch in batches:
            for terms in TERMS if sketch else TERMS[:1]:
                for name, tree in (("scan", scanned), ("gather", gathered)):
                    began = time.perf_counter()
                    with device.doubting():
                        _search(store, tree, k, batch, dense, sketch, min(terms, sketch))
                    what = f"{name} of {batch} queries, {terms} terms, k {k}"
                    yield Compiled(what, time.perf_counter() - began)


def _search(store: Store, tree: Filter, k: int, batch: int, dense: int, sketch: int, terms: int) -> None:
    lexical = np.zeros(sketch, np.float32)
    lexical[:terms] = 1.0
    vector = QueryVector(
        space_id=SPACE,
        encoder_id=SPACE,
        dense=float_bytes(np.ones(dense, np.float32)),
        lexical=float_bytes(lexical) if sketch else None,
    )
    for answer in store.search_many([Ask(vector, tree, k, 3)] * batch):
        if isinstance(answer, Exception):
            raise answer


def _row(number: int, version: int, dense: int, sketch: int) -> IndexUpdate:
    # Any finite values do: 0x3F80 is 1 as a bfloat16.
    vector = Vector(
        space_id=SPACE,
        encoder_id=SPACE,
        dense=np.full(dense, 0x3F80, "<u2").tobytes(),
        sketch=np.full(sketch, number % 100, np.int8).tobytes() if sketch else None,
    )
    return IndexUpdate(
        posting_id=f"p{number}",
        version=version,
        op=IndexOp.UPSERT,
        attributes=Attributes(title="posting", company=f"c{number % 50}", posted_at=number),
        vector=vector,
        produced_at=0,
    )
