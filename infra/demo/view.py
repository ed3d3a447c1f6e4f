"""What a person sees while the demo runs: one live line on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table

from penstock.infra.demo.report import Report, rows_of
from penstock.infra.demo.watch import Seen, percentile

LIVE_EVERY_S = 0.2
PLAIN_EVERY_S = 5.0


class View:
    """Writes to one console. Use in a `with`; `progress` may be called as often as one likes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = console.is_terminal
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(24),
            TaskProgressColumn(),
            console=console,
            disable=not self._live,
            transient=True,
        )
        self._task = self._progress.add_task("", total=None)
        self._next = 0.0

    def say(self, message: str, style: str = "") -> None:
        self._console.print(message, style=style, markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> View:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def progress(self, stage: str, seen: Callable[[], Seen], published: int, total: int, started: float) -> None:
        """Show where the run is; `seen` is asked only when it is time to show something."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + (LIVE_EVERY_S if self._live else PLAIN_EVERY_S)
        line = f"{stage}: {_line(seen(), published, total, now - started)}"
        if self._live:
            self._progress.update(self._task, description=line, total=total, completed=published)
        else:
            self.say(line)

    def report(self, report: Report) -> None:
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in rows_of(report):
            bad = (
                (name.startswith("lost") and not report.accounting.clean)
                or (name.startswith("queries") and report.unanswered > 0)
                or (name.startswith("alerts lost") and report.alerts is not None and not report.alerts.clean)
            )
            table.add_row(name, value, style="bold red" if bad else "")
        self._console.print()
        self._console.print(table)
        for detail in (*report.accounting.details, *(report.alerts.details if report.alerts is not None else ())):
            self.say(detail, style="red")

    def alerts(self, shown: Sequence[Mapping[str, Any]]) -> None:
        """Some alerts as their readers would see them."""
        if not shown:
            return
        self.say("\nsome of the alerts")
        for one in shown:
            what = f"{one['title']} · {one['company']}" if one["company"] else one["title"]
            self.say(f"{one['person_id']}, {one['after_ms']} ms after it was published: {what}")
            for reason in filter(None, one["reasons"]):
                self.say(f"  {reason}", style="dim")


def _line(seen: Seen, published: int, total: int, seconds: float) -> str:
    recent = seen.freshness_ms[-2000:]
    parts = [
        f"{published}/{total} records",
        f"{published / max(seconds, 0.001):.0f}/s",
        f"{seen.searchable} searchable",
        f"{seen.letters} dead letters",
        f"{seen.results} answers",
        f"{seen.alerts} alerts",
    ]
    p50, p99 = percentile(recent, 0.5), percentile(recent, 0.99)
    if p50 is not None and p99 is not None:
        parts.append(f"fresh p50 {p50:.0f} ms p99 {p99:.0f} ms")
    if seen.trouble is not None:
        parts.append(f"waiting: {seen.trouble}")
    return " · ".join(parts)
