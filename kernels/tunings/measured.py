"""Contenders run in turns, so that what disturbs one disturbs all: the median of each, and the quickest of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
import triton

RUNS = 9  # of which the median counts
WARM = 2  # runs before them

T = TypeVar("T")


def clock_of(device: torch.device) -> Callable[[], float]:
    """Seconds, once all that was launched on the device is done."""

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    return now


def medians(contenders: Mapping[T, Callable[[], object]], clock: Callable[[], float]) -> dict[T, float]:
    """Seconds of a run of each, without those that the device refuses (a release of Triton that needs more shared
    memory for it). Raises RuntimeError where it refuses all."""
    spent: dict[T, list[float]] = {}
    refused: list[Exception] = []
    for name, run in contenders.items():
        try:
            for _ in range(WARM):
                run()
            spent[name] = []
        except torch.OutOfMemoryError:
            raise  # which says nothing of a contender
        except (RuntimeError, triton.runtime.errors.OutOfResources) as error:
            refused.append(error)
    if not spent:
        raise RuntimeError(f"the device refused all {len(contenders)} tunings, the last: {refused[-1]}")
    for _ in range(RUNS):
        for name, times in spent.items():
            begin = clock()
            contenders[name]()
            times.append(clock() - begin)
    return {name: statistics.median(times) for name, times in spent.items()}


def quickest(candidates: Sequence[T], run: Callable[[T], object], clock: Callable[[], float]) -> T:
    """The candidate with the least median; raises as `medians` does."""

    def contender(candidate: T) -> Callable[[], object]:
        return lambda: run(candidate)

    spent = medians({candidate: contender(candidate) for candidate in candidates}, clock)
    return min(spent, key=lambda candidate: spent[candidate])
