"""The one admission queue: earliest deadline first, bounded, nothing lost.

`DeadlineQueue` is the policy, pure data under a clock that is passed in. `Admission` makes it safe for threads and
lets workers wait. Invariant: what was offered and not refused leaves exactly once, as work, as expired or withdrawn.
A later policy (costs, classes, tenants, slack) replaces `DeadlineQueue` behind the `Policy` protocol.

Where it stands: life-of-a-query.md, step 4.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from penstock.ranker.errors import QueueClosed, QueueFull

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Ticket(Generic[T]):
    """One request's place in the queue. `waiting` turns false exactly once, when it leaves."""

    item: T
    deadline_ms: int  # epoch milliseconds
    offered_ms: int  # epoch milliseconds
    waiting: bool = True


@dataclass(frozen=True, slots=True)
class Taken(Generic[T]):
    """What a worker got: the next request to work on, and those it only has to answer as expired."""

    work: Ticket[T] | None
    expired: tuple[Ticket[T], ...]


class Policy(Protocol[T]):
    """Who may come in and who is next. Times are epoch milliseconds; not safe for threads.

    `urgent`: somebody waits for it. `urgent_only`: nothing else is taken.
    """

    def offer(self, item: T, deadline_ms: int, now_ms: int, urgent: bool = True) -> Ticket[T]: ...

    def take(self, now_ms: int, urgent_only: bool = False) -> Taken[T]: ...

    def withdraw(self, ticket: Ticket[T]) -> bool: ...

    def __len__(self) -> int: ...


class DeadlineQueue(Generic[T]):
    """Earliest deadline first; equal deadlines in the order of their offers; at most `capacity` waiting."""

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity {capacity}: expected at least 1 (ranker.max_queue)")
        self.capacity = capacity
        self._urgent: list[tuple[int, int, Ticket[T]]] = []  # heaps
        self._others: list[tuple[int, int, Ticket[T]]] = []
        self._offers = 0
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    def offer(self, item: T, deadline_ms: int, now_ms: int, urgent: bool = True) -> Ticket[T]:
        """A place in the queue. Raises QueueFull; the queue is then as it was."""
        if self._waiting >= self.capacity:
            raise QueueFull(self._waiting, self.capacity)
        ticket = Ticket(item, deadline_ms, now_ms)
        heapq.heappush(self._urgent if urgent else self._others, (deadline_ms, self._offers, ticket))
        self._offers += 1
        self._waiting += 1
        return ticket

    def take(self, now_ms: int, urgent_only: bool = False) -> Taken[T]:
        """The waiting request with the earliest deadline after `now_ms`, and every one before it whose deadline has
        come."""
        expired: list[Ticket[T]] = []
        while heaps := [heap for heap in (self._urgent, *(() if urgent_only else (self._others,))) if heap]:
            ticket = heapq.heappop(min(heaps, key=lambda heap: heap[0][:2]))[2]
            if not ticket.waiting:
                continue
            ticket.waiting = False
            self._waiting -= 1
            if ticket.deadline_ms > now_ms:
                return Taken(ticket, tuple(expired))
            expired.append(ticket)
        return Taken(None, tuple(expired))

    def withdraw(self, ticket: Ticket[T]) -> bool:
        """Take a request out whose caller left; False when it had left the queue already."""
        if not ticket.waiting:
            return False
        ticket.waiting = False
        self._waiting -= 1
        for heap in (self._urgent, self._others):
            if len(heap) > 2 * self.capacity:  # the withdrawn stay in the heap until they surface: keep them few
                heap[:] = [entry for entry in heap if entry[2].waiting]
                heapq.heapify(heap)
        return True


class Admission(Generic[T]):
    """A policy shared by threads. Owns its lock; callers never hold it while working.

    `clock` gives epoch milliseconds. After `close()` offers raise QueueClosed, and `take` gives what still waits and
    then None.
    """

    def __init__(self, policy: Policy[T], clock: Callable[[], int]) -> None:
        self._policy = policy
        self._clock = clock
        self._changed = threading.Condition()
        self._closed = False

    def __len__(self) -> int:
        with self._changed:
            return len(self._policy)

    def offer(self, item: T, deadline_ms: int, urgent: bool = True) -> Ticket[T]:
        """Raises QueueFull or QueueClosed; otherwise the item will leave through `take` unless withdrawn."""
        with self._changed:
            if self._closed:
                raise QueueClosed
            ticket = self._policy.offer(item, deadline_ms, self._clock(), urgent)
            self._changed.notify_all()  # one alone might be woken who takes urgent work only
            return ticket

    def take(self, urgent_only: bool = False) -> Taken[T] | None:
        """The next work, waiting for it; None once closed and empty of what may be taken."""
        with self._changed:
            while True:
                taken = self._policy.take(self._clock(), urgent_only)
                if taken.work is not None or taken.expired:
                    return taken
                if self._closed:
                    return None
                self._changed.wait()

    def withdraw(self, ticket: Ticket[T]) -> bool:
        """True when the caller's request had not been taken, and now never will be."""
        with self._changed:
            return self._policy.withdraw(ticket)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
