"""`penstock up | down | status | logs`: the whole system on this machine."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TextIO

import typer

from penstock.infra.cli.scorer import ModelOption, ScorerOption

if TYPE_CHECKING:
    from pathlib import Path

    from penstock.infra.local.stack import PartStatus, Stack

PANEL = "The stack on this machine"
FOLLOW_EVERY = 0.2  # seconds between looks at growing logs


def register(app: typer.Typer) -> None:
    """Add the stack's commands to `app`."""
    for command in (up, down, status, logs):
        app.command(rich_help_panel=PANEL)(command)


def up(scorer: ScorerOption = None, model: ModelOption = None) -> None:
    """Start Kafka, Flink, Redis, the roles and the jobs; again: heal what died.

    Everything lives in one directory: PENSTOCK_DATA_DIR, or ./.penstock.

    It listens on loopback alone, on free ports unless settings name them.

    A scorer that is named stays until another is; a ranker that is up with another one is started anew.

    When it fails, or on Ctrl-C, what it started is stopped again.
    """
    from penstock.infra import scorers
    from penstock.infra.cli.output import say

    stack = _stack()
    root = stack.layout.root
    choice = scorers.asked(scorer, model)
    if choice is not None:
        ranker = stack.settings().ranker
        choice = scorers.completed(choice, ranker, root, root / "models", lambda line: say(line, style="yellow"))
    signal.signal(signal.SIGTERM, _interrupt)
    began = time.monotonic()
    again = stack.running()
    say(f"{'Looking after' if again else 'Starting'} the stack in {stack.layout.root}")
    try:
        stack.up(say, choice)
    except KeyboardInterrupt:
        say("Interrupted. " + ("The parts that were up still are." if again else "Nothing is left running."))
        raise typer.Exit(130) from None
    ports = stack.ports()
    say(f"Up after {time.monotonic() - began:.1f} s.", style="bold")
    say(f"  Kafka     127.0.0.1:{ports['kafka']}")
    say(f"  Flink     http://127.0.0.1:{ports['flink_rest']}")
    say(f"  Redis     127.0.0.1:{ports['redis']}")
    say(f"  HTTP      http://127.0.0.1:{ports['gateway']}")
    say(f"  scorer    {stack.scorer() or 'the ranker does not answer'}")
    say(f"  settings  {stack.layout.settings}")
    say(f"  logs      {stack.layout.logs} (penstock logs PART)")
    say(
        "Next: penstock publish postings FILE.jsonl, then penstock search 'night nurse'; penstock status; penstock down"
    )


def down(
    erase: Annotated[bool, typer.Option("--erase", help="Also delete the data: postings, checkpoints, logs.")] = False,
) -> None:
    """Stop the stack. What it holds stays, and the next `up` goes on from there."""
    from penstock.infra.cli.output import say

    stack = _stack()
    was_up = stack.running()
    stack.down(say, erase=erase)
    say("Down." if was_up else "It was not up.")


def status(as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False) -> None:
    """What each part is doing, from work done now. Exit code 1 when not all are healthy."""
    from penstock.infra.cli.output import emit

    stack = _stack()
    parts = stack.status()
    if as_json:
        emit(
            {
                "data_dir": str(stack.layout.root),
                "healthy": all(part.healthy for part in parts),
                "memory_bytes": stack.memory_bytes(),
                "parts": [asdict(part) for part in parts],
            }
        )
    else:
        _show(stack, parts)
    if not all(part.healthy for part in parts):
        raise typer.Exit(1)


def logs(
    part: Annotated[str | None, typer.Argument(help="kafka, models, postings, …; all of them if left out.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as they grow, until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many of the last lines.")] = 20,
) -> None:
    """The last lines of a part's log, or of everyone's."""
    from penstock.infra.local.parts import PARTS

    stack = _stack()
    names = [p.name for p in PARTS] + ["supervisord"]
    if part is not None and part not in names:
        raise typer.BadParameter(f"no part {part!r}; there are: {', '.join(names)}", param_hint="PART")
    chosen = [part] if part else [name for name in names if stack.log_path(name).is_file()]
    tails = {name: _Tail(stack.log_path(name)) for name in chosen}
    for name in chosen:
        _print(name, stack.logs(name, lines) if lines else [], labelled=part is None)
    while follow:
        for name, tail in tails.items():
            _print(name, tail.fresh(), labelled=part is None)
        time.sleep(FOLLOW_EVERY)


class _Tail:
    """New lines of a growing file, which may be rotated (or not be there yet). Starts at its present end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: TextIO | None = self._open()
        if self._file is not None:
            self._file.seek(0, 2)
        self._part = ""

    def fresh(self) -> Iterator[str]:
        """Whole lines written since the last call."""
        yield from self._rest()
        if self._replaced():
            if self._file is not None:
                self._file.close()
            self._file = self._open()
            yield from self._rest()

    def _rest(self) -> Iterator[str]:
        *whole, self._part = (self._part + (self._file.read() if self._file else "")).split("\n")
        yield from whole

    def _open(self) -> TextIO | None:
        return self._path.open(encoding="utf-8", errors="replace") if self._path.is_file() else None

    def _replaced(self) -> bool:
        try:
            now = self._path.stat()
        except FileNotFoundError:
            return False
        if self._file is None:
            return True
        held = os.fstat(self._file.fileno())
        return (now.st_ino, now.st_dev) != (held.st_ino, held.st_dev) or now.st_size < self._file.tell()


def _show(stack: Stack, parts: list[PartStatus]) -> None:
    from penstock.infra.cli.output import cut, out, table

    columns = ("part", "state", "pid", "port", "up", "memory", "detail")
    shown = table(*columns, right=("pid", "port", "up", "memory"), fold=("detail",))
    colours = {"healthy": "green", "starting": "yellow", "restarting": "yellow", "stopped": "dim"}
    for part in parts:
        shown.add_row(
            part.name,
            f"[{colours.get(part.state, 'red')}]{part.state}[/]",
            _or_blank(part.pid),
            _or_blank(part.port),
            _span(part.uptime_s),
            _megabytes(part.rss_bytes),
            cut(part.detail) if part.healthy else part.detail.replace("[", "\\["),
        )
    console = out()
    console.print(shown)
    healthy = sum(part.healthy for part in parts)
    if healthy == len(parts):
        verdict = f"All {healthy} parts are healthy"
    elif not stack.running() and stack.memory_bytes():
        verdict = "The stack is gone, some of its processes are left: penstock up starts anew, penstock down ends them"
    elif not stack.running():
        verdict = "Nothing is running: penstock up starts it"
    else:
        verdict = f"{len(parts) - healthy} of {len(parts)} parts are not healthy: penstock up heals them"
    memory = stack.memory_bytes()
    console.print(f"{verdict}.{f' Memory: {memory / 1e9:.1f} GB.' if memory else ''} Data: {stack.layout.root}")


def _print(name: str, lines: Any, labelled: bool) -> None:
    for line in lines:
        typer.echo(f"{name:<12} {line}" if labelled else line)


def _span(seconds: float | None) -> str:
    if seconds is None:
        return ""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _megabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:.0f} MB"


def _or_blank(value: int | None) -> str:
    return "" if value is None else str(value)


def _interrupt(number: int, frame: object) -> NoReturn:
    """SIGTERM is Ctrl-C: clear up, then leave."""
    raise KeyboardInterrupt


def _stack() -> Stack:
    if sys.platform != "linux":
        raise typer.BadParameter("the local stack runs on Linux; elsewhere use a Linux container")
    from penstock.infra.local.stack import Stack
    from penstock.infra.settings import data_dir

    return Stack(data_dir())
