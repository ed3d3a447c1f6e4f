"""`penstock subscriptions add | list | remove`: what people want to be told about, straight from and to the topic."""

from __future__ import annotations

import time
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.infra.cli.search import FILTER_HELP, AsJson, complete_filter, parse_filters

if TYPE_CHECKING:
    from penstock.infra.settings import Settings
    from penstock.schemas.events import QuietHours, Subscription

CADENCES = ("INSTANT", "HOURLY", "DAILY", "WEEKLY", "AUTO")
ASK_AGAIN_S = 0.2

Tenant = Annotated[str, typer.Option("--tenant", help="Whose.")]
Wait = Annotated[float, typer.Option("--wait", min=0.0, metavar="SECONDS", help="How long to wait until it holds.")]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Only publish it.")]


def register(app: typer.Typer) -> None:
    """Add the `subscriptions` commands to `app`."""
    app.add_typer(_app, name="subscriptions", rich_help_panel="Alerts")


_app = typer.Typer(no_args_is_help=True, help="What people want to be told about.")


class NotInForce(Exception):
    """It was published, and new postings did not meet it (or, removed, still did) within the time given."""


@_app.command()
def add(
    person: Annotated[str, typer.Option("--person", help="Who is told.")],
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What to be told about, in words.")] = "",
    subscription_id: Annotated[
        str | None, typer.Option("--id", help="To change one, its id; left out, one is made.")
    ] = None,
    filters: Annotated[
        list[str] | None,
        typer.Option("--filter", "-f", metavar="F", help=FILTER_HELP, autocompletion=complete_filter),
    ] = None,
    min_score: Annotated[
        float | None, typer.Option("--min-score", min=0.0, max=1.0, help="What the ranker must give a posting.")
    ] = None,
    max_per_day: Annotated[int | None, typer.Option("--max-per-day", min=1, help="Alerts a day at most.")] = None,
    cadence: Annotated[str, typer.Option("--cadence", help=", ".join(CADENCES))] = "INSTANT",
    quiet: Annotated[
        str | None, typer.Option("--quiet", metavar="HH:MM-HH:MM", help="Local times without alerts: 22:00-07:00.")
    ] = None,
    time_zone: Annotated[str, typer.Option("--time-zone", help="IANA name: America/New_York.")] = "UTC",
    tenant: Tenant = "default",
    wait: Wait = 30.0,
    no_wait: NoWait = False,
    as_json: AsJson = False,
) -> None:
    """Subscribe a person, and wait until new postings meet the subscription.

    The same --id again changes it. Words, a --filter, or both.
    """
    import uuid

    from penstock.infra.cli import output
    from penstock.infra.settings import load
    from penstock.schemas.events import Cadence, Subscription

    if cadence.upper() not in CADENCES:
        raise typer.BadParameter(f"{cadence!r}; one of {', '.join(CADENCES)}", param_hint="--cadence")
    known = None if subscription_id is None else newest(load()).get(subscription_id)
    if known is not None and known.op != "DELETE" and (known.tenant, known.person_id) != (tenant, person):
        raise typer.BadParameter(f"{subscription_id!r} is somebody else's: choose another", param_hint="--id")
    event = Subscription(
        subscription_id=subscription_id or f"sub-{uuid.uuid4().hex}",
        version=output.now_ms() if known is None else max(output.now_ms(), known.version + 1),
        tenant=tenant,
        person_id=person,
        text=text,
        filters=parse_filters(filters or []),
        cadence=Cadence(cadence.upper()),
        max_per_day=max_per_day,
        min_score=min_score,
        time_zone=time_zone,
        quiet_hours=_quiet(quiet),
    )
    _publish_and_wait(event, None if no_wait else wait, as_json=as_json)


@_app.command(name="list")
def list_(
    person: Annotated[str | None, typer.Option("--person", help="One person's alone.")] = None,
    tenant: Tenant = "default",
    as_json: AsJson = False,
) -> None:
    """Show the subscriptions there are, and which of them new postings meet."""
    from penstock.infra.cli import output
    from penstock.infra.settings import load
    from penstock.schemas import jsonl
    from penstock.schemas.filters import describe

    settings = load()
    found = [one for one in living(settings, tenant) if person in (None, one.person_id)]
    in_force, trouble = _in_force(settings, found)
    if as_json:
        shown = [{**jsonl.to_json(one), "in_force": in_force.get(one.subscription_id)} for one in found]
        output.emit({"subscriptions": shown, "degraded": [trouble] if trouble else []})
        return
    if trouble:
        output.say(f"degraded: {trouble}", style="yellow")
    if not found:
        output.say("no subscriptions")
        return
    table = output.table("id", "person", "wants", "cadence", "in force", fold=("id", "wants"))
    for one in found:
        wants = " · ".join(part for part in (one.text, describe(one.filters) if one.filters else "") if part)
        held = {True: "yes", False: "not yet", None: "unknown"}[in_force.get(one.subscription_id)]
        if one.state != "ACTIVE":
            held = one.state.lower()
        table.add_row(*map(output.cut, (one.subscription_id, one.person_id)), output.cut(wants), one.cadence, held)
    output.out().print(table)


