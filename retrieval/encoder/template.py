"""How a posting becomes the one text that every dense encoder reads.

The template is part of every encoder_id: change it, raise its number and fit the tables again.
"""

from __future__ import annotations

from penstock.schemas.events import PostingText

TEMPLATE_ID = "t1"


def posting_text(posting: PostingText, description_chars: int | None = None) -> str:
    """Title and attributes first, so that truncation costs only the description's tail."""
    return f"{attribute_text(posting)}\n{posting.description[:description_chars]}"


def attribute_text(posting: PostingText) -> str:
    """Title and attributes alone, one sentence each."""
    parts = (posting.title, posting.category, posting.company, posting.location, posting.grade)
    text = ". ".join(part for part in parts if part)
    return f"{text}. {', '.join(posting.skills)}" if posting.skills else text
