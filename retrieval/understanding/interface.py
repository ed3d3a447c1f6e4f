"""What understanding a query is: its words in, the filters that they state out."""

from __future__ import annotations

from typing import Protocol

from penstock.schemas.events import Understood


class Understander(Protocol):
    """Deterministic and pure: the same words at the same moment always read the same. Callable from several threads."""

    def understand(self, text: str, *, now_ms: int) -> tuple[Understood, ...]:
        """What the words rule out, in the order it was read.

        Each filter excludes known violations only (missing = INCLUDE); what is a mere wish yields nothing.
        `now_ms`, epoch milliseconds, is what "this week" counts from.
        """
        ...
