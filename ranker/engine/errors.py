"""What can go wrong between a scoring request and the engine's answer: each error says what to do."""

from __future__ import annotations

from penstock.ranker.errors import NoScores


class UnreadableText(NoScores):
    """The tokenizer failed on a text."""


class EngineFull(NoScores):
    """As many tokens as may wait for a forward do. The caller tries later or scores without the language model."""

    def __init__(self, waiting: int, asked: int, limit: int) -> None:
        self.waiting = waiting
        super().__init__(
            f"{waiting} tokens wait for a forward and {asked} more were asked, at most {limit} may wait; "
            "try again later, ask for fewer items, or add a ranker"
        )


class EngineClosed(NoScores):
    """The engine is stopping, or was never started, and takes no requests."""

    def __init__(self) -> None:
        super().__init__("the engine is not running; ask another replica or try again")


class EngineStalled(NoScores):
    """A forward has hung. Nothing is taken in until it comes back; a worker whose device is lost must be restarted."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"a forward has not come back for {seconds:.0f} s; ask another replica, and restart this one if it stays so"
        )


class ItemTooLong(NoScores):
    """One prompt alone is longer than a forward may be."""

    def __init__(self, tokens: int, budget: int) -> None:
        super().__init__(
            f"a prompt of {tokens} tokens, a forward takes at most {budget}: cut the query or the item, "
            "or raise the budget"
        )


class ForwardFailed(NoScores):
    """The forward of a request failed, and again when it was tried alone on a restarted worker."""

    def __init__(self, cause: BaseException, attempts: int) -> None:
        self.cause = cause
        super().__init__(f"the forward failed {attempts} times, last with {type(cause).__name__}: {cause}")
