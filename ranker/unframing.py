"""Bytes of a topic to records, telling a record's own fault from the schema registry's."""

from __future__ import annotations

from typing import TypeVar

from penstock.ranker.errors import RankerError
from penstock.schemas.errors import WireError
from penstock.schemas.wire import Codec

R = TypeVar("R")


class RegistryAway(RankerError):
    """The schema registry did not say how a record is to be read. Not the record's fault: it is read again later."""


def unframed(codec: Codec[R], value: bytes) -> R:
    """The record. Raises WireError for what is wrong with it, RegistryAway for what is wrong with its registry."""
    try:
        return codec.decode(value)
    except WireError:
        raise
    except Exception as error:  # decoding raises nothing else of its own: the registry's client does
        raise RegistryAway(
            f"the schema registry does not give the writer's schema ({type(error).__name__}: {error}): "
            "start it, or correct kafka.schema_registry"
        ) from error
