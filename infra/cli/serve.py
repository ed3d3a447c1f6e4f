"""`penstock serve models | enrich | retrieval | ranker | gateway`: one process, one role, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from penstock.infra.settings import Settings


def register(app: typer.Typer) -> None:
    """Add the `serve` commands to `app`."""
    app.add_typer(_app, name="serve", rich_help_panel="Roles and clusters")


_app = typer.Typer(no_args_is_help=True, help="Run one role in the foreground (`penstock up` runs all of them).")


@_app.command()
def models() -> None:
    """Encode postings and queries, summarise, understand queries."""
    from penstock.infra import roles

    _run("models", roles.serve_models)


@_app.command()
def enrich() -> None:
    """Refine what was published fast, and heal what was published without a vector, when nobody else is busy."""
    from penstock.infra import roles

    _run("enrich", roles.serve_enrich)


@_app.command()
def retrieval() -> None:
    """Hold a shard of the index and answer exact filtered searches."""
    from penstock.infra import roles

    _run("retrieval", roles.serve_retrieval)


@_app.command()
def ranker() -> None:
    """Rank: take requests from Kafka and gRPC, retrieve, score, answer."""
    from penstock.infra import roles

    _run("ranker", roles.serve_ranker)


@_app.command()
def gateway() -> None:
    """HTTP: search, publish, subscribe, follow alerts."""
    from penstock.infra import roles

    _run("gateway", roles.serve_gateway)


def _run(role: str, serve: Callable[[Settings, threading.Event], None]) -> None:
    from penstock.infra import settings as settings_module
    from penstock.infra import telemetry, tracing

    settings = settings_module.load()
    log = telemetry.configure_logging(role)
    telemetry.serve_metrics(settings.metrics.host, getattr(settings.metrics, role))
    stop = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        log.info("stopping", signal=signal.Signals(number).name)
        stop.set()
        signal.signal(number, signal.SIG_DFL)  # asked twice: leave at once

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    tracing.configure(settings.tracing, role)
    try:
        serve(settings, stop)
    finally:
        tracing.close()
