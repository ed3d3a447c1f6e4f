"""What becomes of a match: every decision of the alerts job about a person, as functions of plain values.

A candidate (one posting, one person, the subscriptions of theirs that it satisfies) is weighed: dropped for a counted
reason, kept until its subscription is known, taken to the ranker for a score, or sent if the daily caps allow it.

Invariants, for any order, repetition and interleaving of a person's events:
- no alert for a subscription that is known here to be deleted, paused, snoozed or to ask for something else now;
- none for a posting that has expired;
- one alert for a person, a posting and a material class, as long as it is remembered.

Where it stands: life-of-an-alert.md, step 7.
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass, replace
from datetime import date, timedelta

from penstock.jobs.operators.delivery_time import Delivery, Rhythm, decide_delivery, digest_id, local_day
from penstock.jobs.operators.identity import content_id
from penstock.jobs.operators.ledger import Capped, Claim, Grant
from penstock.schemas.events import (
    Alert,
    Match,
    MinVersion,
    Op,
    Page,
    RankClass,
    RankQuery,
    RankRequest,
    StandingQuery,
    Subscription,
    SubscriptionState,
)
from penstock.schemas.states import Candidate, KnownSubscription, PersonAlerts, Subject, WaitingCandidate
from penstock.schemas.validate import MAX_ECHO_BYTES
from penstock.schemas.wire import codec

# How long a match may be ahead of its subscription: on a fresh submit all subscriptions are read again, and their
# words by the models role, while the shards still hold every standing query. Waiting costs state alone.
WAIT_MS = 600_000
MAX_WAITING = 256  # candidates of one person
MAX_NAMED = 100  # matches, and notes, in the body of one alert: whatever somebody subscribes to, it must fit its topic
REQUEST_PREFIX = "alert-"  # of the ids of rank requests
PRUNE_EVERY_MS = 86_400_000
_SENT = struct.Struct(">8sI")
_MINUTE = 60_000


@dataclass(frozen=True, slots=True)
class Rules:
    """Of `settings.alerts` and `settings.postings`."""

    max_per_day: int
    dedupe_ms: int
    rank_deadline_ms: int
    digest_deadline_ms: int
    window_ms: int  # how long a deleted subscription keeps its version


@dataclass(frozen=True, slots=True)
class Drop:
    """Nothing leaves."""


@dataclass(frozen=True, slots=True)
class Wait:
    """A subscription of the candidate is not known yet."""

    until: int


@dataclass(frozen=True, slots=True)
class Ask:
    """The ranker's score is wanted; the request's echo is the candidate."""

    request: RankRequest


@dataclass(frozen=True, slots=True)
class Send:
    """To be sent if the ledger grants it."""

    claim: Claim
    matches: tuple[Match, ...]  # best first
    more: bool  # whether other matches could carry the alert if these may not
    degraded: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be done with a candidate. `counted` names what was left out and why."""

    state: PersonAlerts
    act: Drop | Wait | Ask | Send
    counted: tuple[str, ...] = ()


EMPTY = PersonAlerts(sent=b"")


def alert_id(tenant: str, person_id: str, posting_id: str, material_class: str) -> str:
    return content_id("alert", tenant, person_id, posting_id, material_class)


# --- subscriptions -----------------------------------------------------------------------------------------------


def on_subscription(
    state: PersonAlerts, event: Subscription, now_ms: int, rules: Rules
) -> tuple[PersonAlerts, tuple[str, ...]]:
    """A valid subscription event reaches its person. Of two contents under one version the first stands."""
    held = _known(state).get(event.subscription_id)
    if held is not None and event.version <= held.version:
        return state, ("subscription_repeat" if event.version == held.version else "subscription_stale",)
    asks = _asks(event)
    same = held is not None and held.asks == asks
    known = KnownSubscription(
        subscription_id=event.subscription_id,
        version=event.version,
        asks=asks,
        matches_from=held.matches_from if held is not None and same else event.version,
        op=event.op,
        state=event.state,
        snoozed_until=event.snoozed_until,
        min_score=event.min_score,
        max_per_day=event.max_per_day,
        full_at=held.full_at if held is not None and held.max_per_day == event.max_per_day else None,
        cadence=event.cadence,
        time_zone=event.time_zone,
        quiet_hours=event.quiet_hours,
        digest_at=event.digest_at,
        channel=event.channel,
        locale=event.locale,
        forget_at=now_ms + rules.window_ms if event.op is Op.DELETE else None,
    )
    others = tuple(each for each in state.subscriptions if each.subscription_id != event.subscription_id)
    return replace(state, subscriptions=(*others, known)), ("subscription_known",)


