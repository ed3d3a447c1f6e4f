"""What the store refuses. Each error says what was given, what was expected and what to do."""

from __future__ import annotations

from penstock.schemas.errors import InvalidRecord


class SpaceMismatch(InvalidRecord):
    """A query vector of a space whose inner product with the stored vectors means nothing."""

    def __init__(self, given: str, stored: str) -> None:
        super().__init__(
            "vector.space_id", given, f"{stored!r}, the space of the stored vectors: encode the query with its encoder"
        )


class EpochGone(InvalidRecord):
    """A read at an epoch that is not held: already retired, or not yet published."""

    def __init__(self, given: int, oldest: int, newest: int) -> None:
        super().__init__("at_epoch", given, f"an epoch still held, from {oldest} to {newest}: read the newest instead")


class HashCollision(InvalidRecord):
    """Two ids with the same stable hash: the order of hits could no longer be total, so the second is refused."""

    def __init__(self, given: str, holder: str) -> None:
        super().__init__(
            "posting_id", given, f"an id whose 64-bit hash differs from that of {holder!r}: give the posting another id"
        )


class OutOfRoom(Exception):
    """A write that does not fit into the memory the store was given. Not the record's fault: it may be tried again.

    `setting`: what bounds that memory, the host's or a device's."""

    def __init__(self, what: str, needed: int, held: int, limit: int, setting: str = "retrieval.memory_bytes") -> None:
        self.needed, self.held, self.limit = needed, held, limit
        super().__init__(
            f"{what} needs {needed:,} bytes, the store holds {held:,} of {limit:,}: raise {setting}, "
            "share the partitions among more shards, or wait until postings expire"
        )


class SnapshotCorrupt(Exception):
    """A snapshot that is cut short, altered, or of another format: names the file and the part."""
