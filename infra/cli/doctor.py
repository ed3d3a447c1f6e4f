"""`penstock doctor`: what this machine lacks, and how to get it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add `doctor` to `app`."""
    app.command(rich_help_panel="The stack on this machine")(doctor)


def doctor(as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False) -> None:
    """Check this machine: system, Python, disk, memory, Java, Maven, ports, scorer. Exit code 1 when one is not met."""
    from penstock.infra import doctor as checks
    from penstock.infra.local import jars
    from penstock.infra.settings import data_dir

    environ = dict(os.environ)
    if jars.present():
        environ["PENSTOCK_JARS"] = str(jars.jars_directory())
    root = Path(checks.__file__).resolve().parent.parent
    raise typer.Exit(checks.report(checks.diagnose(root, data_dir(), environ), as_json))
