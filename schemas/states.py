"""Records that jobs keep in Flink state. They evolve as events do: a savepoint of an older version must restore."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from penstock.schemas.events import IndexUpdate
from penstock.schemas.records import Millis


@dataclass(frozen=True, slots=True, kw_only=True)
class PostingState:
    """What the postings job knows of one posting id, packed into one value: a read is one round trip."""

    update: Annotated[IndexUpdate, "the newest one emitted; its tenant owns the id"]
    event_hash: Annotated[bytes, "of the posting event behind it, to tell repeats from conflicts"]
    text_hash: Annotated[str | None, "of the text that models read; null once deleted or expired"] = None
    refined: Annotated[bool, "whether the vector and summary came from the slow lane"] = False
    clear_at: Annotated[Millis | None, "when the tombstone may be forgotten; null while live"] = None
