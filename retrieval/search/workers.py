"""Threads that share one search's work. Each computes alone, on one core: nobody waits for another within a product.

torch's own threads meet at the end of every operation, thousands of times a scan; on a busy machine each meeting waits
for whoever was put aside. Here a thread takes the next piece until none is left.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def alone() -> Iterator[int]:
    """This thread's torch operations use one core meanwhile. Yields how many they used before."""
    threads = torch.get_num_threads()
    if threads == 1:
        yield 1
        return
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def share(threads: int, work: Callable[[Iterator[T]], R], pieces: Sequence[T]) -> list[R]:
    """`work` in at most `threads` threads, the caller's among them: each draws pieces from the same iterator.

    An exception of any of them is raised once all have ended.
    """
    threads = min(threads, len(pieces))
    left = iter(pieces)
    if threads <= 1:
        return [work(left)]
    others = [_pool(threads - 1).submit(work, left) for _ in range(threads - 1)]
    try:
        mine = work(left)
    finally:
        for other in others:
            other.exception()  # waits
    return [mine, *(other.result() for other in others)]


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "scan", initializer=functools.partial(torch.set_num_threads, 1))
