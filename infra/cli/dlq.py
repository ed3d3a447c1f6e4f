"""`penstock dlq list | show | replay`: what was refused, why, and how to send it again.

A letter is addressed by its place, TOPIC/PARTITION:OFFSET (the topic is the one whose records were refused). A replay
publishes the raw bytes untouched to that topic, under the refused record's own timestamp: an event that was too old for
a deleted posting stays too old and cannot bring it back. The letter stays until retention takes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from penstock.infra.settings import Settings
    from penstock.schemas.events import DeadLetter


def complete_topic(incomplete: str) -> list[str]:
    """The topics that may have dead letters."""
    from penstock.schemas.topics import TOPICS

    return [topic.name for topic in TOPICS if topic.name.startswith(incomplete)]


OnTopic = Annotated[
    str | None,
    typer.Option("--topic", help="Only records refused on this topic.", autocompletion=complete_topic),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]

BYTES_A_LINE = 16
MOST_SHOWN = 4096  # bytes of a letter in the table form


def register(app: typer.Typer) -> None:
    """Add the `dlq` commands to `app`."""
    app.add_typer(_app, name="dlq", rich_help_panel="Postings and queries")


_app = typer.Typer(no_args_is_help=True, help="Dead letters: records that could not be used, bytes untouched.")


class NoSuchLetter(Exception):
    """An address that fits no letter, or more than one."""


@dataclass(frozen=True, slots=True)
class Letter:
    """One dead letter and where it lies."""

    partition: int
    offset: int
    letter: DeadLetter

    @property
    def place(self) -> str:
        return f"{self.letter.topic}/{self.partition}:{self.offset}"


@_app.command("list")
def list_(topic: OnTopic = None, as_json: AsJson = False) -> None:
    """Group the letters by topic, stage and error, with counts and the newest of each."""
    from rich.markup import escape

    from penstock.infra.cli import output
    from penstock.infra.settings import load

    letters = read(load(), topic)
    groups = grouped(letters)
    if as_json:
        output.emit({"groups": groups, "letters": [_summary(item) for item in letters]})
        return
    if not groups:
        output.say("no dead letters")
        return
    now = output.now_ms()
    table = output.table("topic", "stage", "error", "count", "newest", "place", right=("count",))
    for group in groups:
        newest = group["newest"]
        cells = (group["topic"], group["stage"], group["error_class"], str(group["count"]))
        table.add_row(
            *map(escape, cells),
            output.ago(newest["failed_at"], now),
            newest["place"].split("/", 1)[1],
        )
    output.out().print(table)
    output.out().print("\nthe newest of each:", style="bold")
    for group in groups:
        newest = group["newest"]
        output.out().print(f"{newest['place'].split('/', 1)[1]:>8}  {escape(_short(newest['message']))}")
    output.say("`penstock dlq show TOPIC/PARTITION:OFFSET` has the bytes", style="dim")


@_app.command()
def show(
    place: Annotated[str, typer.Argument(metavar="ID", help="TOPIC/PARTITION:OFFSET, or PARTITION:OFFSET.")],
    topic: OnTopic = None,
    as_json: AsJson = False,
) -> None:
    """Show one letter: who refused it and why, its bytes, and what they say if they can be read."""
    from rich.markup import escape

    from penstock.infra.cli import output
    from penstock.infra.settings import load
    from penstock.schemas import jsonl
    from penstock.schemas.times import format_time

    settings = load()
    (found,) = pick(read(settings, topic), [place])
    letter, decoded = found.letter, _decoded(settings, found.letter)
    if as_json:
        output.emit({"place": found.place, **jsonl.to_json(letter), "decoded": decoded})
        return
    table = output.table("field", "value", fold=("value",))
    key = None if letter.key is None else letter.key.decode("utf-8", "backslashreplace")
    produced = None if letter.produced_at is None else format_time(letter.produced_at)
    for name, value in (
        ("place", found.place),
        ("key", key),
        ("stage", letter.stage),
        ("error", f"{letter.error_class}: {letter.message}"),
        ("attempt", letter.attempt),
        ("produced at", produced),
        ("refused at", format_time(letter.failed_at)),
        ("size", f"{len(letter.raw)} bytes"),
    ):
        if value is not None:
            table.add_row(name, escape(str(value)))
    console = output.out()
    console.print(table)
    console.print(hex_dump(letter.raw[:MOST_SHOWN]), markup=False, soft_wrap=True)
    if len(letter.raw) > MOST_SHOWN:
        output.say(f"… {len(letter.raw) - MOST_SHOWN} more bytes (--json has them all, as base64)")
    if decoded is not None:
        console.print_json(data=decoded)


@_app.command()
def replay(
    places: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Letters to send again.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every letter (of --topic).")] = False,
    topic: OnTopic = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Publish raw bytes again, untouched, to the topics they were refused on. The same bytes go once.

    Each keeps the timestamp of the record that was refused.
    """
    from penstock.infra.cli import output
    from penstock.infra.kafka_clients import Publisher, check_broker
    from penstock.infra.settings import load

    if bool(places) == everything:
        raise typer.BadParameter("name the letters, or say --all", param_hint="ID")
    settings = load()
    letters = read(settings, topic)
    chosen = letters if everything else pick(letters, places or [])
    once = list({(item.letter.topic, item.letter.key, item.letter.raw): item for item in chosen}.values())
    if not once:
        output.say("no dead letters")
        return
    topics = sorted({item.letter.topic for item in once})
    if not yes:
        typer.confirm(f"publish {len(once)} records to {', '.join(topics)} again?", abort=True, err=True)
    check_broker(settings.kafka, topics)
    with Publisher(settings.kafka) as publisher:
        for item in once:
            letter = item.letter
            publisher.publish_raw(letter.topic, _key(settings, letter), letter.raw, timestamp_ms=_timestamp(letter))
    for name in topics:
        output.say(f"{sum(1 for item in once if item.letter.topic == name)} records published to {name} again")
    if len(once) < len(chosen):
        output.say(f"{len(chosen) - len(once)} letters held the same bytes as another and went once")


