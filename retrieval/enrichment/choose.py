"""Which requests of a batch deserve work. Pure.

Invariant: of each posting at least its newest request is chosen, unless the posting has expired; what is left out
could only have made an answer that the postings job drops.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from penstock.schemas.events import EnrichRequest


@dataclass(frozen=True, slots=True)
class Choice:
    """Positions in the batch, in order."""

    chosen: tuple[int, ...]
    expired: tuple[int, ...] = ()
    superseded: tuple[int, ...] = ()  # by a newer version of the same posting, or said again later


def choose(requests: Sequence[EnrichRequest], now_ms: int) -> Choice:
    """Requests of one id come in the order of its partition. `now_ms` in epoch milliseconds."""
    newest: dict[tuple[str, str], int] = {}
    for request in requests:
        key = (request.tenant, request.posting_id)
        newest[key] = max(newest.get(key, request.version), request.version)
    chosen: list[int] = []
    expired: list[int] = []
    superseded: list[int] = []
    seen: set[tuple[str, str, str]] = set()
    for position in reversed(range(len(requests))):  # of what is said twice the later one, which may say more
        request = requests[position]
        text = (request.tenant, request.posting_id, request.text_hash)
        if request.expires_at is not None and request.expires_at <= now_ms:
            expired.append(position)
        elif request.version < newest[request.tenant, request.posting_id] or text in seen:
            superseded.append(position)
        else:
            seen.add(text)
            chosen.append(position)
    return Choice(tuple(sorted(chosen)), tuple(sorted(expired)), tuple(sorted(superseded)))
