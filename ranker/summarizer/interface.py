"""What a summariser is: a posting's text in, a short text that fits a budget out."""

from __future__ import annotations

from typing import Protocol

from penstock.schemas.events import PostingText


class Summarizer(Protocol):
    """Deterministic, and callable from several threads. The answer never exceeds the budget it was made with."""

    @property
    def summarizer_id(self) -> str:
        """Algorithm, version and budget: part of every cache key."""
        ...

    def summarize(self, posting: PostingText) -> str:
        """What a ranking model should read of the description; empty when there is nothing to read."""
        ...

    def item_text(self, posting: PostingText, summary: str) -> str:
        """What the ranking model reads of the posting as a whole: attributes and `summary`, bounded."""
        ...
