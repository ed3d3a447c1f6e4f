"""Ten thousand standing queries over the real postings, of which a few match each posting and some match many.

Filters alone: a value of one attribute and often of a second, drawn as the postings have them, so that the commonest
are asked for most (what many work at, many look for). Words: titles of postings, in their region. A tenth
of all wants the ranker's word for it (`min_score`). Deterministic.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from penstock.schemas import filters
from penstock.schemas.events import Filter, Posting, Subscription

WORDS = 0.7  # share of the subscriptions that have words
SCORED = 0.1  # share that asks the ranker
MIN_SCORE = 0.2
SUBSCRIPTIONS_A_PERSON = 2

_ATTRIBUTES: dict[str, Callable[[Posting], str | None]] = {
    "company": lambda posting: posting.company,
    "category": lambda posting: posting.category,
    "grade": lambda posting: posting.grade,
    "location.region": lambda posting: posting.location.region if posting.location else None,
    "location.city": lambda posting: posting.location.city if posting.location else None,
}


def subscriptions(postings: Sequence[Posting], count: int, mark: str, seed: int = 1) -> list[Subscription]:
    """`count` of them, their ids beginning with `mark`."""
    draw = random.Random(seed)
    out = []
    for number in range(count):
        like = draw.choice(postings)
        words = draw.random() < WORDS
        out.append(
            Subscription(
                subscription_id=f"{mark}-{number}",
                version=1,
                person_id=f"{mark}-person-{number // SUBSCRIPTIONS_A_PERSON}",
                text=like.title or "" if words else "",
                filters=_place(like) if words else _narrow(like, draw),
                min_score=MIN_SCORE if words and draw.random() < SCORED / WORDS else None,
            )
        )
    return out


def _place(like: Posting) -> Filter | None:
    region = like.location.region if like.location else None
    if region:
        return filters.is_in("location.region", region)
    return filters.is_in("company", like.company) if like.company else None


def _narrow(like: Posting, draw: random.Random) -> Filter:
    """Two or three of the attributes that the posting has; its title where it has fewer than two."""
    said = [(field, value) for field, read in _ATTRIBUTES.items() if (value := read(like))]
    if len(said) < 2:
        said.append(("title.terms", (like.title or "work").split()[0].lower()))
    chosen = draw.sample(said, min(len(said), draw.choice((2, 3, 3, 4))))
    tree = filters.all_of(*(filters.is_in(field, value) for field, value in chosen))
    assert tree is not None
    return tree