def _asks(event: Subscription) -> bytes:
    """Equal when two versions are satisfied by the same postings: then a match of the older one holds."""
    only = Subscription(
        subscription_id="",
        version=0,
        op=event.op,
        person_id="",
        text=event.text,
        filters=event.filters,
        min_score=event.min_score,
    )
    return hashlib.blake2b(codec(Subscription).encode_unbounded(only), digest_size=8).digest()


# --- candidates --------------------------------------------------------------------------------------------------


def weigh(
    state: PersonAlerts,
    candidate: Candidate,
    subject: Subject,
    now_ms: int,
    rules: Rules,
    *,
    until: int | None = None,
    full: frozenset[str] = frozenset(),
) -> Verdict:
    """What to do with a candidate now. `until`: how long it may wait; None: it has just come.

    `full`: subscriptions that the ledger has just said are over their cap.
    """
    if subject.expires_at is not None and subject.expires_at <= now_ms:
        return Verdict(state, Drop(), ("expired",))
    name = alert_id(candidate.tenant, candidate.person_id, subject.posting_id, subject.material_class)
    if _is_sent(state, name):
        return Verdict(_remember(state, name, subject, now_ms, rules), Drop(), ("repeat",))
    known = _known(state)
    counted: list[str] = []
    ready: list[Match] = []  # need no score
    scored: list[Match] = []  # have one, or cannot get one
    asking: list[Match] = []
    queries = {query.subscription_id: query for query in candidate.queries}
    degraded = list(candidate.degraded)
    for match in candidate.matches:
        of = known.get(match.subscription_id)
        if of is None or match.version > of.version:
            wait_until = now_ms + WAIT_MS if until is None else until
            if now_ms < wait_until and (until is not None or len(state.waiting) < MAX_WAITING):
                return Verdict(state, Wait(wait_until))
            counted.append("unsubscribed")
        elif reason := _silence(of, match, now_ms):
            counted.append(reason)
        elif match.subscription_id in full:
            pass  # counted when the ledger said so
        elif of.max_per_day is not None and _is_full(of.full_at, of.time_zone, subject, now_ms):
            counted.append("subscription_over_cap")
        elif of.min_score is None:
            ready.append(match)
        elif match.score is not None:
            if match.score >= of.min_score:
                scored.append(match)
            else:
                counted.append("below_min_score")
        elif match.subscription_id in queries:
            asking.append(match)
        else:
            counted.append("unscored")
            scored.append(match)
            if not any(note.startswith(_note(match.subscription_id, "")) for note in degraded):
                degraded.append(_note(match.subscription_id, "its query did not come with the match"))
    if not ready and asking:
        return _ask(state, candidate, asking, subject, now_ms, rules, until, full)
    sending = ready or scored
    if not sending:
        return Verdict(state, Drop(), tuple(counted))
    best = sorted(sending, key=lambda m: (-(m.score or 0.0), -m.match_score, m.subscription_id))
    first = known[best[0].subscription_id]
    if _is_full(state.full_at, first.time_zone, subject, now_ms):
        return Verdict(state, Drop(), (*counted, "over_cap"))
    today = local_day(now_ms, first.time_zone)
    claim = _claim(candidate, name, today, [known[match.subscription_id] for match in best], now_ms, rules)
    return Verdict(state, Send(claim, tuple(best), bool(ready and (asking or scored)), tuple(degraded)), tuple(counted))


def settle(
    state: PersonAlerts, send: Send, grant: Grant, candidate: Candidate, subject: Subject, now_ms: int, rules: Rules
) -> tuple[PersonAlerts, Alert | None, tuple[str, ...]]:
    """The ledger has spoken. No alert and `send.more`: weigh the candidate again, for its other matches."""
    counted = ["subscription_over_cap"] * len(grant.full)
    if grant.full:
        state = replace(
            state,
            subscriptions=tuple(
                replace(each, full_at=now_ms) if each.subscription_id in grant.full else each
                for each in state.subscriptions
            ),
        )
    if not grant.person:
        return replace(state, full_at=now_ms), None, (*counted, "over_cap")
    if subject.expires_at is not None and subject.expires_at <= now_ms:  # while the ledger was waited for
        return state, None, (*counted, "expired")
    matches = tuple(match for match in send.matches if match.subscription_id not in grant.full)
    if not matches:
        return state, None, tuple(counted)
    if len(matches) > MAX_NAMED:
        counted.append("matches_unnamed")
    alert = _alert(_known(state), send, matches, candidate, subject, now_ms)
    return _remember(state, alert.alert_id, subject, now_ms, rules), alert, (*counted, "alerted")


