"""`penstock top`: rates, lag and freshness along the way of the data, live."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from penstock.infra.settings import Settings
    from penstock.infra.top.reading import Reading

WINDOW_S = 10.0  # over which rates and quantiles are taken
ONCE_S = 2.5  # the same for a single look: Flink renews its numbers every 2 s, and only while somebody asks
PRIMED_S = 0.5  # what it takes to the first answer


def register(app: typer.Typer) -> None:
    """Add `top` to `app`."""
    app.command(rich_help_panel="The stack on this machine")(top)


def top(
    once: Annotated[bool, typer.Option("--once", help="Print one look and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The same as one JSON document; implies --once.")] = False,
    interval: Annotated[float, typer.Option("--interval", "-i", min=0.2, help="Seconds between two looks.")] = 1.0,
) -> None:
    """Watch the stream: rate, lag, freshness and trouble of each stage, and the ranker's queues. q or Ctrl-C ends it.

    Rates and quantiles are of the last ten seconds, or of some seconds with --once; errors and fallbacks count since
    a part began. p50 and p99 are the age of postings where they arrive there; at the ranker, the time of an answer.
    Of what waits for the ranker: how much was deferred or shed and why, how deep requests are ranked and why.
    """
    from penstock.infra import settings as settings_module
    from penstock.infra.cli.output import emit, out
    from penstock.infra.top import stages, view
    from penstock.infra.top.shaping import shaping
    from penstock.infra.top.sources import Sources

    settings = settings_module.load()
    sources = Sources(settings)
    try:
        if not (once or as_json):
            if not sys.stdout.isatty():
                raise typer.BadParameter("a live view wants a terminal: use --once or --json", param_hint="--once")
            with contextlib.suppress(KeyboardInterrupt):
                _live(sources.look, settings, interval)
            return
        sources.look()
        time.sleep(PRIMED_S)
        before = sources.look()
        time.sleep(max(interval, ONCE_S))
        now = sources.look()
        rows, parts = stages.rows(settings, before, now), stages.parts(before, now)
        if as_json:
            emit(stages.as_document(rows, parts, shaping(before, now), now.at - before.at))
            return
        console = out()
        title = f"penstock top · {time.strftime('%H:%M:%S')} · over {now.at - before.at:.1f} s · {settings.data_dir}"
        console.print(view.screen(rows, parts, shaping(before, now), title=title, width=console.width))
    finally:
        sources.close()


def _live(look: Callable[[], Reading], settings: Settings, interval: float) -> None:
    from rich.live import Live
    from rich.text import Text

    from penstock.infra.cli.output import out
    from penstock.infra.top import stages, view
    from penstock.infra.top.shaping import shaping

    console = out()
    look()  # Flink renews its numbers only when asked
    time.sleep(PRIMED_S)
    held = deque([look()])
    with _keys() as pressed, Live(Text("looking …"), console=console, screen=True, auto_refresh=False) as live:
        while not pressed(max(0.0, held[-1].at + interval - time.monotonic()) if len(held) > 1 else 0.3):
            held.append(look())
            while len(held) > 2 and held[1].at <= held[-1].at - WINDOW_S:
                held.popleft()
            before, now = held[0], held[-1]
            seconds = now.at - before.at
            title = f"penstock top · {time.strftime('%H:%M:%S')} · over {seconds:.0f} s · q ends · {settings.data_dir}"
            rows, parts = stages.rows(settings, before, now), stages.parts(before, now)
            shown = view.screen(rows, parts, shaping(before, now), title=title, width=console.width)
            live.update(shown, refresh=True)


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], bool]]:
    """A function that waits so many seconds at most and says whether q was pressed. Restores the terminal."""
    import termios
    import tty

    if not sys.stdin.isatty():

        def only_wait(seconds: float) -> bool:
            time.sleep(seconds)
            return False

        yield only_wait
        return
    number = sys.stdin.fileno()
    before = termios.tcgetattr(number)

    def pressed(seconds: float) -> bool:
        until = time.monotonic() + seconds
        while select.select([number], [], [], max(0.0, until - time.monotonic()))[0]:
            typed = os.read(number, 64)
            if not typed or b"q" in typed.lower():
                return True
        return False

    try:
        tty.setcbreak(number)
        yield pressed
    finally:
        termios.tcsetattr(number, termios.TCSADRAIN, before)
