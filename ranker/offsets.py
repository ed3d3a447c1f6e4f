"""Which offsets may be committed when records finish in any order. Pure; not safe for threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Partition:
    open: deque[int] = field(default_factory=deque)  # started, in order, not yet committable
    finished: set[int] = field(default_factory=set)
    next: int | None = None  # next offset to commit


class OffsetTracker:
    """Invariant: an offset is committable only when its record and every one before it have finished."""

    def __init__(self) -> None:
        self._partitions: dict[int, _Partition] = {}

    def __len__(self) -> int:
        """Records started and not finished."""
        return sum(len(held.open) - len(held.finished) for held in self._partitions.values())

    def start(self, partition: int, offset: int) -> None:
        """Offsets of a partition start in growing order, as they are read."""
        self._partitions.setdefault(partition, _Partition()).open.append(offset)

    def finish(self, partition: int, offset: int) -> None:
        """A record of a partition that was forgotten meanwhile is ignored: whoever owns it now reads it again."""
        held = self._partitions.get(partition)
        if held is None or offset not in held.open:
            return
        held.finished.add(offset)
        while held.open and held.open[0] in held.finished:
            held.next = held.open.popleft() + 1
            held.finished.discard(held.next - 1)

    def committable(self) -> dict[int, int]:
        """Next offsets by partition, each given once."""
        out = {partition: held.next for partition, held in self._partitions.items() if held.next is not None}
        for held in self._partitions.values():
            held.next = None
        return out

    def forget(self, partitions: Iterable[int]) -> None:
        for partition in partitions:
            self._partitions.pop(partition, None)
