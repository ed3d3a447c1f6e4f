"""Which framing a topic has here: Confluent's where a schema registry is configured, single-object otherwise.

Dead letters are single-object everywhere: they are looked at when things are broken, and the registry may be one of
them. The one place that turns settings into codecs; producers, jobs and roles all ask it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from penstock.schemas.events import DeadLetter
from penstock.schemas.topics import Topic
from penstock.schemas.wire import Codec, codec

_made: dict[tuple[str, tuple[tuple[str, str], ...]], Codec[Any]] = {}


def topic_codec(topic: Topic, schema_registry: Mapping[str, str]) -> Codec[Any]:
    """The codec of a topic's values. `schema_registry` is `settings.kafka.schema_registry`; empty means none."""
    if not schema_registry or topic.record is DeadLetter:
        return codec(topic.record)
    key = (topic.name, tuple(sorted(schema_registry.items())))
    found = _made.get(key)
    if found is None:
        from penstock.schemas.registry import ConfluentRegistry

        found = _made[key] = Codec(
            topic.record, registry=ConfluentRegistry(dict(schema_registry)), subject=f"{topic.name}-value"
        )
    return found