@_app.command()
def remove(
    subscription_id: Annotated[str, typer.Argument(metavar="ID", help="The subscription's id.")],
    tenant: Tenant = "default",
    wait: Wait = 30.0,
    no_wait: NoWait = False,
    as_json: AsJson = False,
) -> None:
    """End a subscription. Exit code 1 when there is none with this id."""
    from penstock.infra.cli import output
    from penstock.infra.settings import load
    from penstock.schemas.events import Op, Subscription

    known = {one.subscription_id: one for one in living(load(), tenant)}.get(subscription_id)
    if known is None:
        output.say(f"there is no subscription {subscription_id!r}")
        raise typer.Exit(1)
    event = Subscription(
        subscription_id=subscription_id,
        version=max(output.now_ms(), known.version + 1),
        op=Op.DELETE,
        tenant=tenant,
        person_id=known.person_id,
    )
    _publish_and_wait(event, None if no_wait else wait, as_json=as_json)


def _quiet(given: str | None) -> QuietHours | None:
    from penstock.schemas.events import QuietHours

    if given is None:
        return None
    start, dash, end = given.partition("-")
    if not dash:
        raise typer.BadParameter(f"{given!r}; two local times such as 22:00-07:00", param_hint="--quiet")
    return QuietHours(start=start.strip(), end=end.strip())


def _publish_and_wait(event: Subscription, wait_s: float | None, *, as_json: bool) -> None:
    from penstock.infra.cli import output
    from penstock.infra.kafka_clients import Publisher, check_broker
    from penstock.infra.settings import load
    from penstock.schemas.topics import SUBSCRIPTIONS
    from penstock.schemas.validate import check_subscription

    check_subscription(event)
    settings = load()
    check_broker(settings.kafka, [SUBSCRIPTIONS.name])
    began = time.monotonic()
    with Publisher(settings.kafka) as publisher:
        publisher.publish(SUBSCRIPTIONS, event)
    ended = event.op == "DELETE"
    held = wait_s is not None and _wait(settings, event, began + wait_s)
    seconds = time.monotonic() - began
    if as_json:
        output.emit(
            {"subscription_id": event.subscription_id, "version": event.version, "in_force": held and not ended,
             "ended": held and ended, "seconds": round(seconds, 3)}
        )  # fmt: skip
    elif wait_s is None:
        output.say(f"published {event.subscription_id}")
    elif held:
        output.say(f"{event.subscription_id} {'has ended' if ended else 'is in force'} after {seconds:.1f} s")
    if wait_s is not None and not held:
        what = "still in force" if ended else "not in force"
        raise NotInForce(
            f"{event.subscription_id} is published and {what} after {wait_s:.0f} s: `penstock status` says whether the "
            "alerts job and retrieval are well"
        )


def _wait(settings: Settings, event: Subscription, deadline: float) -> bool:
    """Until retrieval has heard of this version: percolated, or gone where it was a deletion."""
    from penstock.retrieval.client import RetrievalClient, shard_addresses
    from penstock.schemas.rpc import StandingRequest

    ask = StandingRequest(tenant=event.tenant, subscription_ids=(event.subscription_id,))
    with closing(RetrievalClient(shard_addresses(settings.retrieval))) as retrieval:
        while True:
            reply = retrieval.standing(ask, timeout=max(0.5, min(5.0, deadline - time.monotonic())))
            if reply.versions[0] >= event.version and reply.in_force[0] == (event.op != "DELETE"):
                return True
            if time.monotonic() + ASK_AGAIN_S > deadline:
                return False
            time.sleep(ASK_AGAIN_S)


def living(settings: Settings, tenant: str) -> list[Subscription]:
    """The tenant's subscriptions that are not deleted, by id."""
    return [one for _, one in sorted(newest(settings).items()) if one.op != "DELETE" and one.tenant == tenant]


def newest(settings: Settings) -> dict[str, Subscription]:
    """What the compacted topic says of each id, deleted ones too."""
    from penstock.infra.kafka_clients import read_all, topic_codec
    from penstock.schemas.errors import WireError
    from penstock.schemas.topics import SUBSCRIPTIONS

    codec = topic_codec(settings.kafka, SUBSCRIPTIONS)
    found: dict[str, Subscription] = {}
    for message in read_all(settings.kafka, [SUBSCRIPTIONS.name]):
        value = message.value()
        if value is None:
            continue
        try:
            one = codec.decode(value)
        except WireError:
            continue  # the alerts job has made it a dead letter
        before = found.get(one.subscription_id)
        if before is None or one.version >= before.version:
            found[one.subscription_id] = one
    return found


def _in_force(settings: Settings, found: list[Subscription]) -> tuple[dict[str, Any], str]:
    """Whether each is percolated, and why that is not known."""
    if not found:
        return {}, ""
    from penstock.retrieval.client import RetrievalClient, shard_addresses
    from penstock.schemas.grpc_avro import CallError
    from penstock.schemas.rpc import StandingRequest

    ids = tuple(one.subscription_id for one in found)
    try:
        with closing(RetrievalClient(shard_addresses(settings.retrieval))) as retrieval:
            reply = retrieval.standing(StandingRequest(tenant=found[0].tenant, subscription_ids=ids), timeout=5.0)
    except CallError as error:
        return {}, f"what is in force is not known: {error}"
    told = zip(found, reply.versions, reply.in_force, strict=True)
    return {one.subscription_id: held and version >= one.version for one, version, held in told}, ""
