"""Which offsets may be committed when records finish in any order. Pure; not safe for threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Partition:
    started: deque[int] = field(default_factory=deque)  # in order, not yet committable
    open: set[int] = field(default_factory=set)  # of those, that have not finished
    next: int | None = None  # next offset to commit


class OffsetTracker:
    """Invariant: an offset is committable only when its record and every one before it have finished."""

    def __init__(self) -> None:
        self._partitions: dict[int, _Partition] = {}

    def __len__(self) -> int:
        """Records started and not finished."""
        return sum(len(held.open) for held in self._partitions.values())

    def start(self, partition: int, offset: int) -> None:
        """Offsets of a partition start in growing order, as they are read."""
        held = self._partitions.setdefault(partition, _Partition())
        held.started.append(offset)
        held.open.add(offset)

    def finish(self, partition: int, offset: int) -> None:
        """A record of a partition that was forgotten meanwhile is ignored: whoever owns it now reads it again."""
        held = self._partitions.get(partition)
        if held is None or offset not in held.open:
            return
        held.open.discard(offset)
        while held.started and held.started[0] not in held.open:
            held.next = held.started.popleft() + 1

    def committable(self) -> dict[int, int]:
        """Next offsets by partition, each given once."""
        out = {partition: held.next for partition, held in self._partitions.items() if held.next is not None}
        for held in self._partitions.values():
            held.next = None
        return out

    def forget(self, partitions: Iterable[int]) -> None:
        for partition in partitions:
            self._partitions.pop(partition, None)
