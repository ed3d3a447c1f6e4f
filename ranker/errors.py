"""What can go wrong between a rank request and its answer: each error says what was given and what to do."""

from __future__ import annotations


class RankerError(Exception):
    """Base of the ranker's own errors."""


class QueueFull(RankerError):
    """The request was not let in. Whoever asked may come back after `retry_after_s`.

    `tenant`: its tenant is ahead of its share; otherwise there is too much to do for everybody.
    """

    def __init__(self, retry_after_s: float, why: str, tenant: bool) -> None:
        self.retry_after_s = retry_after_s
        self.why = why
        self.tenant = tenant
        whose = "its tenant is ahead of its fair share while others wait" if tenant else "the ranker is full"
        super().__init__(
            f"not let in ({why}): {whose}; ask again in {retry_after_s:.2f} s, with a later deadline, or add a ranker"
        )


class QueueClosed(RankerError):
    """The ranker is stopping and takes no more requests."""

    def __init__(self) -> None:
        super().__init__("the ranker is stopping; ask another replica or try again")


class DeadlinePassed(RankerError, TimeoutError):
    """The answer would have come too late, so the work was not done. Callers over gRPC see DEADLINE_EXCEEDED."""

    def __init__(self, stage: str, *, late_ms: int, waited_ms: float | None = None) -> None:
        self.stage = stage
        waited = f" after {waited_ms:.0f} ms here" if waited_ms is not None else ""
        super().__init__(
            f"deadline passed before {stage}: {late_ms} ms late{waited}; "
            "send a later deadline, or ask for less (depth, page.size)"
        )


class ModelsAway(RankerError):
    """The models role did not answer (or did not a moment ago, and is not asked again yet)."""


class CallerLeft(RankerError):
    """Whoever asked no longer waits, so the work was dropped."""


class RankFailed(RankerError):
    """A stage of one request failed; the cause is in the message and in `__cause__`."""

    def __init__(self, stage: str, cause: BaseException) -> None:
        self.stage = stage
        self.cause = cause
        super().__init__(f"{stage}: {type(cause).__name__}: {cause}")


class NonFiniteScore(RankerError):
    """A scorer gave something that is not a probability. It is never ranked."""


class NoScores(RankerError):
    """A scorer gives none now. A cheaper one may stand in, and the answer then says so."""


class UnfitScorer(RankerError):
    """The configured scorer cannot be used: a directory or weight file is missing, damaged or of the wrong kind."""


class RedisAway(RankerError):
    """Redis did not answer (or did not a moment ago, and is not asked again yet)."""
