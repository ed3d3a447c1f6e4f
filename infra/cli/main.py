"""`penstock`: the command line, assembled from one module a topic.

Starting must be quick, so a module here imports nothing heavy until its command runs. Every error ends in `Root`: one
sentence on stderr, exit code 2 for a wrong argument or setting, 1 for a failure, 130 for Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from penstock.infra.cli import (
    alerts,
    demo,
    dlq,
    doctor,
    publish,
    search,
    serve,
    stack,
    subscriptions,
    top,
    topics,
    warmup,
)


class Root(TyperGroup):
    """The outermost command: what escapes from any other is told here in one sentence."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (TyperException, typer.Exit, typer.Abort, BrokenPipeError):
            raise  # Typer's own
        except Exception as error:
            if os.environ.get("PENSTOCK_DEBUG") == "1":
                raise
            from penstock.infra.cli.errors import explain

            sentence, code = explain(error)
            typer.echo(sentence, err=True)
            raise typer.Exit(code) from error


app = typer.Typer(
    cls=Root,
    name="penstock",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Streaming search over job postings: Kafka in, Flink between, a ranked answer out.\n\n"
    "`penstock demo` shows all of it on real postings. `penstock up` starts the stack here and leaves it running; "
    "then publish, search and get. Commands that read take `--json` for programs. "
    "PENSTOCK_DATA_DIR says where the stack lives (./.penstock), PENSTOCK_DEBUG=1 shows tracebacks.",
)


def _version(wanted: bool) -> None:
    if wanted:
        import importlib.metadata

        typer.echo(f"penstock {importlib.metadata.version('penstock')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """The options of `penstock` itself."""


demo.register(app)
publish.register(app)
search.register(app)
subscriptions.register(app)
alerts.register(app)
dlq.register(app)
stack.register(app)
top.register(app)
doctor.register(app)
serve.register(app)
topics.register(app)
warmup.register(app)


def main() -> None:
    """The `penstock` entry point."""
    try:
        app()
    except KeyboardInterrupt:  # outside of a command: while starting or leaving
        sys.exit(130)
