"""CPU seconds and resident memory of a stack, by part: what the kernel has counted for each process.

CPU time is what a busy machine leaves comparable: a posting costs the same milliseconds when others compete for the
cores. PyFlink's Python workers are counted apart from the TaskManager's JVM, whose children they are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from penstock.infra.local import processes

WORKERS = "python workers"


@dataclass(slots=True)
class Usage:
    """One look at a stack. CPU seconds are since each process started, its ended children included."""

    cpu_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    rss_bytes: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    @property
    def rss_total(self) -> int:
        return sum(self.rss_bytes.values())


def look(root: Path) -> Usage:
    """What the processes of the stack in `root` have used so far, by part."""
    out = Usage()
    for part, process in _processes(root):
        try:
            times = process.cpu_times()
            out.cpu_s[part] += times.user + times.system + times.children_user + times.children_system
            out.rss_bytes[part] += process.memory_info().rss
        except psutil.Error:
            continue  # ended meanwhile
    return out


def spent(before: Usage, after: Usage) -> dict[str, float]:
    """CPU seconds by part between two looks, the most first."""
    difference = {part: seconds - before.cpu_s.get(part, 0.0) for part, seconds in after.cpu_s.items()}
    return dict(sorted(difference.items(), key=lambda item: -item[1]))


def per_item(seconds: Mapping[str, float], items: int) -> dict[str, float]:
    """Milliseconds of CPU an item, by part."""
    return {part: round(1000 * each / items, 4) for part, each in seconds.items()} if items else {}


def _processes(root: Path) -> Iterator[tuple[str, psutil.Process]]:
    for process in processes.members(root):
        try:
            part = processes.part_of(process, root) or "supervisord"
            if part == "taskmanager" and any("beam_boot" in word for word in process.cmdline()):
                part = WORKERS
        except (psutil.Error, OSError):
            continue
        yield part, process