def keep_waiting(state: PersonAlerts, candidate: Candidate, until: int) -> PersonAlerts:
    return replace(state, waiting=(*state.waiting, WaitingCandidate(candidate=candidate, until=until)))


def release(state: PersonAlerts) -> tuple[PersonAlerts, tuple[WaitingCandidate, ...]]:
    """Those that waited, to be weighed again: something has changed, or it is late."""
    return (replace(state, waiting=()), state.waiting) if state.waiting else (state, ())


def tidy(state: PersonAlerts, now_ms: int) -> PersonAlerts:
    """Forget what may be forgotten, where that is due, and say when it is due again."""
    if state.prune_at is not None and now_ms < state.prune_at:
        return state
    if state.prune_at is not None:
        minute = now_ms // _MINUTE
        state = replace(
            state,
            sent=b"".join(_SENT.pack(*entry) for entry in _SENT.iter_unpack(state.sent) if entry[1] > minute),
            subscriptions=tuple(s for s in state.subscriptions if s.forget_at is None or s.forget_at > now_ms),
            prune_at=None,
        )
    owed = state.sent or any(each.forget_at is not None for each in state.subscriptions)
    return replace(state, prune_at=now_ms + PRUNE_EVERY_MS) if owed else state


def is_empty(state: PersonAlerts) -> bool:
    """Whether nothing is lost by forgetting this person."""
    return not (state.subscriptions or state.sent or state.waiting)


# --- how ---------------------------------------------------------------------------------------------------------


def _known(state: PersonAlerts) -> dict[str, KnownSubscription]:
    return {each.subscription_id: each for each in state.subscriptions}


def _silence(known: KnownSubscription, match: Match, now_ms: int) -> str:
    """Why this subscription is not to be told, empty when it is."""
    if known.op is Op.DELETE:
        return "unsubscribed"
    if known.state is SubscriptionState.PAUSED:
        return "paused"
    if known.state is SubscriptionState.SNOOZED and (known.snoozed_until is None or now_ms < known.snoozed_until):
        return "snoozed"
    return "superseded" if match.version < known.matches_from else ""


def _note(subscription_id: str, why: str) -> str:
    return f"rank: {subscription_id}: {why}"


def _ask(
    state: PersonAlerts,
    candidate: Candidate,
    asking: list[Match],
    subject: Subject,
    now_ms: int,
    rules: Rules,
    until: int | None,
    full: frozenset[str],
) -> Verdict:
    """About the first match whose question fits an echo with all that are still to be asked after it."""
    encode = codec(Candidate).encode_unbounded
    queries = {query.subscription_id: query for query in candidate.queries}
    size = len(encode(candidate))  # from here on at most what an echo has: only one that may fit is made
    for match in asking:
        query = queries.pop(match.subscription_id)
        size -= len(codec(StandingQuery).encode_unbounded(query))
        rest = replace(candidate, queries=tuple(queries.values()), asked=query.subscription_id)
        echo = encode(rest) if size <= MAX_ECHO_BYTES else b""
        if echo and len(echo) <= MAX_ECHO_BYTES:
            deadline = _deadline(_known(state), asking, now_ms, rules)
            return _question(state, candidate, query, echo, subject, deadline)
        why = f"not asked, as {len(echo) or size} bytes would have to come back, of at most {MAX_ECHO_BYTES}"
        note = _note(query.subscription_id, why)
        candidate = replace(candidate, queries=rest.queries, degraded=(*candidate.degraded, note))
        size += len(note.encode("utf-8", "surrogatepass"))
    return weigh(state, candidate, subject, now_ms, rules, until=until, full=full)


def _question(
    state: PersonAlerts,
    candidate: Candidate,
    query: StandingQuery,
    echo: bytes,
    subject: Subject,
    deadline: int,
) -> Verdict:
    request = RankRequest(
        request_id=REQUEST_PREFIX
        + content_id(
            "rank",
            candidate.tenant,
            candidate.person_id,
            subject.posting_id,
            subject.material_class,
            query.subscription_id,
            str(query.version),
        ),
        tenant=candidate.tenant,
        class_=RankClass.ALERT,
        deadline=deadline,
        # Without filters: that they hold is what the match says.
        query=RankQuery(text=query.text, vector=query.vector, person_id=candidate.person_id),
        candidates=(subject.posting_id,),
        page=Page(size=1),
        min_version=MinVersion(posting_id=subject.posting_id, version=subject.version),
        produced_at=subject.produced_at,
        echo=echo,
        trace=subject.trace,
    )
    return Verdict(state, Ask(request), ("asked",))  # what was left out is counted when the answer is weighed


