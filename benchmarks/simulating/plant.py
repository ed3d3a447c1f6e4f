"""What a forward takes: overhead + tokens x cost, with the noise that was measured; never a guess beside a measurement.

    python -m benchmarks.simulating.plant          # times the engine here, writes data/plant.json, two minutes

`measured()` is the engine of this repository at the shape TINY of ranker/engine/untrained.py (which 16, 32 and 64
postings at 500 ms suit; SMALL takes half a second for 32), timed in forwards of one to several requests of 63 + n x 78
tokens, as real queries and postings have at the median. The line is fitted by least squares on relative errors; noise
is the measured ratios to it, drawn again. On one thread, by its CPU time: what the forward takes on a core of its own,
whatever else runs on the machine; wall times stand beside it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FILE = Path(__file__).resolve().parent / "data" / "plant.json"
PREFIX_TOKENS, ITEM_TOKENS = 63, 78  # medians of real queries and postings
BUDGET = 4_096  # tokens a forward: the engine's own (ranker/engine/engine.py, Limits)


@dataclass(frozen=True, slots=True)
class Plant:
    """An engine as the simulator has it: one forward at a time."""

    overhead_s: float
    token_s: float
    noise: Floats  # ratios to the line, mean 1

    def seconds(self, tokens: float, draw: float) -> float:
        """`draw`, in [0, 1), says which of the measured ratios this forward has."""
        return (self.overhead_s + self.token_s * tokens) * float(self.noise[int(draw * len(self.noise))])

    @property
    def capacity(self) -> float:
        """Tokens a second, in full forwards."""
        return BUDGET / (self.overhead_s + self.token_s * BUDGET)


def fitted(tokens: Floats, seconds: Floats) -> Plant:
    """Least squares on relative errors, so that small forwards count as much as large ones."""
    x = np.stack([1 / seconds, tokens / seconds], axis=1)
    overhead_s, token_s = (float(value) for value in np.linalg.lstsq(x, np.ones(len(tokens)), rcond=None)[0])
    if overhead_s < 0:
        overhead_s, token_s = 0.0, float(seconds.sum() / tokens.sum())
    ratios = np.sort(seconds / (overhead_s + token_s * tokens))
    return Plant(overhead_s * float(ratios.mean()), token_s * float(ratios.mean()), ratios / ratios.mean())


def measured(path: Path = FILE) -> Plant:
    samples = json.loads(path.read_text(encoding="utf-8"))["forwards"]
    return fitted(np.array(samples["tokens"], np.float64), np.array(samples["seconds"], np.float64))


def time_forwards(repeats: int = 6) -> dict[str, list[float]]:
    """Forwards of many sizes in random order, each timed alone."""
    import torch  # which a simulation does not need

    from penstock.ranker.engine import untrained
    from penstock.ranker.engine.forward import TorchBackend
    from penstock.ranker.engine.plan import Request, Text, plan
    from penstock.ranker.engine.weights import Weights

    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        words = [f"posting number {number} of a nurse in Ohio" for number in range(400)]
        directory = untrained.write(Path(folder) / "tiny", words, untrained.TINY)
        weights = Weights.load(directory, torch.float32, (1, 2))
        torch.set_num_threads(1)
        backend = TorchBackend(weights, 1)

        def request(items: int) -> Request:
            def text(count: int) -> NDArray[np.int32]:
                return rng.integers(0, 400, count).astype(np.int32)

            return Request(text(PREFIX_TOKENS), tuple(Text(text(ITEM_TOKENS)) for _ in range(items)), True)

        cases: list[list[int]] = [[1], [2], [4], [8], [16], [24], [32], [48], [4, 4], [8, 8], [16, 16], [16, 16, 16]]
        calls: list[tuple[float, Callable[[], Any]]] = []
        for case in cases:
            for forward in plan([request(items) for items in case], BUDGET, BUDGET):
                tokens = float(sum(PREFIX_TOKENS + ITEM_TOKENS * items for items in case))
                calls.append((tokens, lambda forward=forward: backend.logits(forward)))  # type: ignore[misc]
        for _, call in calls:
            call()
        sizes: list[float] = []
        took: list[float] = []
        wall: list[float] = []
        for at in rng.permutation(len(calls) * repeats) % len(calls):
            began, began_cpu = time.perf_counter(), time.thread_time()
            calls[at][1]()
            took.append(round(time.thread_time() - began_cpu, 6))
            wall.append(round(time.perf_counter() - began, 6))
            sizes.append(calls[at][0])
    return {"tokens": sizes, "seconds": took, "wall_seconds": wall}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=6)
    repeats = parser.parse_args(arguments).repeats
    from benchmarks.report import computing, machine

    about = machine(**computing(1))
    whole = {"machine": about, "shape": "untrained.TINY", "forwards": time_forwards(repeats)}
    FILE.write_text(json.dumps(whole) + "\n", encoding="utf-8")
    plant = measured()
    spread = np.percentile(plant.noise, [5, 50, 95]).round(3).tolist()
    print(f"overhead {plant.overhead_s * 1000:.2f} ms, {plant.token_s * 1e6:.2f} us a token, noise {spread}")


if __name__ == "__main__":
    main()
