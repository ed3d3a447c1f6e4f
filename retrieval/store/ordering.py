"""What a batch of updates comes to: the newest of each id, in (version, revision) order. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from penstock.retrieval.store.errors import HashCollision
from penstock.retrieval.store.records import Refusal
from penstock.schemas.errors import InvalidRecord
from penstock.schemas.events import IndexOp, IndexUpdate


@dataclass(frozen=True, slots=True)
class Batch:
    """Positions are in the sequence that was given."""

    newest: dict[str, int]  # id -> position of the update that will be visible
    accepted: tuple[int, ...]  # newer than everything known before them, the superseded included
    refused: tuple[Refusal, ...]
    stale: int


def reduce_batch(
    updates: Sequence[IndexUpdate],
    age_of: Callable[[str], tuple[int, int] | None],
    by_hash: Mapping[int, str],
    hash_id: Callable[[str], int],
) -> Batch:
    """Orders a batch against what is known: (version, revision) by id, and which id holds which hash."""
    newest: dict[str, int] = {}
    hashes: dict[int, str] = {}
    accepted: list[int] = []
    refused: list[Refusal] = []
    stale = 0
    for position, update in enumerate(updates):
        error = _wrong(update)
        if error is not None:
            refused.append(Refusal(position, error))
            continue
        posting_id = update.posting_id
        if posting_id in newest:
            before = updates[newest[posting_id]]
            age: tuple[int, int] | None = (before.version, before.revision)
        else:
            age = age_of(posting_id)
        if age is None:
            digest = hash_id(posting_id)
            holder = by_hash.get(digest) or hashes.setdefault(digest, posting_id)
            if holder != posting_id:
                refused.append(Refusal(position, HashCollision(posting_id, holder)))
                continue
        elif (update.version, update.revision) <= age:
            stale += 1
            continue
        newest[posting_id] = position
        accepted.append(position)
    return Batch(newest, tuple(accepted), tuple(refused), stale)


def _wrong(update: IndexUpdate) -> InvalidRecord | None:
    if not update.posting_id:
        return InvalidRecord("posting_id", update.posting_id, "an id of at least one byte")
    if update.op is IndexOp.UNKNOWN:
        return InvalidRecord("op", update.op, "UPSERT, DELETE or EXPIRE")
    if update.op is IndexOp.UPSERT and update.attributes is None:
        return InvalidRecord("attributes", None, "attributes on an UPSERT")
    return None
