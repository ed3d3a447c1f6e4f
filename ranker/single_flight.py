"""Identical work in flight is done once: the first to come computes, the others wait for its value.

Invariant: a key is led by at most one caller at a time, and a leader ends every key it leads, with a value or a
failure. A follower of a failed flight tries to lead. Nobody waits while leading, so nobody waits in a circle.
The lock is held only to look keys up.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Shared(Generic[K, V]):
    values: dict[K, V]
    joined: int  # keys whose value another caller computed


class _Abandoned(Exception):
    """The leader failed; its followers see to themselves."""


class SingleFlight(Generic[K, V]):
    """Safe to share between threads. `clock` gives monotonic seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._flights: dict[K, Future[V]] = {}

    def get(self, keys: Iterable[K], compute: Callable[[list[K]], Mapping[K, V]], timeout_s: float) -> Shared[K, V]:
        """A value for each key; `compute` is called for those this caller leads, in the order given.

        Raises what `compute` raises, and TimeoutError when another caller's value does not come in time.
        """
        give_up = self._clock() + timeout_s
        wanted = list(dict.fromkeys(keys))
        values: dict[K, V] = {}
        joined = 0
        while wanted:
            mine, theirs = self._claim(wanted)
            if mine:
                values.update(self._lead(mine, compute))
            wanted = []
            for key, flight in theirs.items():
                try:
                    values[key] = flight.result(max(0.0, give_up - self._clock()))
                    joined += 1
                except _Abandoned:
                    wanted.append(key)
        return Shared(values, joined)

    def _claim(self, keys: list[K]) -> tuple[list[K], dict[K, Future[V]]]:
        mine: list[K] = []
        theirs: dict[K, Future[V]] = {}
        with self._lock:
            for key in keys:
                flight = self._flights.get(key)
                if flight is None:
                    self._flights[key] = Future()
                    mine.append(key)
                else:
                    theirs[key] = flight
        return mine, theirs

    def _lead(self, keys: list[K], compute: Callable[[list[K]], Mapping[K, V]]) -> Mapping[K, V]:
        values: Mapping[K, V] = {}
        try:
            values = compute(keys)
            return {key: values[key] for key in keys}
        finally:
            with self._lock:
                flights = [(key, self._flights.pop(key)) for key in keys]
            for key, flight in flights:
                if key in values:
                    flight.set_result(values[key])
                else:
                    flight.set_exception(_Abandoned())

    def __len__(self) -> int:
        with self._lock:
            return len(self._flights)
