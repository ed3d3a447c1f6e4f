"""How new a posting must be: "posted this week", "in the last 3 days", "since yesterday"."""

from __future__ import annotations

import re

from penstock.retrieval.understanding.reading import Found, Reading
from penstock.schemas import filters
from penstock.schemas.events import Missing

DAY_MS = 86_400_000
_UNITS = {"hour": DAY_MS // 24, "day": DAY_MS, "week": 7 * DAY_MS, "month": 31 * DAY_MS}
_MOST = 366  # of any unit: past it nobody means a posting's age

_POSTED = r"(?:posted|listed|published|added|opened|advertised|new|jobs?|postings?)"
_WITHIN = re.compile(
    rf"\b{_POSTED}\s+(?:\w+\s+){{0,2}}?(?:in|within|over|during|from)?\s*(?:the )?(?:last|past|previous)\s+"
    r"(?:(?P<count>\d{1,3})\s+)?(?P<unit>hour|day|week|month)s?\b"
)
_THIS = re.compile(
    r"\b(?:posted|listed|published|added|opened|advertised|new)\s+(?P<when>today|yesterday|this week|this month)\b"
)
_SINCE = {"today": DAY_MS, "yesterday": 2 * DAY_MS, "this week": 7 * DAY_MS, "this month": 31 * DAY_MS}


def read_recency(reading: Reading) -> list[Found]:
    if match := _WITHIN.search(reading.lowered):
        count = int(match["count"] or 1)
        if not 0 < count <= _MOST:
            return []
        age = count * _UNITS[match["unit"]]
        unit = match["unit"] if count == 1 else f"{count} {match['unit']}s"
        label = f"posted in the last {unit}"
    elif match := _THIS.search(reading.lowered):
        age = _SINCE[match["when"]]
        label = f"posted {match['when']}" if match["when"].startswith("this") else f"posted since {match['when']}"
    else:
        return []
    if reading.negated(match.start()) or reading.soft(match.start(), match.end()):
        return []
    clause = filters.in_range("posted_at", minimum=float(reading.now_ms - age), missing=Missing.INCLUDE)
    return [Found(match.start(), match.end(), label, clause)]
