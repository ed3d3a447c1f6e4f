"""The machine that the model predicts for: what an H200 can do, and what code that is not perfect gets of it.

Two kinds of numbers, kept apart. `Gpu` has the vendor's (NVIDIA H100 Tensor Core GPU Architecture, 2022; H200
datasheet, 2024; CUDA C++ Programming Guide, compute capability 9.0). `Getting` has what is got of them: measured by
others on such machines where a source is named, assumed otherwise. A prediction is made with the likely values and once
more with the bad ones, and both are written down: the distance is what is not known before somebody runs it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Gpu:
    sms: int = 132
    clock: float = 1.755e9  # Hz under load; the boost that nominal FLOPs are stated at is 1.83
    partitions: int = 4  # of an SM, each issues one warp instruction a cycle
    fmas: int = 2_048  # bf16 or fp16 a cycle and SM on tensor cores, dense; int8 twice that: 989 TFLOPS at 1.83 GHz
    doubles: int = 64  # float64 operations a cycle and SM
    shared_bytes: int = 128  # a cycle and SM
    dram: float = 4.8e12  # bytes/s, nominal
    l2_bytes: float = 50e6


@dataclass(frozen=True, slots=True)
class Getting:
    """`read` is of a kernel that only reads; everything said as a share of bandwidth is a share of this."""

    read: float = 4.3e12  # bytes/s (shared/research/retrieval.md: 4.07 by FlashLib's k=1 scan, 95 % of this)
    scanning: float = 0.97  # of `read`, by tiles of tens of KB rather than by one long stream
    latency: float = 750e-9  # s, of device memory under load; 500 ns when idle
    l2_latency: float = 200e-9  # s, of a hit
    ingest: float = 100e9  # bytes/s that one SM can take alone: 64 bytes a cycle, less what misses cost
    issue: float = 0.85  # of a partition's issue slots, with two warps or more that can run
    alone: float = 1.6  # cycles an instruction of a warp that has its partition to itself (dependent ALU code waits 4)
    barrier: float = 40.0  # cycles, of the CTA's warps meeting
    drain: float = 200.0  # cycles a tile: tensor cores' last result, first use of what was waited for
    launch: float = 2.5e-6  # s from the end of one kernel of a graph to work of the next
    empty: float = 1e-9  # s a CTA that returns at once, on the whole GPU


LIKELY = Getting()
BAD = Getting(
    scanning=0.93, latency=1_000e-9, l2_latency=300e-9, issue=0.7, alone=2.2, drain=400.0, launch=4e-6, empty=3e-9
)
H200 = Gpu()