# --- reading -----------------------------------------------------------------------------------------------------


def read(settings: Settings, topic: str | None) -> list[Letter]:
    """Every letter there is, oldest first. `topic` may be the refused records' topic or its .dlq."""
    from penstock.infra.cli.output import say
    from penstock.infra.kafka_clients import existing_topics, place_of, read_all
    from penstock.schemas import topics
    from penstock.schemas.errors import WireError
    from penstock.schemas.events import DeadLetter
    from penstock.schemas.wire import codec

    if topic is None:
        there = existing_topics(settings.kafka)
        wanted = [known.dead_letters for known in topics.TOPICS if known.dead_letters in there]
    else:
        name = topic.removesuffix(".dlq")
        if name not in {known.name for known in topics.TOPICS}:
            raise typer.BadParameter(
                f"{topic!r}; there are {', '.join(known.name for known in topics.TOPICS)}", param_hint="--topic"
            )
        wanted = [f"{name}.dlq"]
    letters = []
    for message in read_all(settings.kafka, wanted):
        place = place_of(message)
        try:
            letter = codec(DeadLetter).decode_unbounded(message.value() or b"")
        except WireError as error:
            say(f"{place.topic}/{place.partition}:{place.offset} is no dead letter: {error}", style="yellow")
            continue
        letters.append(Letter(place.partition, place.offset, letter))
    return sorted(letters, key=lambda item: item.letter.failed_at)


def grouped(letters: Sequence[Letter]) -> list[dict[str, Any]]:
    """Counts by (topic, stage, error class) with the newest of each, the largest group first."""
    groups: dict[tuple[str, str, str], list[Letter]] = {}
    for item in letters:
        letter = item.letter
        groups.setdefault((letter.topic, letter.stage, letter.error_class), []).append(item)
    return [
        {
            "topic": topic,
            "stage": stage,
            "error_class": error_class,
            "count": len(members),
            "newest": _summary(max(members, key=lambda item: item.letter.failed_at)),
        }
        for (topic, stage, error_class), members in sorted(groups.items(), key=lambda pair: -len(pair[1]))
    ]


def pick(letters: Sequence[Letter], places: Sequence[str]) -> list[Letter]:
    """The letters at these places, in that order. Raises NoSuchLetter."""
    chosen = []
    for place in places:
        found = [item for item in letters if place in (item.place, f"{item.partition}:{item.offset}")]
        if len(found) != 1:
            problem = (
                f"{len(found)} topics have a letter at {place}: write TOPIC/{place}"
                if found
                else f"no dead letter at {place!r}; `penstock dlq list --json` names them as TOPIC/PARTITION:OFFSET"
            )
            raise NoSuchLetter(problem)
        chosen += found
    return chosen


def _summary(item: Letter) -> dict[str, Any]:
    letter = item.letter
    return {
        "place": item.place,
        "stage": letter.stage,
        "error_class": letter.error_class,
        "message": letter.message,
        "attempt": letter.attempt,
        "bytes": len(letter.raw),
        "failed_at": letter.failed_at,
    }


def _decoded(settings: Settings, letter: DeadLetter) -> dict[str, Any] | None:
    """What the bytes say, when they are a record at all."""
    from penstock.schemas import jsonl, topics
    from penstock.schemas.errors import WireError
    from penstock.schemas.framing import topic_codec

    try:
        topic = topics.topic_named(letter.topic)
        return jsonl.to_json(topic_codec(topic, settings.kafka.schema_registry).decode(letter.raw))
    except WireError:
        return None  # that it cannot be read is often why it is here; its message says so


def _key(settings: Settings, letter: DeadLetter) -> bytes | None:
    """The letter's key; Flink's source hands on none, so then the record's own, if it can be read."""
    from penstock.schemas import topics
    from penstock.schemas.errors import WireError
    from penstock.schemas.framing import topic_codec

    if letter.key is not None:
        return letter.key
    topic = topics.topic_named(letter.topic)
    try:
        return topic.key(topic_codec(topic, settings.kafka.schema_registry).decode(letter.raw)).encode()
    except WireError:
        return None


def _timestamp(letter: DeadLetter) -> int:
    """The refused record's own; where the broker kept none, the moment it was refused, never a newer one."""
    return letter.failed_at if letter.produced_at is None else letter.produced_at


def hex_dump(raw: bytes) -> str:
    """Offset, hex and printable ASCII, sixteen bytes a line."""
    lines = []
    for start in range(0, len(raw), BYTES_A_LINE):
        part = raw[start : start + BYTES_A_LINE]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        lines.append(f"{start:08x}  {part.hex(' '):<{BYTES_A_LINE * 3}} {text}")
    return "\n".join(lines)


def _short(message: str, most: int = 100) -> str:
    return message if len(message) <= most else f"{message[: most - 1]}…"
