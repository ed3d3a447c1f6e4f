"""Places in a feed as event ids: the offset of the last record seen in each partition. Pure.

2-41             seen up to offset 41 of partition 2 (an alert's own id)
0-15.1--1.2-41   one for each partition; -1: nothing of it yet
beginning        everything the feed still holds
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from penstock.schemas.errors import InvalidRecord

BEGINNING = "beginning"
MAX_PARTITIONS = 1_024
_ONE = re.compile(r"(0|[1-9]\d{0,8})-(-1|0|[1-9]\d{0,17})")  # partition and offset, as Kafka counts them


def write(seen: Mapping[int, int]) -> str:
    """The id of: in each partition everything up to this offset."""
    return ".".join(f"{partition}-{offset}" for partition, offset in sorted(seen.items()))


def read(text: str, field: str = "after") -> dict[int, int]:
    """Offsets last seen, by partition. Raises InvalidRecord."""
    expected = "the id of an event of this stream, unchanged, or 'beginning'"
    parts = text.split(".")
    if len(parts) > MAX_PARTITIONS:
        raise InvalidRecord(field, f"{len(parts)} partitions", expected)
    seen: dict[int, int] = {}
    for part in parts:
        match = _ONE.fullmatch(part)
        if match is None or int(match[1]) in seen:
            raise InvalidRecord(field, text, expected)
        seen[int(match[1])] = int(match[2])
    return seen


def starts(
    seen: Mapping[int, int] | None, ends: Mapping[int, int], *, from_beginning: bool, one_person: bool, field: str
) -> dict[int, int]:
    """The next offset to read of each partition. `ends`: the next offset the log will give, by partition.

    What an id does not name is read from now on for one person, whose alerts are all in one partition, and from the
    beginning for everybody's. Raises InvalidRecord for partitions that the feed does not have.
    """
    if from_beginning:
        return dict.fromkeys(ends, 0)
    if seen is None:
        return dict(ends)
    if strange := sorted(seen.keys() - ends.keys()):
        raise InvalidRecord(field, write(seen), f"partitions of this feed, 0 to {len(ends) - 1}, not {strange[0]}")
    unnamed = dict(ends) if one_person else dict.fromkeys(ends, 0)
    return {**unnamed, **{partition: offset + 1 for partition, offset in seen.items()}}
