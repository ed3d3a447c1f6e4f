"""What one batch on an H200 should take, from the bytes, the FLOPs and the compiled code of each launch: a model.

Nothing here was measured. Byte counts follow from the layout (kernels/slabs/layout.py), instruction counts, registers,
shared memory and CTAs an SM from the machine code (`python -m penstock.kernels.aot`), the rest from gpu.py. A launch
takes the greatest of what its resources need, for they work at the same time; launches follow one another.

**scan.** Persistent CTAs, C on each SM, take runs of R blocks of 128 rows in turn. A run has two phases:

    gate   evaluates visibility and clauses for the run's rows, some of them a step; a step makes a few trips to memory
           that depend on one another. Nothing else of this CTA happens meanwhile, and no tile is on its way
    tiles  fill (latency, and a tile's transfer), then R tiles, each taking the longest of
             memory   tile bytes at the SM's share of bandwidth
             flight   Little's law: bytes in flight / (latency + their transfer into one SM)
             chain    tensor cores, then the epilogue's instructions, then loads that it waits for: one CTA does these
                      in turn
             issue, shared, tensor   of all C CTAs together

A run of one CTA takes gate + tiles; C of them overlap, so an SM needs for C runs the longest of

    (gate + fill + R * max(flight, chain)),    C * (R * memory + the gate's bytes),    C * R * issue, shared or tensor

and a launch ceil(runs / CTAs) of those. So a gate costs nothing where another CTA's tiles fill its time, and everything
where a CTA is alone on its SM.

**seed** is the same over one block in 64. **threshold, select** are one CTA a query: 32 rounds of a reduction.
**rescore** gathers rows of 2 D bytes and does some 15 float64 operations a value. **rank** compares all kept rows with
all: a tile of them takes its instructions, or as long as the next one is on its way from the L2 cache; one tile of each
program, its own, is compared exactly. Both start for more rows than are kept, and programs that find none cost what
starting them does.
**plan** reads the zone maps. The share of read bandwidth is

    (bytes that the answer cannot do without: planes and columns that are looked at, each once) / time / read bandwidth

with the time of everything, launches included.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from benchmarks.kerneling.gpu import H200, LIKELY, Getting, Gpu

BLOCK = 128
VISIBLE = 8 + 8 + 8 + 4  # bytes a row: birth, death, expires, tenant
CLAUSE = 8  # bytes a row and clause, at most (a number)
ZONES = 4 + 8 + 8  # bytes a block: rows, expires_max, tenants
SAMPLED = 64
GROUP = 32
KEPT = 1.3  # of k: what is left of them once their bounds are compared
DOUBLES = 15  # float64 operations a value: two TwoSums, a product, conversions


@dataclass(frozen=True, slots=True)
class Work:
    """What is asked. `rows` are those of live blocks; `clauses` a row is tested by."""

    rows: int
    width: int  # values of the dense plane
    batch: int
    k: int = 1_000
    terms: int = 0  # lines of the sketch that the batch names
    clauses: int = 0
    element: int = 2  # bytes of a value of the dense plane; 1 where it is int8

    @property
    def blocks(self) -> int:
        return -(-self.rows // BLOCK)

    @property
    def row_bytes(self) -> int:
        """Which an answer cannot do without."""
        return self.width * self.element + VISIBLE + self.clauses * CLAUSE + self.terms

    @property
    def needed(self) -> int:
        return self.rows * self.row_bytes

    @property
    def flops(self) -> float:
        return 2.0 * self.rows * self.batch * (self.width + self.terms)


@dataclass(frozen=True, slots=True)
class Form:
    """What the model takes of a compiled scan."""

    warps: int
    ctas: int  # an SM
    hot: int  # instructions of a tile
    barriers: int  # of a tile
    gate: int  # instructions of the gate, a step, a thread
    flight: int  # bytes on their way while a tile is computed, a CTA
    tile_rows: int
    run: int  # blocks of a run
    gate_rows: int  # rows that a step of the gate takes
    waits: bool = False  # whether a tile's loop has loads that it waits for, once a tile

    @property
    def steps(self) -> int:
        return -(-self.run * BLOCK // self.gate_rows)


@dataclass(frozen=True, slots=True)
class Ranking:
    """What it takes of a compiled rank."""

    rows: int  # whose places a program finds
    others: int  # of a tile
    warps: int
    ctas: int  # an SM
    hot: int  # instructions of a tile in which no two rows are equal, a thread
    exact: int  # of one in which some are, at most


@dataclass(frozen=True, slots=True)
class Launch:
    name: str
    seconds: float
    bytes: float = 0.0  # of device memory
    flops: float = 0.0
    bound: str = ""  # what takes longest
    parts: dict[str, float] = field(default_factory=dict)  # seconds, of what could have


@dataclass(frozen=True, slots=True)
class Prediction:
    work: Work
    launches: tuple[Launch, ...]
    getting: Getting

    @property
    def seconds(self) -> float:
        return sum(launch.seconds + self.getting.launch for launch in self.launches)

    @property
    def share(self) -> float:
        """Of read bandwidth."""
        return self.work.needed / self.seconds / self.getting.read

    def flop_share(self, gpu: Gpu = H200) -> float:
        """Of nominal bf16 FLOPs."""
        return self.work.flops / self.seconds / (2 * gpu.fmas * gpu.sms * 1.83e9)


def scan(work: Work, form: Form, gpu: Gpu = H200, got: Getting = LIKELY, name: str = "scan") -> Launch:
    """One pass over `work`'s blocks."""
    per_sm = got.read * got.scanning / gpu.sms
    rows = form.tile_rows
    tiles = form.run * BLOCK // rows  # of a run
    tile_bytes = rows * (work.width * work.element + work.terms)
    gate_bytes = form.run * BLOCK * (VISIBLE + work.clauses * CLAUSE)

    def cycles(count: float) -> float:
        return count / gpu.clock

    tensor, shared = tensor_cycles(work, rows, gpu)
    a_partition = form.warps / gpu.partitions
    epilogue = form.hot * max(a_partition / got.issue, got.alone)
    chain = cycles(tensor + epilogue + form.barriers * got.barrier + got.drain) + form.waits * got.latency
    flight = tile_bytes / form.flight * (got.latency + form.flight / got.ingest)
    fill = got.latency + tile_bytes / got.ingest
    gate_work = cycles(form.gate * max(a_partition / got.issue, got.alone))
    rounds = 3 + work.clauses  # where the block lies; its page; its columns; then each clause's
    gate = form.steps * (2 * got.l2_latency + (rounds - 2) * got.latency + gate_work)
    instructions = (tiles * form.hot + form.steps * form.gate) * form.warps
    run = {
        "one CTA's turn": (gate + fill + tiles * max(flight, chain)) / form.ctas,
        "memory": (tiles * tile_bytes + gate_bytes) / per_sm,
        "issue": cycles(instructions / gpu.partitions / got.issue),
        "tensor cores": cycles(tiles * tensor),
        "shared memory": cycles(tiles * shared),
    }
    bound = max(run, key=lambda part: run[part])
    runs = work.blocks / form.run
    a_wave = gpu.sms * form.ctas
    whole = math.ceil(runs / a_wave) / (runs / a_wave) if runs > a_wave else 1.0
    seconds = run[bound] * max(runs, 1.0) / gpu.sms * whole
    if runs < a_wave:  # every CTA has one run, and waits for it
        seconds = max(gate + fill + tiles * max(flight, chain), runs * run["memory"] / gpu.sms)
    parts = {part: spent * runs / gpu.sms for part, spent in run.items()} | {"of which gates": gate * runs / a_wave}
    return Launch(
        name, seconds, work.rows * (tile_bytes / rows + gate_bytes / form.run / BLOCK), work.flops, bound, parts
    )


