"""`penstock topics create | list`: the topics that schemas/topics.py promises, on any broker."""

from __future__ import annotations

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the `topics` commands to `app`."""
    app.add_typer(_app, name="topics", rich_help_panel="Roles and clusters")


_app = typer.Typer(no_args_is_help=True, help="The Kafka topics of the system (`penstock up` makes them by itself).")


@_app.command()
def create() -> None:
    """Make the topics that are missing.

    Topics that exist otherwise than promised are told, never changed; the exit code is then 1.
    """
    from penstock.infra.cli.output import say
    from penstock.infra.kafka_clients import check_broker
    from penstock.infra.settings import load
    from penstock.infra.topics_admin import ensure_topics

    kafka = load().kafka
    check_broker(kafka)
    report = ensure_topics(kafka)
    for name in report.created:
        say(f"made {name}")
    for difference in report.differences:
        say(difference, style="yellow")
    if not report.created and not report.differences:
        say("every topic is there")
    if report.differences:
        raise typer.Exit(1)


@_app.command("list")
def list_(as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False) -> None:
    """List what each topic carries, its key, partitions and retention, and whether the broker has it."""
    from penstock.infra.cli import output
    from penstock.infra.kafka_clients import existing_topics
    from penstock.infra.settings import load
    from penstock.infra.topics_admin import all_topics
    from penstock.schemas.topics import DAY

    there, promised = existing_topics(load().kafka), all_topics()
    if as_json:
        output.emit(
            [
                {
                    "name": topic.name,
                    "record": topic.record.__name__,
                    "key": topic.key_name,
                    "partitions": topic.partitions,
                    "partitions_there": there.get(topic.name, 0),
                    "retention_ms": topic.retention_ms,
                    "compacted": topic.compacted,
                }
                for topic in promised
            ]
        )
        return
    table = output.table("topic", "carries", "key", "partitions", "kept", right=("partitions",), fold=("key",))
    for topic in promised:
        kept = f"{topic.retention_ms // DAY} d{', compacted' if topic.compacted else ''}"
        count = str(there[topic.name]) if topic.name in there else "missing"
        table.add_row(topic.name, topic.record.__name__, topic.key_name, count, kept)
    output.out().print(table)
