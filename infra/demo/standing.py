"""The demo's subscriptions: what 150 people want to be told about, made of the queries and of what postings have.

Pure: the same queries and postings give the same subscriptions. Most are words alone; the others show what
subscriptions can say: filters without words, a calibrated score from the ranker, a daily cap, quiet hours and digests,
and people with more than one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from penstock.infra.demo.sample import Query
from penstock.schemas import filters
from penstock.schemas.events import Cadence, Op, Posting, QuietHours, Subscription

COUNT = 150
MIN_SCORE = 0.3  # calibrated probability that those who want the ranker's word ask for
CAP = 3  # alerts a day of those who want few


def subscriptions(
    queries: Sequence[Query], postings: Sequence[Posting], *, run_id: str, tenant: str, count: int = COUNT
) -> tuple[Subscription, ...]:
    """At most `count` subscriptions, none without queries. Ids and people carry the run's mark."""
    words = [(query.event.text, query.event.filters) for query in queries if query.event.tenant == tenant]
    regions, categories = _commonest(postings, _region), _commonest(postings, lambda posting: posting.category)
    out: list[Subscription] = []
    for number in range(count if words else 0):
        text, own = words[number % len(words)]
        turn = number // len(words)
        base = Subscription(
            subscription_id=f"{run_id}-subscription-{number:03d}",
            version=1,
            tenant=tenant,
            person_id=f"{run_id}-person-{number:03d}",
            text=text,
            filters=own,
        )
        if turn > 0:
            base = _variant(base, number, regions, categories)
        out.append(base)
    return tuple(out)


def removals(given: Sequence[Subscription]) -> tuple[Subscription, ...]:
    """What ends them: a demo leaves nothing behind."""
    return tuple(
        Subscription(
            subscription_id=one.subscription_id,
            version=one.version + 1,
            op=Op.DELETE,
            tenant=one.tenant,
            person_id=one.person_id,
        )
        for one in given
    )


def _variant(base: Subscription, number: int, regions: Sequence[str], categories: Sequence[str]) -> Subscription:
    """The same words with something more, or filters in their place."""
    kind = number % 6
    if kind == 0:
        return replace(base, min_score=MIN_SCORE)
    if kind == 1 and regions:
        place = filters.is_in("location.region", regions[number % len(regions)])
        return replace(base, filters=filters.all_of(base.filters, place))
    if kind == 2 and categories:
        return replace(base, text="", filters=filters.is_in("category", categories[number % len(categories)]))
    if kind == 3:
        return replace(base, max_per_day=CAP)
    if kind == 4:
        return replace(
            base,
            cadence=Cadence.DAILY,
            digest_at="08:00",
            time_zone="America/New_York",
            quiet_hours=QuietHours(start="22:00", end="07:00"),
        )
    # A second subscription of a person who has one: a posting that satisfies both makes one alert.
    first = number - number % 6
    return replace(base, person_id=base.person_id.replace(f"{number:03d}", f"{first:03d}"))


def _region(posting: Posting) -> str | None:
    return posting.location.region if posting.location is not None else None


def _commonest(postings: Sequence[Posting], of: Callable[[Posting], str | None], most: int = 12) -> list[str]:
    counts = Counter(value for posting in postings if (value := of(posting)))
    return [value for value, _ in sorted(counts.items(), key=lambda one: (-one[1], one[0]))[:most]]
