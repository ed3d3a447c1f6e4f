"""`penstock alerts tail`: alerts as they come, straight from their topic."""

from __future__ import annotations

import os
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.infra.cli.search import place_of

if TYPE_CHECKING:
    from penstock.schemas.events import Alert, Match

POLL_S = 0.2


def register(app: typer.Typer) -> None:
    """Add the `alerts` commands to `app`."""
    app.add_typer(_app, name="alerts", rich_help_panel="Alerts")


_app = typer.Typer(no_args_is_help=True, help="What people are told.")


@_app.callback()
def _alerts() -> None:
    """What people are told."""


@_app.command()
def tail(
    person: Annotated[str | None, typer.Option("--person", help="One person's alone.")] = None,
    from_beginning: Annotated[
        bool, typer.Option("--from-beginning", help="First all that the topic still holds.")
    ] = False,
    tenant: Annotated[str, typer.Option("--tenant", help="Whose.")] = "default",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Show alerts as they come, with the reasons for each, until Ctrl-C."""
    from penstock.infra.cli import output
    from penstock.infra.kafka_clients import Tail, topic_codec
    from penstock.infra.settings import load
    from penstock.schemas import jsonl
    from penstock.schemas.errors import WireError
    from penstock.schemas.topics import ALERTS

    settings = load()
    codec = topic_codec(settings.kafka, ALERTS)
    try:
        with closing(Tail(settings.kafka, [ALERTS.name], from_beginning=from_beginning)) as feed:
            if not as_json:
                output.say("waiting for alerts; Ctrl-C ends", style="dim")
            while True:
                for message in feed.poll(POLL_S):
                    try:
                        alert = codec.decode(message.value() or b"")
                    except WireError as error:
                        output.say(f"an alert that cannot be read: {error}", style="red")
                        continue
                    if alert.tenant == tenant and person in (None, alert.person_id):
                        print(jsonl.dumps(alert) if as_json else "\n".join(lines(alert, output.now_ms())), flush=True)
    except KeyboardInterrupt:
        raise typer.Exit(0) from None
    except BrokenPipeError:
        # Whoever read this has enough. Nothing more may be written, not even by the interpreter when it leaves.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None


def lines(alert: Alert, now_ms: int) -> list[str]:
    """What a person reads of an alert: the posting, then one line for each subscription it satisfies. Pure."""
    from penstock.infra.cli.output import ago
    from penstock.schemas.times import format_time

    shown = alert.attributes
    told = ", ".join(part for part in (shown.company, place_of(shown)) if part)
    when = ago(alert.alerted_at, now_ms)
    out = [f"{alert.person_id} · {shown.title}{f' — {told}' if told else ''} ({alert.posting_id}, {when})"]
    out += [f"    {_reason(match)}" for match in alert.matches]
    if alert.deliver_after is not None:
        out.append(f"    to be shown from {format_time(alert.deliver_after)}")
    out += [f"    degraded: {reason}" for reason in alert.degraded]
    return [_printable(line) for line in out]


def _reason(match: Match) -> str:
    score = f"score {match.score:.2f}" if match.score is not None else f"match {match.match_score:.2f}"
    return f"because {match.reason or 'it matches'} [{match.subscription_id}, {score}]"


def _printable(text: str) -> str:
    """Without control characters: a title is not allowed to move the cursor."""
    return "".join(char if char.isprintable() else " " for char in text)
