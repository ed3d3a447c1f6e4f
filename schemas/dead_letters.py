"""How a refused record becomes a dead letter: its bytes untouched, with who refused it and why."""

from __future__ import annotations

from penstock.schemas.events import DeadLetter
from penstock.schemas.topics import Topic


def dead_letter(
    topic: Topic,
    *,
    key: bytes | None,
    raw: bytes,
    stage: str,
    error: Exception,
    failed_at: int,
    produced_at: int | None = None,
    attempt: int = 1,
    trace: str | None = None,
) -> DeadLetter:
    """The dead letter of one record. Times in epoch milliseconds; `stage` is where it was refused."""
    return DeadLetter(
        topic=topic.name,
        key=key,
        raw=raw,
        stage=stage,
        error_class=type(error).__name__,
        message=str(error),
        attempt=attempt,
        produced_at=produced_at,
        failed_at=failed_at,
        trace=trace,
    )
