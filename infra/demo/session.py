"""The system a demo runs on: one that is there already, or a stack of its own that it takes down again."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from penstock.infra.locate import configured_elsewhere, stack_runs
from penstock.infra.settings import Settings, SettingsError, data_dir, load


class NotAsked(SettingsError):
    """The demo would write to a system somebody runs, and nobody said that it may."""


@contextmanager
def system(*, keep: bool, on_configured: bool, tell: Callable[[str], None]) -> Iterator[Settings]:
    """Settings of a running system. Raises NotAsked.

    In this order: the one that PENSTOCK_CONFIG or variables name, if `on_configured` says so; the stack of the data
    directory, healed if it is up in part; else a fresh stack in `<data dir>/demo`, taken down at the end whatever
    happens, unless `keep`.
    """
    from penstock.infra.local.stack import Stack

    if configured_elsewhere():
        settings = load()
        if not on_configured:
            raise NotAsked(
                "PENSTOCK_CONFIG or PENSTOCK_… variables name a system of your own: the demo would publish its "
                f"postings, poison, probes and queries to the brokers at {settings.kafka.bootstrap_servers}, for real. "
                "Say --on-configured if you want that; unset the variables for a stack of the demo's own"
            )
        yield settings
        return
    shared = data_dir()
    if stack_runs(shared):
        stack = Stack(shared)
        stack.up(tell)
        yield stack.settings()
        return
    own = shared / "demo"
    stack = Stack(own)
    kept = False
    try:
        if not stack_runs(own):
            # What an earlier demo left is of no use: the accounting starts from an empty index.
            shutil.rmtree(own, ignore_errors=True)
        stack.up(tell)
        yield stack.settings()
        kept = keep
        if kept:
            tell(f"the stack stays up: PENSTOCK_DATA_DIR={_shown(own)} penstock search …, … penstock down")
    finally:
        if not kept:
            with _uninterrupted():
                stack.down(tell)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C pressed again must not leave half a stack behind."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals go to the main thread, which is somebody else's here
        return
    held = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in held.items():
            signal.signal(number, handler)


def _shown(path: Path) -> str:
    """Relative where that is shorter to type."""
    relative = os.path.relpath(path)
    return relative if len(relative) < len(str(path)) else str(path)
