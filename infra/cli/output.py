"""How commands speak: tables and sentences for people, JSON alone on stdout for programs, messages on stderr."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

MINUTE_MS, HOUR_MS, DAY_MS = 60_000, 3_600_000, 86_400_000


def out() -> Console:
    """Where answers go. Made anew each time, since tests replace stdout."""
    return Console(highlight=False)


def say(message: str, style: str = "") -> None:
    """A sentence for people, on stderr."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(message, style=style, markup=False)


def emit(value: Any) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2) + "\n")
    sys.stdout.flush()


def table(*columns: str, right: tuple[str, ...] = (), fold: tuple[str, ...] = (), cut: tuple[str, ...] = ()) -> Table:
    """An empty table in the house style. `right` columns hold numbers; where space is short, `fold` columns break and
    `cut` columns end in an ellipsis.
    """
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        if column in fold:
            made.add_column(column, overflow="fold")
        else:
            made.add_column(column, justify="right" if column in right else "left", no_wrap=True)
    return made


def cut(text: str) -> Text:
    """A cell for a `fold` column that ends in an ellipsis instead of taking a second line."""
    return Text(text, no_wrap=True, overflow="ellipsis")


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def ago(millis: int | None, now: int) -> str:
    """How long ago, to one unit: '3 d ago', 'in 5 h'; empty when unknown."""
    if millis is None:
        return ""
    distance = abs(now - millis)
    for unit, name in ((DAY_MS, "d"), (HOUR_MS, "h"), (MINUTE_MS, "min"), (1000, "s")):
        if distance >= unit:
            text = f"{distance // unit} {name}"
            return f"{text} ago" if millis <= now else f"in {text}"
    return "now"
