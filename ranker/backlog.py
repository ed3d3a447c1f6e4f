"""What was read from rank.request.v1 and is not answered yet: who is offered next, and when no more may be read.

A line a class and tenant, the earliest deadline first in it. A request that is refused stays at the head of its line,
which waits until the time that it was told; other lines go on, and so does its own where an earlier deadline comes to
its head. So a digest that waits for an hour holds up neither people's requests read from the same partition,
nor an instant alert; and a tenant that is ahead of its share holds up itself alone.

Invariant: what was read is in `open` until its answer is delivered or its partition is lost, and no offset after it is
committed. Bounds: `people` of the requests that somebody waits for, `MOST_BYTES` of everything; past either nothing
more is read. Pure under the times passed in (monotonic seconds, epoch milliseconds); not safe for threads.

Where it stands: life-of-a-query.md, step 4.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from penstock.ranker.job import Job
from penstock.ranker.offsets import OffsetTracker
from penstock.schemas.events import RankClass
from penstock.schemas.kafka import Record

MOST_BYTES = 64 << 20
BESIDE_BYTES = 4_096  # what a request takes beyond the bytes of its record: decoded, with its future
LONGEST_WAIT_S = 1.0  # what was refused is offered again at least so often: room may come sooner than was predicted


@dataclass(slots=True, eq=False)
class Held:
    """One request of one record."""

    record: Record
    job: Job
    again_s: float = 0.0  # when it may be offered


@dataclass(slots=True, eq=False)
class Line:
    """Requests of one class and tenant that wait for room. Not empty while the backlog has it."""

    class_: RankClass
    heap: list[tuple[int, int, Held]] = field(default_factory=list)  # deadline, order of reading

    @property
    def head(self) -> Held:
        return self.heap[0][2]

    def is_due(self, now_s: float) -> bool:
        """Whether there is a head that may be offered."""
        return bool(self.heap) and self.head.again_s <= now_s


class Backlog:
    def __init__(self, people: int) -> None:
        self._most_people = max(1, people)
        self._order = itertools.count()
        self._offsets = OffsetTracker()
        self._open: dict[tuple[int, int], tuple[int, bool]] = {}  # partition and offset: bytes, whether people wait
        self._lines: dict[tuple[RankClass, str], Line] = {}
        self.people = 0  # unanswered, that somebody waits for
        self.bytes = 0  # unanswered, of everything

    def __len__(self) -> int:
        """Records not answered yet."""
        return len(self._open)

    @property
    def is_full(self) -> bool:
        return self.people >= self._most_people or self.bytes >= MOST_BYTES

    @property
    def room(self) -> int:
        """How many more may be read at once, were all of them people's; at least 1."""
        return max(1, self._most_people - self.people)

    def waiting(self) -> dict[RankClass, int]:
        """Requests in line, by class."""
        counts = dict.fromkeys(RankClass, 0)
        for line in self._lines.values():
            counts[line.class_] += len(line.heap)
        return counts

    # --- in and out --------------------------------------------------------------------------------------------------

    def read(self, record: Record) -> None:
        size = len(record.value or b"") + BESIDE_BYTES
        self._offsets.start(record.partition, record.offset)
        self._open[record.partition, record.offset] = (size, False)
        self.bytes += size

    def hold(self, record: Record, job: Job) -> None:
        """A request that was read gets in line."""
        request = job.request
        place = record.partition, record.offset
        if job.urgent and place in self._open:  # else answered meanwhile, by who was asked before the partition moved
            self._open[place] = (self._open[place][0], True)
            self.people += 1
        line = self._lines.setdefault((request.class_, request.tenant), Line(request.class_))
        heapq.heappush(line.heap, (job.deadline_ms, next(self._order), Held(record, job)))

    def answered(self, record: Record) -> None:
        """Its answer is delivered. Of a partition that was lost meanwhile: nothing."""
        entry = self._open.pop((record.partition, record.offset), None)
        if entry is not None:
            self.bytes -= entry[0]
            self.people -= entry[1]
            self._offsets.finish(record.partition, record.offset)

    def forget(self, partitions: Sequence[int]) -> None:
        """Whoever has these partitions next reads them again."""
        for partition, offset in [place for place in self._open if place[0] in partitions]:
            size, urgent = self._open.pop((partition, offset))
            self.bytes -= size
            self.people -= urgent
        self._offsets.forget(partitions)
        for key, line in list(self._lines.items()):
            line.heap = [entry for entry in line.heap if entry[2].record.partition not in partitions]
            heapq.heapify(line.heap)
            if not line.heap:
                del self._lines[key]

    def committable(self) -> dict[int, int]:
        return self._offsets.committable()

    # --- lines -------------------------------------------------------------------------------------------------------

    def due(self, now_s: float) -> list[Line]:
        """Lines whose heads may be offered: people's first, then by deadline."""
        lines = [line for line in self._lines.values() if line.is_due(now_s)]
        return sorted(lines, key=lambda line: (line.class_ is not RankClass.INTERACTIVE, line.heap[0][:2]))

    def late(self, now_ms: int) -> Iterator[Held]:
        """Takes out what somebody waited for until now, whether or not its line may be offered."""
        for line in [line for line in self._lines.values() if line.class_ is RankClass.INTERACTIVE]:
            while line.heap and line.heap[0][0] <= now_ms:
                held = line.head
                self.take(line)
                yield held

    def take(self, line: Line) -> None:
        """Its head leaves."""
        held = heapq.heappop(line.heap)[2]
        if not line.heap:
            del self._lines[held.job.request.class_, held.job.request.tenant]

    def put_off(self, line: Line, now_s: float, after_s: float) -> None:
        """Its head was refused, and may be offered again after so long."""
        line.head.again_s = now_s + min(after_s, LONGEST_WAIT_S)
