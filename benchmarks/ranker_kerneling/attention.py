"""What the attention of a packed forward should take, tile by tile of a real plan: a model. Nothing here was measured.

A program takes a tile descriptor (ranker/engine/plan.py) and a key head. Its loop goes over blocks of KEYS keys, masked
ones too, as many as kernels/prefix_attention/triton.py would run:

    turn    first its descriptor, then where its segments begin, then queries and the first keys: three trips to memory
            one after the other. Then a block each time: tensor cores, its instructions, waits for both products
    share   of an SM, all its programs together: instructions issued, tensor cores, bytes of keys and values

A program holds its place for its turn, or for what its SM needs for as many programs as it holds, if that is longer.
Places are taken in the order of the grid, each by the next program once it is free; the launch ends with the last.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.kerneling.gpu import H200, LIKELY, Getting, Gpu
from benchmarks.kerneling.model import Launch
from penstock.ranker.engine.plan import Forward

VALUE = 2  # bytes
STEP = 16  # of one tensor-core instruction, along what is summed over


@dataclass(frozen=True, slots=True)
class Form:
    """What the model takes of a compiled attention. `rows`: tokens times heads of a program."""

    warps: int
    ctas: int  # an SM
    hot: int  # instructions of a block of keys
    outside: int  # instructions before the loop and behind it
    barriers: int  # of a block
    keys: int
    tokens: int  # of a program
    rows: int
    size: int  # of a head
    kv_heads: int


@dataclass(frozen=True, slots=True)
class Program:
    """What one program has to do: tokens that ask, keys on its axis."""

    tokens: int
    keys: int


def programs(forward: Forward, form: Form) -> Iterator[Program]:
    """Of one key head, in the order of the grid."""
    starts = forward.starts
    for first, end, prefix_first, prefix_end in forward.tiles.tolist():
        for begin in range(first, end, form.tokens):
            stop = min(end, begin + form.tokens)
            yield Program(stop - begin, prefix_end - prefix_first + stop - int(starts[begin]))


def pairs(forward: Forward, last: bool = False) -> int:
    """Query and key that see each other: of all tokens, or of the scored places alone."""
    found = 0
    for first, end in forward.prefixes.tolist() if not last else ():
        found += (end - first) * (end - first + 1) // 2
    for (first, end), of in zip(forward.items.tolist(), forward.prefix_of.tolist(), strict=True):
        shared = int(forward.prefixes[of, 1] - forward.prefixes[of, 0])
        length = end - first
        found += shared + length if last else length * shared + length * (length + 1) // 2
    return found


def attention(
    forward: Forward,
    form: Form,
    heads: int,
    spare: int = 0,  # tiles that do nothing
    far: bool = True,  # whether queries, keys and values come from device memory the first time
    gpu: Gpu = H200,
    got: Getting = LIKELY,
) -> Launch:
    todo = list(programs(forward, form))
    blocks = [math.ceil(one.keys / form.keys) for one in todo]
    per_partition = form.warps / gpu.partitions

    def cycles(count: float) -> float:
        return count / gpu.clock

    tensor = cycles(block_cycles(form, gpu))
    issue = cycles(form.hot * per_partition / got.issue)
    around = cycles(form.outside * per_partition / got.issue)
    waits = cycles(2 * got.drain / 2 + form.barriers * got.barrier)
    alone = max(issue, cycles(form.hot * got.alone))
    head = got.l2_latency + 2 * (got.latency if far else got.l2_latency)
    turns = [head + around + count * (tensor + alone + waits) for count in blocks]
    shares = [around + count * max(issue, tensor) for count in blocks]
    held = [max(turn, form.ctas * share) for turn, share in zip(turns, shares, strict=True)]
    seconds = _makespan([time for _ in range(form.kv_heads) for time in held], gpu.sms * form.ctas)
    seconds += spare * form.kv_heads * got.empty
    q_width, kv_width = heads * form.size, form.kv_heads * form.size
    moved = VALUE * len(forward) * (2 * q_width + 2 * kv_width)
    everything = form.kv_heads / gpu.sms
    parts = {
        "turns": seconds,
        "of which issue": everything * sum(around + count * issue for count in blocks),
        "of which tensor cores": everything * sum(blocks) * tensor,
        "memory": moved / (got.read * got.scanning) if far else 0.0,
    }
    bound = "memory" if parts["memory"] > seconds else "turns"
    return Launch("attention", parts[bound], moved, 4.0 * q_width * pairs(forward), bound, parts)


def block_cycles(form: Form, gpu: Gpu = H200) -> float:
    """Tensor-core cycles of a block of keys: each product at its rate, or as its operands come from shared memory."""
    slices = form.rows / 64
    scores = _slice_cycles(form.keys, True, gpu) * form.size / STEP
    sums = _slice_cycles(form.size, False, gpu) * form.keys / STEP
    return slices * (scores + sums)


def _slice_cycles(columns: int, left_shared: bool, gpu: Gpu) -> float:
    """Of 64 rows by `columns`, one instruction. Weights stay in registers, queries and keys lie in shared memory."""
    read = (columns + 64 * left_shared) * STEP * VALUE
    return max(64 * columns * STEP / gpu.fmas, read / gpu.shared_bytes)


def _makespan(times: list[float], places: int) -> float:
    free = [0.0] * places
    for time in times:
        heapq.heapreplace(free, free[0] + time)
    return max(free)


def executed(forward: Forward, form: Form) -> float:
    """Products of query and key that are computed for each that is needed."""
    done = sum(math.ceil(one.keys / form.keys) * form.keys for one in programs(forward, form)) * form.tokens
    return done / pairs(forward)
