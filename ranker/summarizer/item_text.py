"""What the ranking model reads of a posting: attributes on one line, the summary under it. Bounded, and versioned.

The template is part of every score's cache key: change it and raise its number.
"""

from __future__ import annotations

from penstock.schemas.events import PostingText

ITEM_TEMPLATE_ID = "item-1"

# Characters an attribute may take; past them it ends in an ellipsis.
_TITLE, _COMPANY, _PLACE, _GRADE, _SKILLS = 200, 120, 120, 40, 240


def item_text(posting: PostingText, summary: str) -> str:
    """title | company | place | grade | skills, absent ones left out, then the summary on a line of its own."""
    parts = (
        _short(posting.title, _TITLE),
        _short(posting.company, _COMPANY),
        _short(posting.location, _PLACE),
        _short(posting.grade, _GRADE),
        _short(", ".join(posting.skills), _SKILLS),
    )
    line = " | ".join(part for part in parts if part)
    return f"{line}\n{summary}" if summary else line


def _short(text: str | None, limit: int) -> str:
    bare = " ".join((text or "")[: 4 * limit].split())
    return bare if len(bare) <= limit else bare[: limit - 1].rstrip() + "…"
