"""Which alerts must have come, from the standing queries and index updates alone, and whether they did.

Every pair of a standing query and an update that says `percolate` is scored in float64. A pair is clear of the
threshold, or so close that either answer is right. An alert must come when a subscription that does not ask the ranker
clearly matches a posting that lives on, unless a daily cap took it; it may come when some subscription at least
possibly matches. A reader that keeps ids sees each person, posting and material class once. Pure; counts by a consumer
of the feed, who drops repeated ids.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from penstock.retrieval.search.evaluate import evaluate
from penstock.retrieval.search.filters import pushed
from penstock.retrieval.store.columns import Columns
from penstock.schemas.events import Alert, IndexOp, IndexUpdate, Op, StandingQuery, Subscription

CLOSE = 1e-9  # scores nearer to a threshold than this may fall on either side of it
MARGIN_MS = 120_000  # a posting that expires within this of being published may be gone before its alert is made
DAY_MS = 86_400_000
MAX_DETAILS = 10

Doubles = npt.NDArray[np.float64]
Key = tuple[str, str, str]  # person, posting, material class


@dataclass(frozen=True, slots=True)
class AlertAccounting:
    """`lost`: alerts that must have come and did not. `wrong`: alerts that nobody may get, or that came twice."""

    subscriptions: int
    expected: int
    sent: int
    repeats: int  # records with an id that was already read: at least once delivery
    with_score: int  # alerts that carry the ranker's score
    degraded: int
    lost: int
    wrong: int
    details: tuple[str, ...] = ()

    @property
    def clean(self) -> bool:
        return self.lost == 0 and self.wrong == 0


@dataclass(frozen=True, slots=True)
class Expected:
    """Keys by person."""

    must: Mapping[str, frozenset[Key]]
    may: Mapping[str, frozenset[Key]]


def expected(
    queries: Sequence[StandingQuery], updates: Sequence[IndexUpdate], subscriptions: Sequence[Subscription]
) -> Expected:
    """What the alerts must and may be. `queries` and `updates` in the order of their topics."""
    standing = _newest(queries)
    capped = {one.subscription_id for one in subscriptions if one.max_per_day is not None}
    looked_at = [update for update in updates if update.percolate and update.op is IndexOp.UPSERT]
    must: defaultdict[str, set[Key]] = defaultdict(set)
    may: defaultdict[str, set[Key]] = defaultdict(set)
    if standing and looked_at:
        columns = Columns(len(looked_at))
        for slot, update in enumerate(looked_at):
            columns.write(slot, update)
        all_scores = _scores(standing, looked_at)
        for query, scores in zip(standing, all_scores, strict=True):
            passes = np.ones(len(looked_at), np.bool_)
            if query.filters is not None:
                passes = evaluate(pushed(query.filters), columns, len(looked_at))
            for slot in np.flatnonzero(passes & (scores >= query.threshold - CLOSE)):
                update = looked_at[int(slot)]
                if update.tenant != query.tenant:
                    continue
                key = (query.person_id, update.posting_id, update.material_class)
                may[query.person_id].add(key)
                certain = scores[slot] >= query.threshold + CLOSE
                asks_ranker = query.min_score is not None
                lives = update.expires_at is None or update.expires_at > update.produced_at + MARGIN_MS
                if certain and lives and not asks_ranker and query.subscription_id not in capped:
                    must[query.person_id].add(key)
    return Expected(
        {person: frozenset(keys) for person, keys in must.items()},
        {person: frozenset(keys) for person, keys in may.items()},
    )


def account(
    wanted: Expected, alerts: Sequence[Alert], subscriptions: Sequence[Subscription], *, max_per_day: int
) -> AlertAccounting:
    """The verdict. `alerts` in the order of the feed, repeats included; `max_per_day` is a person's bound."""
    people = {one.person_id for one in subscriptions}
    caps = {one.subscription_id: one.max_per_day for one in subscriptions if one.max_per_day is not None}
    first: dict[str, Alert] = {}
    repeats = 0
    for alert in alerts:
        if alert.person_id in people:
            repeats += alert.alert_id in first
            first.setdefault(alert.alert_id, alert)
    details: list[str] = []
    wrong = lost = 0
    ids: dict[Key, str] = {}
    seen: defaultdict[str, set[Key]] = defaultdict(set)
    a_day: Counter[tuple[str, int]] = Counter()
    for alert in first.values():
        key = (alert.person_id, alert.posting_id, alert.material_class)
        faults = []
        if key in ids:
            faults.append(f"came under two ids, {ids[key]} and {alert.alert_id}")
        if key not in wanted.may.get(alert.person_id, frozenset()):
            faults.append("nothing that this person subscribed to matches")
        if alert.expires_at is not None and alert.alerted_at >= alert.expires_at:
            faults.append("was expired when it was sent")
        ids[key] = alert.alert_id
        seen[alert.person_id].add(key)
        day = alert.alerted_at // DAY_MS
        for match in alert.matches:
            a_day[match.subscription_id, day] += 1
        if faults:
            wrong += 1
            details.append(f"alert on {alert.posting_id} for {alert.person_id}: {'; '.join(faults)}")
    for (subscription_id, _), count in a_day.items():
        if count > caps.get(subscription_id, count):
            wrong += count - caps[subscription_id]
            details.append(f"{subscription_id}: {count} alerts in a day, at most {caps[subscription_id]} asked for")
    due = 0
    for person, keys in wanted.must.items():
        missing = sorted(keys - seen[person])
        # Past the cap it is open which ones came, not how many.
        allowed = min(len(keys), max(0, max_per_day - len(seen[person] - keys)))
        due += allowed
        short = min(len(missing), allowed - len(keys & seen[person]))
        if short > 0:
            lost += short
            details += [f"no alert on {posting_id} for {person}" for _, posting_id, _ in missing[:short]]
    return AlertAccounting(
        subscriptions=len(subscriptions),
        expected=due,
        sent=len(first),
        repeats=repeats,
        with_score=sum(any(match.score is not None for match in alert.matches) for alert in first.values()),
        degraded=sum(bool(alert.degraded) for alert in first.values()),
        lost=lost,
        wrong=wrong,
        details=tuple(details[:MAX_DETAILS]),
    )