def _deadline(known: dict[str, KnownSubscription], asking: list[Match], now_ms: int, rules: Rules) -> int:
    """When a score is wanted at the latest: soon, or in time for the digest where nobody is told before that."""
    told = min(decide_delivery(_rhythm(known[match.subscription_id]), now_ms).after or now_ms for match in asking)
    in_time = min(told - rules.rank_deadline_ms, now_ms + rules.digest_deadline_ms)
    return max(in_time, now_ms + rules.rank_deadline_ms)


def _rhythm(of: KnownSubscription) -> Rhythm:
    return Rhythm(of.cadence, of.time_zone, of.quiet_hours, of.digest_at)


def _is_full(full_at: int | None, time_zone: str, subject: Subject, now_ms: int) -> bool:
    """Whether the ledger need not be asked, having said today that there is no room.

    Only about postings produced since: an older one may be a replay, whose id the ledger may have let in before.
    """
    if full_at is None or subject.produced_at <= full_at:
        return False
    return local_day(full_at, time_zone) == local_day(now_ms, time_zone)


def _claim(
    candidate: Candidate, name: str, today: date, subscriptions: list[KnownSubscription], now_ms: int, rules: Rules
) -> Claim:
    capped = []
    for each in subscriptions:
        if each.max_per_day is not None:
            day = local_day(now_ms, each.time_zone)
            capped.append(Capped(each.subscription_id, each.max_per_day, day.isoformat(), _before(day)))
    return Claim(
        tenant=candidate.tenant,
        person_id=candidate.person_id,
        alert_id=name,
        cap=rules.max_per_day,
        today=today.isoformat(),
        yesterday=_before(today),
        uncapped=len(subscriptions) - len(capped),
        capped=tuple(capped),
    )


def _before(day: date) -> str:
    return (day - timedelta(days=1)).isoformat()


def _alert(
    known: dict[str, KnownSubscription],
    send: Send,
    matches: tuple[Match, ...],
    candidate: Candidate,
    subject: Subject,
    now_ms: int,
) -> Alert:
    """Delivered as the subscription wants it that may be told the soonest; of equals, the best match's."""
    deliveries: list[tuple[Delivery, KnownSubscription]] = []
    for match in matches:
        of = known[match.subscription_id]
        deliveries.append((decide_delivery(_rhythm(of), now_ms), of))
    delivery, first = min(deliveries, key=lambda pair: pair[0].after or 0)
    degraded = send.degraded[:MAX_NAMED]
    if len(matches) > MAX_NAMED:
        degraded = (f"{len(matches) - MAX_NAMED} more of the subscriptions match and are not named", *degraded)
    return Alert(
        alert_id=send.claim.alert_id,
        tenant=candidate.tenant,
        person_id=candidate.person_id,
        posting_id=subject.posting_id,
        version=subject.version,
        material_class=subject.material_class,
        matches=matches[:MAX_NAMED],
        attributes=subject.attributes,
        deliver_after=delivery.after,
        digest_id=digest_id(candidate.tenant, candidate.person_id, delivery.window) if delivery.window else None,
        channel=first.channel,
        locale=first.locale,
        produced_at=subject.produced_at,
        alerted_at=now_ms,
        expires_at=subject.expires_at,
        degraded=degraded,
        trace=subject.trace,
    )


def _mark(name: str) -> bytes:
    return bytes.fromhex(name[:16])


def _place(sent: bytes, mark: bytes) -> int:
    """Where the entry of an alert begins; -1 when there is none."""
    at = sent.find(mark)
    while at >= 0 and at % _SENT.size:
        at = sent.find(mark, at + 1)
    return at


def _is_sent(state: PersonAlerts, name: str) -> bool:
    return _place(state.sent, _mark(name)) >= 0


def _remember(state: PersonAlerts, name: str, subject: Subject, now_ms: int, rules: Rules) -> PersonAlerts:
    """With the alert among those sent, until its posting expires."""
    forget_at = subject.expires_at if subject.expires_at is not None else now_ms + rules.dedupe_ms
    minute = min(math.ceil(forget_at / _MINUTE), 0xFFFFFFFF)
    mark = _mark(name)
    at = _place(state.sent, mark)
    if at < 0:
        return replace(state, sent=state.sent + _SENT.pack(mark, minute))
    if _SENT.unpack_from(state.sent, at)[1] >= minute:
        return state
    return replace(state, sent=state.sent[:at] + _SENT.pack(mark, minute) + state.sent[at + _SENT.size :])
