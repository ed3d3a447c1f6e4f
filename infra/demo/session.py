"""The system a demo runs on: one that is there already, or a stack of its own that it takes down again."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from penstock.infra import scorers
from penstock.infra.locate import configured_elsewhere, stack_runs
from penstock.infra.scorers import Choice
from penstock.infra.settings import Settings, SettingsError, data_dir, load


class NotAsked(SettingsError):
    """The demo would write to a system somebody runs, and nobody said that it may."""


class OtherScorer(SettingsError):
    """What is up ranks by another scorer than was asked for."""


class Tell(Protocol):
    def __call__(self, message: str, style: str = "") -> None: ...


@contextmanager
def system(*, keep: bool, on_configured: bool, tell: Tell, scorer: Choice | None = None) -> Iterator[Settings]:
    """Settings of a running system. Raises NotAsked, OtherScorer.

    In this order: the one that PENSTOCK_CONFIG or variables name, if `on_configured` says so; the stack of the data
    directory, healed if it is up in part; else a fresh stack in `<data dir>/demo`, taken down at the end whatever
    happens, unless `keep`. A `scorer` is for the stack that is started; one that is up must have it.
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
        _require(scorer, settings, "set ranker.scorer (and ranker.model) where that ranker runs, and start it again")
        yield settings
        return
    shared, own = data_dir(), data_dir() / "demo"
    if stack_runs(shared):
        stack = Stack(shared)
        stack.up(tell)
        _require(scorer, stack.settings(), "`penstock down` first, or `penstock up --scorer …`, which switches it")
        yield stack.settings()
        return
    stack = Stack(own)
    runs = stack_runs(own)
    if runs:
        _require(scorer, stack.settings(), f"PENSTOCK_DATA_DIR={_shown(own)} penstock down first")
    else:
        # What an earlier demo left is of no use: the accounting starts from an empty index.
        shutil.rmtree(own, ignore_errors=True)
    choice = None if scorer is None or runs else _completed(scorer, shared, tell)
    kept = False
    try:
        stack.up(tell, choice)
        yield stack.settings()
        kept = keep
        if kept:
            tell(f"the stack stays up: PENSTOCK_DATA_DIR={_shown(own)} penstock search …, … penstock down")
    finally:
        if not kept:
            with _uninterrupted():
                stack.down(tell)


def _require(scorer: Choice | None, settings: Settings, remedy: str) -> None:
    if scorer is None:
        return
    runs = scorers.running_at(settings.ranker.dial)
    if runs is None or not runs.is_(scorer):
        wanted = f"--scorer {scorer.scorer}{f' --model {scorer.model}' if scorer.model else ''}"
        raise OtherScorer(f"{wanted}: the ranker that is up runs {runs or 'nothing that answers'}: {remedy}")


def _completed(scorer: Choice, shared: Path, tell: Tell) -> Choice:
    """With what the settings in force here say of it; an untrained model is kept beside the demos' stacks."""
    return scorers.completed(scorer, load().ranker, shared, shared / "models", lambda line: tell(line, "yellow"))


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
