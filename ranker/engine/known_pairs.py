"""A few queries and postings, of which every pair is scored by two forms of a model to hold one against the other."""

from __future__ import annotations

from penstock.ranker.engine.plan import Request, Text
from penstock.ranker.engine.tokens import Tokenizer

QUERIES = (
    "registered nurse in Ohio, night shift",
    "senior rust engineer, remote, distributed systems",
    "warehouse work without experience near Dallas",
)
POSTINGS = (
    "Registered Nurse, Columbus General Hospital. Night shifts.",
    "Staff Software Engineer, storage. Rust or C++, remote within the United States.",
    "Forklift operator, Fort Worth. Training is given; day and night shifts, full time.",
    "Head of Accounting, Zurich. Consolidation, IFRS, a team of six.",
    "Nursing assistant, assisted living, Cleveland. Weekends.",
)


def requests(tokenizer: Tokenizer) -> list[Request]:
    """A query's each, with all postings."""
    items = tuple(Text(one.tokens) for one in tokenizer.items(list(POSTINGS)))
    return [Request(tokenizer.prefix(query).tokens, items) for query in QUERIES]