def tensor_cycles(work: Work, rows: int, gpu: Gpu) -> tuple[float, float]:
    """Cycles of a tile: on the tensor cores, which read both operands from shared memory; of shared memory in all."""
    products = rows * work.batch * (work.width * work.element / 2 + work.terms) / gpu.fmas
    read = rows * work.width * work.element + rows / 64 * work.batch * work.width * work.element
    return max(products, read / gpu.shared_bytes), (read + rows * work.width * work.element) / gpu.shared_bytes


def plan(work: Work, gpu: Gpu = H200, got: Getting = LIKELY) -> Launch:
    moved = work.blocks * (ZONES + work.clauses * 2 * CLAUSE + 12)
    return Launch("plan", 2 * got.latency + moved / (0.5 * got.read), moved, bound="latency")


def selection(name: str, values: float, threads: int, work: Work, gpu: Gpu = H200, got: Getting = LIKELY) -> Launch:
    """One CTA a query finds the k-th best of `values` in 32 rounds; the values stay in registers or the L1 cache."""
    a_round = values / threads * 4 * max(threads / 32 / gpu.partitions / got.issue, got.alone) + 4 * got.barrier
    waves = math.ceil(work.batch / gpu.sms)
    seconds = waves * (3 * got.latency + 32 * a_round / gpu.clock)
    return Launch(name, seconds, work.batch * values * 8, bound="rounds")


