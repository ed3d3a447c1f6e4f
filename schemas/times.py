"""Times on the wire are epoch milliseconds; people may also write ISO 8601 with an offset."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from penstock.schemas.errors import InvalidRecord

EARLIEST = 0
LATEST = 253_402_300_799_999  # 9999-12-31T23:59:59.999Z

_EXPECTED = "epoch milliseconds, or ISO 8601 with an offset such as 2026-11-21T09:00:00Z"


def parse_time(field: str, given: object) -> int:
    """Epoch milliseconds of an int, a string of digits or an ISO 8601 string. Raises InvalidRecord."""
    if isinstance(given, int) and not isinstance(given, bool):
        millis = given
    elif isinstance(given, str) and re.fullmatch(r"\d+", given):
        millis = int(given)
    elif isinstance(given, str):
        try:
            moment = datetime.fromisoformat(given)
        except ValueError:
            raise InvalidRecord(field, given, _EXPECTED) from None
        if moment.tzinfo is None:
            raise InvalidRecord(field, given, f"a time with an offset ({_EXPECTED})")
        millis = round(moment.timestamp() * 1000)
    else:
        raise InvalidRecord(field, given, _EXPECTED)
    if not EARLIEST <= millis <= LATEST:
        raise InvalidRecord(field, given, "a time between 1970 and 9999")
    return millis


def format_time(millis: int) -> str:
    """ISO 8601 in UTC, milliseconds kept."""
    return datetime.fromtimestamp(millis / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
