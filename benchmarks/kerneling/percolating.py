"""What a batch of postings should take to percolate on an H200: a model, in the terms of model.py. Nothing is measured.

One batch is a copy, two launches and a result, one after the other:

    stage   condition bits, vectors and sketches over PCIe, in one piece
    select  reads the tenant and the demands of every query, gathers bits from L2 (a sector each, for those it still
            needs), and writes 20 bytes of each query that some posting passes
    match   tiles of 64 of these queries, one CTA an SM. A tile takes the longest of
              memory   64 records and their lines of the list, at the SM's share of bandwidth
              chain    tensor cores (or the shared memory they read), the words from L2, the sketches' lines from L2,
                       then the epilogue's instructions and barriers: one CTA does these in turn
                       What appends pairs comes on top, in those tiles that have one
              L2       the sketches' lines, and the batch where it is not resident
    result  the counter, then the pairs

With five stages a tile's dense values are on their way while the tile before it is computed; with three they are asked
for once that is done but for its pairs, and the wait for them comes on top. Its words were brought to L2 by then. Pairs
are taken as spread evenly over the tiles.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.kerneling.gpu import BAD, H200, LIKELY, Getting, Gpu
from benchmarks.kerneling.model import Launch
from penstock.kernels.aot.check import Checked
from penstock.kernels.percolate.rows import RowLayout, padded
from penstock.kernels.percolate.tuning import DEMANDS, TILE, bucket_of, tuned

PCIE = 50e9  # bytes/s of a Gen5 x16 link, of nominally 63
COPY = 10e-6  # s before a copy's first byte, or of a copy of a few bytes and the wait for it
L2 = 5.5e12  # bytes/s (microbenchmarks of H100s by others: 5.5 to 7)
SECTOR = 32  # bytes
LISTED = 20  # bytes of a query in the list: address, slot, mask
FOUND = 12  # bytes of a pair
RECORD = 16  # terms that a record has words for
LATE_WORDS = 430  # instructions of those past the eighth
BARRIERS, APPENDING_BARRIERS = 20, 30  # counted in the machine code of 384 values and 64 postings
HEADROOM = 1.1  # instructions that a tile really issues, over the shortest way through its loop


@dataclass(frozen=True, slots=True)
class Percolation:
    """`passing`: the share of the queries that some posting of the batch passes; `demands`, `terms`: of a query."""

    queries: int = 1_000_000
    width: int = 384
    postings: int = 64
    passing: float = 1.0
    demands: int = 3
    terms: int = 6
    sketch: int = 1_024
    conditions: int = 50_000
    pairs: int = 6_400  # that are found: a posting that alerts a hundred of a million


@dataclass(frozen=True, slots=True)
class Code:
    """Of the compiled `match`: warps of a CTA; instructions and barriers of a tile, the shortest way; and of the branch
    that appends pairs."""

    warps: int
    hot: int
    barriers: int
    appending: int
    appending_barriers: int


@dataclass(frozen=True, slots=True)
class Rate:
    launches: tuple[Launch, ...]
    getting: Getting
    postings: int

    @property
    def seconds(self) -> float:
        return sum(launch.seconds + self.getting.launch for launch in self.launches)

    @property
    def postings_per_s(self) -> float:
        return self.postings / self.seconds


def notes(checked: Sequence[Checked]) -> dict[str, Any]:
    """Predictions of a million queries of each width that was compiled, with the likely values of gpu.py and the bad
    ones: where every query passes for some posting, and where three in ten do."""
    out: dict[str, Any] = {}
    for one in checked:
        name = re.fullmatch(rf"percolate/match/d(\d+)/b64/t{RECORD}", one.name)
        if name is None or one.figures is None or not int(name[1]):
            continue
        # Behind the shortest way stand the words past the eighth and the branch that appends.
        beside = one.figures.main.instructions - one.figures.hot - LATE_WORDS
        code = Code(one.figures.warps, one.figures.hot, BARRIERS, beside, APPENDING_BARRIERS)
        for passing in (1.0, 0.3):
            for kind, getting in (("likely", LIKELY), ("bad", BAD)):
                rate = percolate(Percolation(width=int(name[1]), passing=passing), code, RECORD, got=getting)
                out.setdefault(f"d{name[1]}/passing{passing}", {})[kind] = {
                    "postings_per_s": round(rate.postings_per_s),
                    "ms": round(rate.seconds * 1e3, 4),
                    "launches": {
                        launch.name: {
                            "us": round(launch.seconds * 1e6, 2),
                            "bound": launch.bound,
                            "bytes": launch.bytes,
                            "flops": launch.flops,
                            **{part: round(seconds * 1e6, 2) for part, seconds in launch.parts.items()},
                        }
                        for launch in rate.launches
                    },
                }
    return out


def percolate(
    work: Percolation, code: Code, record_terms: int = RECORD, gpu: Gpu = H200, got: Getting = LIKELY
) -> Rate:
    return Rate(
        (_stage(work), _select(work, gpu, got), _match(work, code, record_terms, gpu, got), _result(work)),
        got,
        work.postings,
    )


def _stage(work: Percolation) -> Launch:
    bucket = bucket_of(work.postings)
    moved = 8 * work.conditions + bucket * (2 * padded(work.width) + work.sketch)
    return Launch("stage", COPY + moved / PCIE, moved, bound="PCIe")


def _select(work: Percolation, gpu: Gpu, got: Getting) -> Launch:
    moved = work.queries * (4 + 4 * DEMANDS) + work.passing * work.queries * LISTED
    parts = {
        "memory": moved / (got.read * got.scanning),
        "L2": work.queries * (1 + work.demands) * SECTOR / L2,
        "instructions": work.queries / 1_024 * 4 * 864 / (gpu.partitions * got.issue * gpu.sms * gpu.clock),
    }
    bound = max(parts, key=lambda part: parts[part])
    # Tenant, bits, a demand, its bits, and so on: each waits for what was before it.
    waits = (1 + work.demands) * (got.latency + got.l2_latency)
    return Launch("select", waits + parts[bound], moved, bound=bound, parts=parts)


def _match(work: Percolation, code: Code, record_terms: int, gpu: Gpu, got: Getting) -> Launch:
    form = tuned(padded(work.width), record_terms, bucket_of(work.postings))
    stride = RowLayout(form.width, record_terms).stride
    rows = work.passing * work.queries
    tiles = math.ceil(rows / TILE / gpu.sms)  # of the SM that has most
    products = TILE * form.bucket * form.width / gpu.fmas
    # Two warpgroups that halve the postings both read the tile's queries.
    read = 2 * form.width * (TILE * max(1, code.warps // 4) + form.bucket) / gpu.shared_bytes
    tile_l2 = TILE * form.bucket * max(work.terms, min(8, record_terms))
    if not form.resident:
        tile_l2 += 2 * form.bucket * form.width
    found = 1 - math.exp(-work.pairs / max(tiles * gpu.sms, 1))  # share of the tiles
    issued = max(code.warps / gpu.partitions / got.issue, got.alone)
    chain = max(products, read) + (code.hot * HEADROOM + found * code.appending) * issued
    chain += (code.barriers + found * code.appending_barriers) * got.barrier + got.drain
    fill = 2 * got.l2_latency * bool(record_terms) + found * got.latency  # the words, their lines; the counter
    if not form.resident:  # the loop over chunks begins anew with each tile
        fill += got.latency
    elif form.stages < 5:
        fill += got.latency + 2 * TILE * form.width / got.ingest
    parts = {
        "memory": tiles * TILE * (stride + LISTED) / (got.read * got.scanning / gpu.sms),
        "chain": tiles * (chain / gpu.clock + fill),
        "L2": tiles * tile_l2 / (L2 / gpu.sms),
    }
    bound = max(parts, key=lambda part: parts[part])
    flops = 2.0 * rows * form.bucket * (form.width + work.terms)
    return Launch("match", parts[bound] + 2 * got.latency, rows * (stride + LISTED), flops, bound, parts)


def _result(work: Percolation) -> Launch:
    return Launch("result", 2 * COPY + work.pairs * FOUND / PCIE, work.pairs * FOUND, bound="PCIe")