def rescore(work: Work, started: int, gpu: Gpu = H200, got: Getting = LIKELY) -> Launch:
    rows = work.batch * work.k * KEPT
    moved = rows * (work.width * work.element + BLOCK + 8)  # every line of 128 bytes that is touched
    parts = {
        "memory": 3 * got.latency + moved / (0.5 * got.read),  # rows at random places
        "float64": rows
        * (work.width + work.terms / max(work.batch, 1))
        * DOUBLES
        / (gpu.doubles * gpu.sms * gpu.clock),
    }
    bound = max(parts, key=lambda part: parts[part])
    empty = work.batch * started / 16 * got.empty
    return Launch("rescore", parts[bound] + empty, moved, bound=bound, parts=parts)


def rank(work: Work, form: Ranking, started: int, gpu: Gpu = H200, got: Getting = LIKELY) -> Launch:
    kept = work.k * KEPT
    programs, tiles = work.batch * math.ceil(kept / form.rows), math.ceil(kept / form.others)
    a_program = (tiles - 1) * form.hot + form.exact  # instructions of a warp
    together = min(gpu.sms * form.ctas, programs)
    parts = {
        "issue": programs * form.warps * a_program / (gpu.sms * gpu.partitions * got.issue * gpu.clock),
        "one CTA's turn": math.ceil(programs / together)
        * tiles
        * max(got.l2_latency, a_program / tiles * got.alone / gpu.clock),
    }
    bound = max(parts, key=lambda part: parts[part])
    empty = work.batch * started / form.rows * got.empty
    seconds = 3 * got.latency + parts[bound] + empty
    return Launch("rank", seconds, work.batch * kept * 28, bound=bound, parts=parts)


def filtered_topk(
    work: Work,
    seed_form: Form,
    scan_form: Form,
    ranking: Ranking,
    capacity: int = 8_192,  # survivors that a query has room for
    started: int = 1_564,  # rows of a query for which exact scores and ranks are started
    gpu: Gpu = H200,
    got: Getting = LIKELY,
) -> Prediction:
    """plan, seed, threshold, scan, select, rescore, rank."""
    sample = Work(-(-work.blocks // SAMPLED) * BLOCK, work.width, work.batch, work.k, work.terms, work.clauses)
    launches: Iterable[Launch] = (
        plan(work, gpu, got),
        scan(sample, seed_form, gpu, got, "seed"),
        selection("threshold", sample.rows / GROUP, 256, work, gpu, got),
        scan(work, scan_form, gpu, got),
        selection("select", capacity, 512, work, gpu, got),
        rescore(work, started, gpu, got),
        rank(work, ranking, started, gpu, got),
    )
    return Prediction(work, tuple(launches), got)
