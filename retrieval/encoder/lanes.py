"""Dynamic batching: calls of many threads gathered into batches for one worker, in lanes of falling precedence.

A lane owns one thread and one bounded queue; its counters are written under its lock. Between two chunks of a batch a
lane lets every higher lane finish what it has, for at most its patience: a big batch of postings delays a person's
query by one chunk, and no lane starves.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from penstock.infra.telemetry import STAGE_SECONDS
from penstock.schemas.grpc_avro import NotReady, Refused

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class LaneLimits:
    """How much a lane gathers and how politely it works."""

    max_batch: int  # items in one batch, a single larger call excepted
    max_pending: int  # items waiting; past it calls are refused
    window_s: float  # how long the first item waits for company
    chunk: int  # items worked on between two looks at the higher lanes
    patience_s: float  # how long a chunk waits for the higher lanes at most


class Precedence:
    """How many items each level has waiting or in work. A level gives way to every smaller one."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._busy: dict[int, int] = {}

    def add(self, level: int, items: int) -> None:
        with self._changed:
            self._busy[level] = self._busy.get(level, 0) + items
            self._changed.notify_all()

    def give_way(self, level: int, patience_s: float) -> None:
        """Returns when no smaller level has work, or after `patience_s`."""
        with self._changed:
            self._changed.wait_for(
                lambda: not any(items for other, items in self._busy.items() if other < level), patience_s
            )


@dataclass(slots=True)
class _Call(Generic[T, R]):
    items: Sequence[T]
    alive: Callable[[], bool]
    answer: Future[list[R]] = field(default_factory=Future)
    since: float = field(default_factory=time.perf_counter)


class Lane(Generic[T, R]):
    """`work` turns a chunk of items into as many results, in order; what it raises goes to every call of the batch."""

    def __init__(
        self, name: str, level: int, limits: LaneLimits, precedence: Precedence, work: Callable[[list[T]], list[R]]
    ) -> None:
        self.name = name
        self._level = level
        self._limits = limits
        self._precedence = precedence
        self._work = work
        self._changed = threading.Condition()
        self._calls: deque[_Call[T, R]] = deque()
        self._pending = 0
        self._closed = False
        self.done = 0
        self.abandoned = 0
        self._thread = threading.Thread(target=self._run, name=f"lane-{name}", daemon=True)
        self._thread.start()

    @property
    def pending(self) -> int:
        return self._pending

    def submit(self, items: Sequence[T], alive: Callable[[], bool] = lambda: True) -> Future[list[R]]:
        """The results to come. A call that is no longer `alive` when its turn comes is dropped. Raises Refused."""
        call: _Call[T, R] = _Call(items, alive)
        if not items:
            call.answer.set_result([])
            return call.answer
        with self._changed:
            if self._closed:
                raise NotReady(f"the {self.name} lane is closing: this process is stopping")
            if self._pending and self._pending + len(items) > self._limits.max_pending:
                raise Refused(
                    f"{self._pending} items wait for the {self.name} lane, at most {self._limits.max_pending} may:"
                    " try again later, or run another models process"
                )
            self._calls.append(call)
            self._pending += len(items)
            self._changed.notify_all()
        self._precedence.add(self._level, len(items))
        return call.answer

    def close(self) -> None:
        """Ends the thread; what still waits is told so."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while batch := self._gather():
            now = time.perf_counter()
            for call in batch:
                STAGE_SECONDS.labels("models", f"{self.name}_wait").observe(now - call.since)
            with STAGE_SECONDS.labels("models", self.name).time():
                self._answer(batch)
            self._precedence.add(self._level, -sum(len(call.items) for call in batch))

    def _gather(self) -> list[_Call[T, R]]:
        """Calls in order, up to max_batch items or until the window closes; empty when the lane is closed."""
        batch: list[_Call[T, R]] = []
        items = 0
        with self._changed:
            self._changed.wait_for(lambda: self._calls or self._closed)
            until = time.perf_counter() + self._limits.window_s
            while not self._closed:
                while self._calls and (not batch or items + len(self._calls[0].items) <= self._limits.max_batch):
                    call = self._calls.popleft()
                    batch.append(call)
                    items += len(call.items)
                left = until - time.perf_counter()
                if self._calls or items >= self._limits.max_batch or left <= 0:
                    break
                self._changed.wait(left)
            if self._closed:
                batch.extend(self._calls)
                self._calls.clear()
                for call in batch:
                    call.answer.set_exception(NotReady(f"the {self.name} lane closed: this process is stopping"))
                self._pending = 0
                return []
            self._pending -= items
        return batch

    def _answer(self, batch: list[_Call[T, R]]) -> None:
        alive = []
        for call in batch:
            if call.alive():
                alive.append(call)
            else:
                self.abandoned += 1
                call.answer.set_exception(TimeoutError(f"the caller left before the {self.name} lane came to it"))
        items = [item for call in alive for item in call.items]
        results: list[R] = []
        try:
            for start in range(0, len(items), self._limits.chunk):
                self._precedence.give_way(self._level, self._limits.patience_s)
                results.extend(self._work(items[start : start + self._limits.chunk]))
        except Exception as error:  # it belongs to the callers; the lane must live
            for call in alive:
                call.answer.set_exception(error)
            return
        at = 0
        for call in alive:
            call.answer.set_result(results[at : at + len(call.items)])
            at += len(call.items)
        self.done += len(items)
