"""What the demo publishes, decided beforehand: new postings and everything that goes wrong in real life between them.

Pure: the same postings, seed and start give the same events. Each event says whether it must be refused, and where:
of the sample and of every poison by how it was made, of anyone's own postings (`checked`) by the pipeline's published
rules, `validate.check_posting`. What becomes of the others is for `accounting` to say, from their order alone.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from penstock.schemas.errors import InvalidRecord
from penstock.schemas.events import Op, PayPeriod, Posting, Remote, Salary
from penstock.schemas.validate import MAX_DESCRIPTION_BYTES, check_posting
from penstock.schemas.wire import CONFLUENT_MARK, SINGLE_OBJECT_MARK, codec


class Kind(StrEnum):
    """Why an event is in the plan."""

    NEW = "new"
    UPDATE = "update"
    DELETE = "delete"
    EXPIRING = "expiring"  # falls due during the run, or has already
    DUPLICATE = "duplicate"  # the same bytes again
    REORDERED = "reordered"  # an older version behind a newer one
    CONFLICT = "conflict"  # the same version with other content
    POISON = "poison"


# Shares of the events; what is left over are new postings.
SHARES = {
    Kind.UPDATE: 0.08,
    Kind.DELETE: 0.03,
    Kind.EXPIRING: 0.03,
    Kind.DUPLICATE: 0.03,
    Kind.REORDERED: 0.03,
    Kind.CONFLICT: 0.01,
    Kind.POISON: 0.03,
}
SHORT_LIFE_MS = (3_000, 9_000)  # from publishing to expiry
LATEST_EXPIRY_MS = 2_000  # after the last event: nobody should wait long for a report
LATE_BY = (3, 40)  # events between a newer version and the older one behind it


@dataclass(frozen=True, slots=True)
class PlannedEvent:
    """One record to publish. `refused` names the stage that must refuse it, `posting` is None when none can read it."""

    kind: Kind
    posting_id: str  # the Kafka key
    value: bytes
    posting: Posting | None
    refused: str | None = None


def as_given(
    postings: Sequence[Posting], *, start_ms: int, max_life_ms: int, checked: bool = True
) -> list[PlannedEvent]:
    """The postings as events, in order, with nothing mixed in. One that breaks a rule must be refused by `validate`."""
    return [
        _event(Kind.NEW, posting, _broken_rule(posting, start_ms, max_life_ms) if checked else None)
        for posting in postings
    ]


def plan(
    postings: Sequence[Posting],
    *,
    seed: int,
    start_ms: int,
    rate: float,
    count: int,
    max_life_ms: int,
    checked: bool = True,
) -> list[PlannedEvent]:
    """`count` events: the postings once each in seeded order, with updates, deletes and trouble in between.

    `rate` is events a second (0: all at `start_ms`), which says when each short expiry falls due. When the postings
    run out, updates take their place. `checked` asks the rules about each posting; without it all but the poison must
    be accepted, whatever the rules' code says.
    """
    return _Planner(postings, seed, start_ms, rate, max_life_ms, checked).run(count)


class _Planner:
    """The growing plan and what is known so far. Used once."""

    def __init__(
        self, postings: Sequence[Posting], seed: int, start_ms: int, rate: float, max_life_ms: int, checked: bool
    ) -> None:
        self._random = random.Random(seed)
        self._fresh = [posting for posting in postings if posting.op is Op.UPSERT]
        self._random.shuffle(self._fresh)
        self._start_ms = start_ms
        self._rate = rate
        self._end_ms = start_ms
        self._max_life_ms = max_life_ms
        self._checked = checked
        self._newest: dict[str, Posting] = {}
        self._ids: list[str] = []
        self._late: dict[int, list[Posting]] = {}
        self._events: list[PlannedEvent] = []

    def run(self, count: int) -> list[PlannedEvent]:
        kinds, weights = list(SHARES), list(SHARES.values())
        makers: dict[Kind, Callable[[], None]] = {
            Kind.NEW: self._new,
            Kind.UPDATE: self._update,
            Kind.DELETE: self._delete,
            Kind.EXPIRING: self._expiring,
            Kind.DUPLICATE: self._duplicate,
            Kind.REORDERED: self._reordered,
            Kind.CONFLICT: self._conflict,
            Kind.POISON: self._poison,
        }
        self._end_ms = self._start_ms + (round(count / self._rate * 1000) if self._rate else SHORT_LIFE_MS[1])
        while len(self._events) < count:
            overdue = min((at for at in self._late if at <= len(self._events)), default=None)
            if overdue is not None:
                waiting = self._late[overdue]
                self._add(Kind.REORDERED, waiting.pop(0))
                if not waiting:
                    del self._late[overdue]
                continue
            kind = self._random.choices([*kinds, Kind.NEW], [*weights, 1 - sum(weights)])[0]
            if not self._ids:
                kind = Kind.NEW
            elif kind is Kind.NEW and not self._fresh:
                kind = Kind.UPDATE
            makers[kind]()
        return self._events

    def _add(self, kind: Kind, posting: Posting) -> None:
        refused = _broken_rule(posting, self._start_ms, self._max_life_ms) if self._checked else None
        event = _event(kind, posting, refused)
        self._events.append(event)
        known = self._newest.get(posting.posting_id)
        if event.refused is None and (known is None or posting.version > known.version):
            if known is None:
                self._ids.append(posting.posting_id)
            self._newest[posting.posting_id] = posting

    def _now(self) -> int:
        return self._start_ms + (round(len(self._events) / self._rate * 1000) if self._rate else 0)

    def _known(self) -> Posting:
        """The newest version of some posting; as an UPSERT even when it was deleted, so that it can come back."""
        return self._newest[self._random.choice(self._ids)]

    def _new(self) -> None:
        self._add(Kind.NEW, self._fresh.pop())

    def _changed(self, posting: Posting) -> Posting:
        """The posting with a next version and something else in it."""
        base = posting
        if posting.op is Op.DELETE or posting.title is None:
            base = replace(posting, op=Op.UPSERT, title="Position reopened", description="Reopened by its agency.")
        change = self._random.randrange(4)
        if change == 0:
            base = replace(base, title=f"{(base.title or '')[:900]} (amended {self._random.randrange(10_000)})")
        elif change == 1:
            low = float(self._random.randrange(36, 130) * 1_000)
            base = replace(base, salary=Salary(min=low, max=low * 1.3, currency="USD", period=PayPeriod.YEAR))
        elif change == 2:
            base = replace(base, remote=self._random.choice([Remote.REMOTE, Remote.HYBRID, Remote.ONSITE]))
        else:
            extra = f"\nAmendment {self._random.randrange(10_000)}: the area of consideration has been extended."
            base = replace(base, description=(base.description or "")[:16_000] + extra)
        return replace(base, version=posting.version + 1)

    def _update(self) -> None:
        self._add(Kind.UPDATE, self._changed(self._known()))

    def _delete(self) -> None:
        """Withdraws a known posting; now and then one that nobody has seen yet."""
        if self._random.random() < 0.1 and self._fresh:
            unseen = self._fresh.pop()
            self._add(Kind.DELETE, Posting(posting_id=unseen.posting_id, version=unseen.version, op=Op.DELETE))
            return
        known = self._known()
        self._add(Kind.DELETE, replace(_bare(known), version=known.version + 1, op=Op.DELETE))

    def _expiring(self) -> None:
        posting = self._fresh.pop() if self._fresh and self._random.random() < 0.5 else self._changed(self._known())
        life = -60_000 if self._random.random() < 0.15 else self._random.randint(*SHORT_LIFE_MS)
        expires_at = min(self._now() + life, self._end_ms + LATEST_EXPIRY_MS)
        self._add(Kind.EXPIRING, replace(posting, expires_at=expires_at))

    def _duplicate(self) -> None:
        usable = [event for event in self._events[-200:] if event.refused is None and event.posting is not None]
        if usable:
            self._events.append(replace(self._random.choice(usable), kind=Kind.DUPLICATE))

    def _reordered(self) -> None:
        """A version now, and the one before it some events later."""
        older = self._changed(self._known())
        self._add(Kind.UPDATE, self._changed(older))
        self._late.setdefault(len(self._events) + self._random.randint(*LATE_BY), []).append(older)

    def _conflict(self) -> None:
        """The newest version again, saying something else."""
        known = self._known()
        if known.op is Op.UPSERT:
            self._add(Kind.CONFLICT, replace(known, title=f"{(known.title or '')[:900]} (conflicting)"))

    def _poison(self) -> None:
        """Records nobody can use: unreadable or against the rules, under a new id or under that of a good posting."""
        fresh = self._random.random() < 0.7
        template = self._known()
        posting_id = f"refused-{self._start_ms}-{len(self._events)}" if fresh else template.posting_id
        good = replace(
            template,
            posting_id=posting_id,
            version=template.version + 1_000,
            op=Op.UPSERT,
            title=template.title or "No title",
            description=f"{template.description or 'No text'} #{len(self._events)}",
        )
        sort = self._random.randrange(7)
        if sort < 4:
            value = _unreadable(sort, codec(Posting).encode(good), self._random)
            self._events.append(PlannedEvent(Kind.POISON, posting_id, value, None, "decode"))
        else:
            broken = _broken(sort, good)
            value = codec(Posting).encode(broken)
            self._events.append(PlannedEvent(Kind.POISON, posting_id, value, broken, "validate"))


def _unreadable(sort: int, good: bytes, rng: random.Random) -> bytes:
    """Garbage, a record cut short, a schema nobody has, or framing for a registry that does not know it."""
    if sort == 0:
        return b"\xff" + rng.randbytes(rng.randint(20, 400))
    if sort == 1:
        return good[: len(good) // 2]
    if sort == 2:
        return SINGLE_OBJECT_MARK + rng.randbytes(8) + good[10:]
    return CONFLUENT_MARK + struct.pack(">I", 0x7FFF_0000 + rng.randrange(0xFFFF)) + good[10:]


def _broken(sort: int, good: Posting) -> Posting:
    """Readable and against the rules: no title, pay upside down, or a text past its bound."""
    if sort == 4:
        return replace(good, title=" ")
    if sort == 5:
        return replace(good, salary=Salary(min=90_000.0, max=10.0, currency="USD", period=PayPeriod.YEAR))
    return replace(good, description="x" * (MAX_DESCRIPTION_BYTES + 1) + (good.description or ""))


def _bare(posting: Posting) -> Posting:
    return Posting(posting_id=posting.posting_id, version=posting.version, tenant=posting.tenant)


def _broken_rule(posting: Posting, start_ms: int, max_life_ms: int) -> str | None:
    """The stage that must refuse this posting, as the published rules have it; None when it keeps them."""
    try:
        check_posting(posting, now_ms=start_ms, max_life_ms=max_life_ms)
    except InvalidRecord:
        return "validate"
    return None


def _event(kind: Kind, posting: Posting, refused: str | None) -> PlannedEvent:
    return PlannedEvent(kind, posting.posting_id, codec(Posting).encode(posting), posting, refused)
