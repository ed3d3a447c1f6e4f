"""What can go wrong with a local stack. Every message says what was found and what to do."""

from __future__ import annotations


class StackError(Exception):
    """The stack could not be brought where it should be."""


class PartFailed(StackError):
    """One part did not come up. Names the part, what was seen, its last log lines and what to do."""

    def __init__(self, part: str, reason: str, log_tail: str, remedy: str) -> None:
        self.part = part
        self.reason = reason
        log = "".join(f"\n  | {line}" for line in log_tail.splitlines())
        super().__init__(f"{part}: {reason}{log}\n{remedy}")


class PortTaken(StackError):
    """A port that settings name is in use."""


class Cancelled(StackError):
    """Another part failed, or the user pressed Ctrl-C, while this one was coming up."""


class TopicsDiffer(StackError):
    """Topics exist with other partitions or configuration than schemas/topics.py promises."""
