"""`penstock demo`: real postings through the whole system, trouble mixed in, everything accounted for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from penstock.infra.cli.scorer import ModelOption, ScorerOption


def register(app: typer.Typer) -> None:
    """Add `demo` to `app`."""
    app.command(rich_help_panel="Start here")(demo)


def demo(
    postings: Annotated[
        Path | None,
        typer.Option("--postings", exists=True, dir_okay=False, help="Your postings, JSON Lines; else the sample."),
    ] = None,
    queries: Annotated[
        Path | None,
        typer.Option("--queries", exists=True, dir_okay=False, help="Your queries: query_id, text, filters a line."),
    ] = None,
    rate: Annotated[float, typer.Option("--rate", min=0.0, help="Records a second; 0: as fast as possible.")] = 50.0,
    seconds: Annotated[
        float | None, typer.Option("--seconds", min=1.0, help="How long to publish; 45 for the sample, else all of it.")
    ] = None,
    scorer: ScorerOption = None,
    model: ModelOption = None,
    rankings: Annotated[
        Path | None, typer.Option("--rankings", dir_okay=False, help="Write 1,000 ranked ids for each query here.")
    ] = None,
    report: Annotated[Path | None, typer.Option("--report", dir_okay=False, help="Write the report as JSON.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the stack up.")] = False,
    seed: Annotated[int, typer.Option("--seed", help="Of the trouble that is mixed in.")] = 1,
    chaos: Annotated[
        bool | None,
        typer.Option(
            "--chaos/--no-chaos",
            help="Mix in updates, deletes, expiries, repeats, disorder and poison; with the sample unless told not to.",
            show_default=False,
        ),
    ] = None,
    patience: Annotated[
        float, typer.Option("--patience", min=1.0, help="Seconds without progress after which the verdict is given.")
    ] = 60.0,
    tenant: Annotated[
        str | None, typer.Option("--tenant", help="Whose the queries are, where the postings are of several tenants.")
    ] = None,
    subscriptions: Annotated[
        int, typer.Option("--subscriptions", min=0, help="People who want alerts, made of the queries; 0: nobody.")
    ] = 150,
    cold: Annotated[
        bool, typer.Option("--cold", help="Start the clock at once, on a system whose compilers have not yet worked.")
    ] = False,
    on_configured: Annotated[
        bool,
        typer.Option(
            "--on-configured", help="Really publish to the system that PENSTOCK_CONFIG or PENSTOCK_… variables name."
        ),
    ] = False,
) -> None:
    """Replay postings through Kafka, Flink and the index, then account for every one of them and for every alert.

    Starts a stack of its own unless one is up, and stops what it started. Exit code 1 when anything was lost or wrong,
    or a query was never answered.
    """
    from rich.console import Console

    from penstock.infra import scorers
    from penstock.infra.cli.output import now_ms
    from penstock.infra.demo.run import Options, run

    options = Options(
        postings=postings,
        queries=queries,
        rate=rate,
        seconds=seconds,
        scorer=scorers.asked(scorer, model),
        rankings=rankings,
        report=report,
        keep=keep,
        seed=seed,
        chaos=chaos,
        patience_s=patience,
        tenant=tenant,
        subscriptions=subscriptions,
        on_configured=on_configured,
        cold=cold,
    )
    if not run(options, Console(highlight=False), now_ms).clean:
        raise typer.Exit(1)
