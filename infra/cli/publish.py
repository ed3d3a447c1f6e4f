"""`penstock publish postings | queries FILE`: JSON Lines onto a topic, every line checked before it leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from penstock.infra.settings import Settings
    from penstock.schemas.topics import Topic

File = Annotated[Path, typer.Argument(metavar="FILE", help="JSON Lines in the schema's field names; - reads stdin.")]
Rate = Annotated[float, typer.Option("--rate", min=0.0, help="Records a second; 0: as fast as the broker takes them.")]
Strict = Annotated[bool, typer.Option("--strict", help="Publish nothing unless every line is right.")]

SHOWN = 20  # wrong lines told one by one; the rest is counted


def register(app: typer.Typer) -> None:
    """Add the `publish` commands to `app`."""
    app.add_typer(_app, name="publish", rich_help_panel="Postings and queries")


_app = typer.Typer(no_args_is_help=True, help="Publish JSON Lines to Kafka, each line checked first.")


@_app.command()
def postings(file: File, rate: Rate = 0.0, strict: Strict = False) -> None:
    """Publish postings to jobs.posting.v1: posting_id, version, title, description, ….

    Wrong lines are told with their number and field; the others are published, and the exit code is 1.
    """
    from penstock.infra.settings import load
    from penstock.schemas.topics import POSTINGS
    from penstock.schemas.validate import check_posting

    settings = load()
    life = settings.postings.max_life_ms
    _publish(
        settings, POSTINGS, file, rate, strict, lambda event: check_posting(event, now_ms=_now(), max_life_ms=life)
    )


@_app.command()
def queries(file: File, rate: Rate = 0.0, strict: Strict = False) -> None:
    """Publish queries to search.query.v1: request_id, text, …. Answers come on rank.result.v1."""
    from penstock.infra.settings import load
    from penstock.schemas.topics import QUERIES
    from penstock.schemas.validate import check_query

    _publish(load(), QUERIES, file, rate, strict, check_query)


@dataclass(slots=True)
class _Tally:
    """What was wrong with the file so far."""

    refused: int = 0
    unknown: dict[tuple[str, str], int] = field(default_factory=dict)

    def refuse(self, where: str, error: Exception) -> None:
        from penstock.infra.cli.output import say

        self.refused += 1
        if self.refused <= SHOWN:
            say(f"{where}: {error}", style="red")

    def meet(self, name: str, symbol: str) -> None:
        from penstock.infra.telemetry import UNKNOWN_SYMBOLS

        UNKNOWN_SYMBOLS.labels(name).inc()
        self.unknown[name, symbol] = self.unknown.get((name, symbol), 0) + 1

    def tell(self) -> None:
        from penstock.infra.cli.output import say

        if self.refused > SHOWN:
            say(f"… and {self.refused - SHOWN} more wrong lines", style="red")
        for (name, symbol), count in self.unknown.items():
            say(f"{name}: {symbol!r} is unknown here and became UNKNOWN in {count} lines", style="yellow")


def _publish(
    settings: Settings, topic: Topic, file: Path, rate: float, strict: bool, check: Callable[[Any], None]
) -> None:
    """Check and publish a file's lines. Exit code 1 when a line was refused, 2 when there is no such file."""
    from penstock.infra.cli.output import say
    from penstock.infra.kafka_clients import Publisher, check_broker

    if str(file) != "-" and not file.is_file():
        raise typer.BadParameter(f"{file} is not a file", param_hint="FILE")
    tally = _Tally()
    records = _checked(settings, topic, file, check, tally)
    if strict:
        records = iter(list(records))
        if tally.refused:
            tally.tell()
            say(f"{tally.refused} wrong lines: nothing was published (--strict)")
            raise typer.Exit(1)
    check_broker(settings.kafka, [topic.name])
    with Publisher(settings.kafka) as publisher:
        seconds = _send(publisher, topic, records, rate)
    tally.tell()
    count = publisher.delivered
    say(f"published {count} records to {topic.name} in {seconds:.1f} s ({count / max(seconds, 1e-3):.0f}/s)")
    if tally.refused:
        say(f"{tally.refused} lines were refused and not published")
        raise typer.Exit(1)


def _checked(
    settings: Settings, topic: Topic, file: Path, check: Callable[[Any], None], tally: _Tally
) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of every line that is right; the others go to the tally."""
    from penstock.schemas import jsonl
    from penstock.schemas.errors import WireError
    from penstock.schemas.framing import topic_codec

    codec = topic_codec(topic, settings.kafka.schema_registry)
    name, path = ("stdin", Path("/dev/stdin")) if str(file) == "-" else (str(file), file)
    for number, item in jsonl.read_file(topic.record, path, tally.meet):
        try:
            if isinstance(item, WireError):
                raise item
            check(item)
            yield topic.key(item).encode(), codec.encode(item)
        except WireError as error:
            tally.refuse(f"{name}:{number}", error)


def _send(publisher: Any, topic: Topic, records: Iterator[tuple[bytes, bytes]], rate: float) -> float:
    """Publish at the rate with progress on stderr; the seconds it took until the broker had everything."""
    import time

    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    started = time.monotonic()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"publishing to {topic.name}", total=None)
        for sent, (key, value) in enumerate(records):
            if rate:
                while (wait := started + sent / rate - time.monotonic()) > 0:
                    publisher.poll(wait)
            publisher.publish_raw(topic.name, key, value)
            if sent % 64 == 0:
                progress.update(task, description=f"{sent + 1} records to {topic.name}, {publisher.delivered} there")
        publisher.flush()
    return time.monotonic() - started


def _now() -> int:
    from penstock.infra.cli.output import now_ms

    return now_ms()