def examples(alerts: Sequence[Alert], most: int = 5) -> list[dict[str, Any]]:
    """Some alerts as their readers would see them: of different people and postings, best matches first."""
    out: list[Alert] = []
    people, postings = set[str](), set[str]()
    for alert in sorted(alerts, key=lambda one: (-one.matches[0].match_score, one.alert_id)):
        if len(out) < most and alert.person_id not in people and alert.posting_id not in postings:
            people.add(alert.person_id)
            postings.add(alert.posting_id)
            out.append(alert)
    return [
        {
            "person_id": alert.person_id,
            "posting_id": alert.posting_id,
            "title": alert.attributes.title,
            "company": alert.attributes.company,
            "reasons": [match.reason for match in alert.matches],
            "score": alert.matches[0].score,
            "after_ms": alert.alerted_at - alert.produced_at,
        }
        for alert in out
    ]


# --- how ---------------------------------------------------------------------------------------------------------


def _newest(queries: Sequence[StandingQuery]) -> list[StandingQuery]:
    out: dict[str, StandingQuery] = {}
    for query in queries:
        known = out.get(query.subscription_id)
        if known is None or query.version >= known.version:
            out[query.subscription_id] = query
    return [query for query in out.values() if query.op is Op.UPSERT]


def _scores(queries: Sequence[StandingQuery], updates: Sequence[IndexUpdate]) -> Doubles:
    """Hybrid scores, float64 [queries, updates]. -inf: of different spaces. Without words filters alone decide."""
    out = np.full((len(queries), len(updates)), -np.inf)
    for row, query in enumerate(queries):
        if query.vector is None:
            out[row] = np.inf
    spaces = {query.vector.space_id for query in queries if query.vector is not None}
    for space_id in spaces:
        rows = [row for row, query in enumerate(queries) if query.vector and query.vector.space_id == space_id]
        vectors = [vector for row in rows if (vector := queries[row].vector) is not None]
        dense = np.array([np.frombuffer(vector.dense, "<f4") for vector in vectors], np.float64)
        lexical = np.array([np.frombuffer(vector.lexical or b"", "<f4") for vector in vectors], np.float64)
        for column, update in enumerate(updates):
            held = update.vector
            if held is None or held.space_id != space_id:
                continue
            score = np.zeros(len(rows))
            if held.dense:
                stored = (np.frombuffer(held.dense, "<u2").astype(np.uint32) << 16).view(np.float32)
                score += dense @ stored.astype(np.float64)
            if held.sketch:
                score += lexical @ np.frombuffer(held.sketch, np.int8).astype(np.float64)
            out[rows, column] = score
    return out
