"""What the store must answer, computed the slow and plain way from the updates alone. Shares no code with the store.

Scores are sums in exact arithmetic, rounded once (math.fsum over products that float64 holds exactly); filters are
read off the record, row by row; order and expiry are the words of the contract.
"""

from __future__ import annotations

import hashlib
import math
import struct

from penstock.schemas.events import IndexOp

PERIODS = {"HOUR": 2080.0, "DAY": 260.0, "WEEK": 52.0, "MONTH": 12.0, "YEAR": 1.0}


def tie(posting_id):
    return hashlib.blake2b(posting_id.encode(), digest_size=8).digest()  # big endian: bytes order as the number


def bf16(raw):
    return [struct.unpack("<f", b"\0\0" + raw[i : i + 2])[0] for i in range(0, len(raw), 2)]


def floats(raw):
    return struct.unpack(f"<{len(raw) // 4}f", raw or b"")


def parts(vector, query):
    """(dense, lexical) of a stored Vector for a QueryVector."""
    if vector is None or query is None:
        return 0.0, 0.0
    dense = math.fsum(a * b for a, b in zip(bf16(vector.dense), floats(query.dense), strict=False))
    stored = struct.unpack(f"<{len(vector.sketch)}b", vector.sketch) if vector.sketch else ()
    return dense, math.fsum(a * b for a, b in zip(stored, floats(query.lexical or b""), strict=False))


def value_of(update, field):
    a = update.attributes
    place, pay = a.location, a.salary
    if field == "location":
        return (place.lat, place.lon) if place is not None and place.lat is not None else None
    if field.startswith("location."):
        return getattr(place, field.removeprefix("location."), None)
    if field == "salary.currency":
        return None if pay is None else pay.currency
    if field.startswith("salary.annual_"):
        amount = None if pay is None else getattr(pay, field[-3:])
        return None if amount is None or pay.period == "UNKNOWN" else amount * PERIODS[pay.period]
    if field in ("posting_id", "expires_at"):
        return getattr(update, field)
    if field == "title.terms":
        return tuple(a.title.lower().split())  # tests title with words that are their own stems
    value = getattr(a, field)
    return None if value == "UNKNOWN" else value


def haversine(lat1, lon1, lat2, lon2):
    p1, p2 = math.radians(lat1), math.radians(lat2)
    h = math.sin((p2 - p1) / 2) ** 2 + math.cos(p1) * math.cos(p2) * math.sin(math.radians(lon2 - lon1) / 2) ** 2
    return 2 * 6371.0088 * math.asin(min(1.0, math.sqrt(h)))


def passes(update, tree, negated=False):
    if tree.kind == "NOT":
        return passes(update, tree.children[0], not negated)
    if tree.kind in ("ALL", "ANY"):
        answers = [passes(update, child, negated) for child in tree.children]
        return all(answers) if (tree.kind == "ALL") != negated else any(answers)
    value = value_of(update, tree.field)
    values = value if tree.field in ("skills", "title.terms") else (value,)
    values = [v for v in values if v is not None and (not isinstance(v, str) or v.strip())]
    if not values:
        return tree.missing == "INCLUDE"
    if tree.kind == "IN":
        wanted = {word.strip().casefold() for word in tree.values}
        matched = any(str(v).strip().casefold() in wanted for v in values)
    elif tree.kind == "NEAR":
        matched = haversine(tree.lat, tree.lon, *value) <= tree.radius_km
    else:
        matched = (tree.minimum is None or value >= tree.minimum) and (tree.maximum is None or value <= tree.maximum)
    return matched != negated


class Oracle:
    """The newest update of each id, by (version, revision), whatever the order of arrival."""

    def __init__(self, updates=()):
        self.newest = {}
        for update in updates:
            self.accept(update)

    def accept(self, update):
        known = self.newest.get(update.posting_id)
        if known is None or (update.version, update.revision) > (known.version, known.revision):
            self.newest[update.posting_id] = update

    def state(self, posting_id, now_ms):
        update = self.newest.get(posting_id)
        if update is None:
            return "ABSENT"
        if update.op == IndexOp.UPSERT:
            over = update.expires_at is not None and now_ms >= update.expires_at
            return "EXPIRED" if over else "LIVE"
        return "DELETED" if update.op == IndexOp.DELETE else "EXPIRED"

    def search(self, query, tree, k, *, now_ms, tenant="default"):
        """([(id, version, revision, dense, lexical)], total)"""
        rows = [
            update
            for posting_id, update in self.newest.items()
            if self.state(posting_id, now_ms) == "LIVE"
            and update.tenant == tenant
            and (tree is None or passes(update, tree))
        ]
        found = []
        for update in rows:
            dense, lexical = parts(update.vector, query)
            posted = update.attributes.posted_at
            recency = update.produced_at if posted is None else posted
            key = (-(dense + lexical), -recency if query is None else 0, tie(update.posting_id))
            found.append((key, (update.posting_id, update.version, update.revision, dense, lexical)))
        found.sort(key=lambda one: one[0])
        return [one for _, one in found[:k]], len(rows)


def shown(result):
    """A SearchResult or SearchReply as `Oracle.search` writes it."""
    return [(h.posting_id, h.version, h.revision, h.dense, h.lexical) for h in result.hits], result.total
