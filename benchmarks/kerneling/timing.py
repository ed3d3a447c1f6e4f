"""How device times are taken: by CUDA events, contenders in turn, inputs rotating, against what the device can do now.

On a CPU, where the cells are tried out in Triton's interpreter, a wall clock stands in: those times mean nothing, and
no report holds them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

RUNS = 50  # of each contender, at least
BUFFERS = 4  # inputs that take turns, so that no run finds the last one's in a cache
WARM = 3

Contender = Callable[[int], Any]  # takes the number of the buffer


@dataclass(frozen=True, slots=True)
class Timed:
    """Milliseconds."""

    median: float
    p99: float
    runs: int


def interleaved(contenders: Mapping[str, Contender], device: torch.device, runs: int = RUNS) -> dict[str, Timed]:
    """Each contender once a round, `runs` rounds; what compiles does so in rounds that do not count."""
    for name, contender in contenders.items():
        for turn in range(WARM):
            try:
                contender(turn % BUFFERS)
            except torch.cuda.OutOfMemoryError as error:
                raise MemoryError(f"{name} does not fit this device: run fewer rows") from error
    spans: dict[str, list[Callable[[], float]]] = {name: [] for name in contenders}
    _wait(device)
    for turn in range(runs):
        for name, contender in contenders.items():
            spans[name].append(_span(lambda run=contender, at=turn: run(at % BUFFERS), device))
        _wait(device)
    return {name: timed([span() for span in taken]) for name, taken in spans.items()}


def timed(spent: list[float]) -> Timed:
    ordered = sorted(spent)
    return Timed(statistics.median(ordered), ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))], len(ordered))


def _span(run: Callable[[], Any], device: torch.device) -> Callable[[], float]:
    """Runs it; what is returned gives its milliseconds once the device has been waited for."""
    if device.type != "cuda":
        begin = time.perf_counter()
        run()
        spent = (time.perf_counter() - begin) * 1e3
        return lambda: spent
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    first.record()
    run()
    last.record()
    return lambda: float(first.elapsed_time(last))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@triton.jit
def read_all(source, sums, count, WIDTH: tl.constexpr, ONCE: tl.constexpr):
    """Reads `count` int32 and leaves one sum a program. Grid: any number of programs, each takes every n-th piece.

    source int32 [count], count a multiple of WIDTH * ONCE, less than 2^31; sums int32 [programs] out. ONCE loads are on
    their way at once; nothing but a sum is written.
    """
    at = tl.arange(0, WIDTH)
    total = tl.zeros([WIDTH], tl.int32)
    for piece in range(tl.program_id(0), count // (WIDTH * ONCE), tl.num_programs(0)):
        for part in tl.static_range(ONCE):
            total += tl.load(source + (piece * ONCE + part) * WIDTH + at)
    tl.store(sums + tl.program_id(0), tl.sum(total, axis=0))


def read_bandwidth(device: torch.device, nbytes: int = 2 << 30, runs: int = RUNS) -> float:
    """Bytes a second of a kernel that only reads: the best of a few forms over buffers that take turns."""
    width, once = 2_048, 4
    count = nbytes // 4 // (width * once) * width * once
    sources = [torch.ones(count, dtype=torch.int32, device=device) for _ in range(BUFFERS)]
    multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    best = 0.0
    for programs in (2, 4, 8):
        sums = torch.empty(multiprocessors * programs, dtype=torch.int32, device=device)

        def read(buffer: int, sums: torch.Tensor = sums) -> None:
            read_all[(len(sums),)](sources[buffer], sums, count, WIDTH=width, ONCE=once, num_warps=8)

        spent = interleaved({"read": read}, device, runs)["read"]
        if int(sums.sum()) != count:
            raise RuntimeError(f"the reading kernel summed {int(sums.sum())} of {count} ones: no roofline from that")
        best = max(best, count * 4 / (spent.median * 1e-3))
    return best


def peak_flops(device: torch.device, size: int = 8_192, runs: int = RUNS) -> float:
    """FLOPs a second of torch's own bf16 product of square matrices."""
    left = [torch.randn(size, size, device=device).bfloat16() for _ in range(BUFFERS)]
    right = torch.randn(size, size, device=device).bfloat16()
    spent = interleaved({"product": lambda buffer: left[buffer] @ right}, device, runs)["product"]
    return 2.0 * size**3 / (spent.median * 1e-3)
