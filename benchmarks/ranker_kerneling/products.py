"""What a product of matrices by torch (cuBLAS) should take: a model. Nothing here was measured.

out [M, N] = a [M, K] @ b [N, K].T in bfloat16, by tiles of the output, one CTA an SM, in waves of 132. A tile takes

    loop      K / 16 steps, each the longer of what tensor cores multiply (2,048 products a cycle) and what shared
              memory moves (128 bytes a cycle): each 64 rows of the tile read their own 64 and all columns of b, and
              both operands are written there first. Divided by `mainloop`, what a long product gets of that
    epilogue  accumulators are rounded, staged and stored; the tensor cores of the SM wait

    sums      of a product that adds to float32 values: they are read, and twice as much is written. The tiles of a
              wave end together, so all of theirs come from device memory at once, and nothing of it is hidden

and a launch ceil(tiles / 132) of those and one filling of the pipeline, or what the way from the L2 cache or device
memory takes, if that is longer. Neighbours in pairs share the larger operand's reads (clusters of two). The best of
TILES is taken, cut along K where tiles are few, as cuBLAS's heuristics mostly do.

At M = N = K = 8,192 this gives 790 TFLOP/s, which is what such products have been seen to get on an H200 with random
data: `mainloop` comes from there, and no other constant does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from benchmarks.kerneling.gpu import H200, LIKELY, Getting, Gpu
from benchmarks.kerneling.model import Launch

TILES = ((128, 256), (256, 128), (128, 192), (192, 128), (128, 128), (64, 256), (128, 64), (64, 128), (64, 64))
CUTS = (1, 2, 4)  # of K
STEP = 16  # of K: one tensor-core instruction
VALUE, WIDE = 2, 4  # bytes, of a matrix and of what products are added to
WHOLE = 128 * 256  # values of a tile, of which `epilogue` is said


@dataclass(frozen=True, slots=True)
class Library:
    """What cuBLAS makes of the machine.

    mainloop   894 TFLOP/s were seen at 1,980 MHz on zeros, 0.835 of nominal there, in waves 0.97 full
    epilogue   128 values a thread of two warpgroups in step: conversions, staging, stores. Assumed
    refills    whether every tile fills its pipeline anew; a persistent kernel loads the next tile meanwhile. Assumed
    pairs      whether neighbours read the larger operand together, which takes clusters
    l2         bytes/s that the 8,192 product takes from the L2 cache at 790 TFLOP/s, so at least as many can be got
    """

    mainloop: float = 0.87
    epilogue: float = 2_000.0  # cycles
    refills: bool = False
    pairs: bool = True
    l2: float = 6.5e12


CUBLAS = Library()
# What one by Triton would make of it: no clusters on all of 3.6 to 3.9, and a loop of one tile. Its end applies SwiGLU:
# two special functions a value of the output, 16 a cycle, and half as many values to stage and store.
TRITON = Library(epilogue=3_000.0, refills=True, pairs=False)
BAD_CUBLAS = Library(mainloop=0.84, epilogue=3_500.0, refills=True, l2=5.5e12)


def product(
    name: str,
    rows: int,
    columns: int,
    inner: int,
    far: float | None = None,  # bytes from device memory and to it; all of them by default
    gpu: Gpu = H200,
    got: Getting = LIKELY,
    library: Library = CUBLAS,
    adds: bool = False,
) -> Launch:
    """M = rows, N = columns, K = inner. `adds` to a float32 `out` that lies in device memory."""
    moved = VALUE * (rows * inner + columns * inner + rows * columns) if far is None else far
    flops = 2.0 * rows * columns * inner
    best: dict[str, float] = {}
    for tile in TILES:
        for cut in CUTS:
            parts = _by(tile, cut, rows, columns, inner, gpu, got, library, adds)
            parts["memory"] = got.latency + moved / (got.read * got.scanning)
            if not best or max(parts.values()) < max(best.values()):
                best = parts
    bound = max(best, key=lambda part: best[part])
    return Launch(name, best[bound], moved, flops, bound, best)


def _by(
    tile: tuple[int, int],
    cut: int,
    rows: int,
    columns: int,
    inner: int,
    gpu: Gpu,
    got: Getting,
    library: Library,
    adds: bool,
) -> dict[str, float]:
    high, wide = tile
    tiles = math.ceil(rows / high) * math.ceil(columns / wide) * cut
    steps = math.ceil(inner / cut / STEP)
    fill = got.latency
    arriving = (high + wide) * STEP * VALUE
    read = high / 64 * (64 + wide) * STEP * VALUE
    a_step = max(high * wide * STEP / gpu.fmas, (read + arriving) / gpu.shared_bytes) / library.mainloop / gpu.clock
    loop = steps * max(a_step, arriving / got.ingest)
    epilogue = library.epilogue * high * wide / WHOLE / gpu.clock
    if adds:
        together = min(tiles, gpu.sms) * high * wide * WIDE
        alone = high * wide * (WIDE + WIDE - VALUE)  # more than of a product that writes bfloat16
        epilogue += max(together / (got.read * got.scanning), alone / got.ingest)
    waves = math.ceil(tiles / gpu.sms)
    each = loop + epilogue + (fill if library.refills else 0.0)
    shared = min(high, wide) + max(high, wide) / (2 if library.pairs else 1)
    from_l2 = tiles * steps * STEP * VALUE * shared
    partial = 0.0 if cut == 1 else 2 * 4 * cut * rows * columns  # float32, written and read again
    return {"tiles": fill + waves * each + partial / library.l2, "L2 cache": fill + (from_l2 + partial) / library.l2}
