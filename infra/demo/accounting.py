"""What must have become of every event, from the input alone, and whether it did.

The oracle states the rules of order again, apart from the jobs that keep them: the highest version wins; repeats and
older versions change nothing; of two contents under one version the first wins and the second is refused; an id belongs
to the tenant who published it first, and another's events are refused; what is past its expiry is expired. Every
posting id ends in exactly one state. What it shares with the pipeline are the schemas; and whether a record by itself
is fit comes with the event (`plan`: by construction for the sample, by the pipeline's own rules for anyone's file).
Pure: the caller passes the time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from penstock.schemas.events import Attributes, DeadLetter, IndexOp, Op, Posting
from penstock.schemas.records import fields_of
from penstock.schemas.rpc import Row, RowState

MAX_DETAILS = 20  # sentences kept about what is lost or wrong; the counts are whole


class State(StrEnum):
    """Where a posting id can end."""

    LIVE = "live"
    DELETED = "deleted"
    EXPIRED = "expired"
    REJECTED = "rejected"  # nothing of it was ever usable


@dataclass(frozen=True, slots=True)
class Published:
    """One record as it was published. `refused` says that decoding or validation must refuse it."""

    posting_id: str
    value: bytes
    posting: Posting | None
    refused: str | None


@dataclass(frozen=True, slots=True)
class Expected:
    """Where an id must be, and what the index must hold of it (None: nothing to compare)."""

    state: State
    version: int | None = None
    tenant: str | None = None
    attributes: Attributes | None = None
    expires_at: int | None = None


class Oracle:
    """The events so far, folded. `apply` in publishing order, then ask. Owned by one thread."""

    def __init__(self) -> None:
        self._accepted: dict[str, Posting | None] = {}
        self._refused: Counter[bytes] = Counter()
        self._usable: set[bytes] = set()

    def apply(self, event: Published) -> None:
        posting = event.posting
        known = self._accepted.setdefault(event.posting_id, None)
        foreign = posting is not None and known is not None and posting.tenant != known.tenant
        if posting is None or event.refused is not None or foreign:
            self._refused[event.value] += 1
        elif known is None or posting.version > known.version:
            self._accepted[event.posting_id] = posting
            self._usable.add(event.value)
        elif posting.version == known.version and replace(posting, trace=None) != replace(known, trace=None):
            self._refused[event.value] += 1
        else:
            self._usable.add(event.value)

    def version_of(self, posting_id: str) -> int | None:
        """The highest version accepted of this id so far."""
        known = self._accepted.get(posting_id)
        return None if known is None else known.version

    def expected(self, now_ms: int) -> dict[str, Expected]:
        """Every id with where it must be at `now_ms`."""
        return {posting_id: _expected(posting, now_ms) for posting_id, posting in self._accepted.items()}

    def refused(self) -> Counter[bytes]:
        """The bytes that must be found in the dead-letter topic, with how often they were published."""
        return Counter(self._refused)

    def usable(self) -> set[bytes]:
        """The bytes that must not be found there."""
        return self._usable - self._refused.keys()

    def last_expiry(self, before_ms: int) -> int | None:
        """The latest expiry up to `before_ms` of what is accepted: when the last short-lived posting falls due."""
        due = [p.expires_at for p in self._accepted.values() if p is not None and p.expires_at is not None]
        return max((at for at in due if at <= before_ms), default=None)


def oracle(events: Iterable[Published]) -> Oracle:
    """The oracle after these events."""
    out = Oracle()
    for event in events:
        out.apply(event)
    return out


def _expected(posting: Posting | None, now_ms: int) -> Expected:
    if posting is None:
        return Expected(State.REJECTED)
    if posting.op is Op.DELETE:
        return Expected(State.DELETED, posting.version, posting.tenant)
    if posting.expires_at is not None and posting.expires_at <= now_ms:
        return Expected(State.EXPIRED, posting.version, posting.tenant)
    named = {f.attribute: getattr(posting, f.attribute) for f in fields_of(Attributes)}
    return Expected(State.LIVE, posting.version, posting.tenant, Attributes(**named), posting.expires_at)


@dataclass(frozen=True, slots=True)
class Accounting:
    """The verdict. `live` to `rejected` count ids as they were found; lost and wrong must be 0."""

    published: int
    live: int
    deleted: int
    expired: int
    rejected: int
    dead_lettered: int
    lost: int
    wrong: int
    details: tuple[str, ...] = field(default=())

    @property
    def clean(self) -> bool:
        return self.lost == 0 and self.wrong == 0


def compare(
    published: int,
    expected: Mapping[str, Expected],
    rows: Mapping[str, Row],
    refused: Mapping[bytes, int],
    usable: set[bytes],
    letters: Sequence[DeadLetter],
    uncounted: Collection[str] = (),
) -> Accounting:
    """The verdict on `published` events: every expected id against its row, every refused record against the letters.

    The ids in `uncounted` are judged like the others, but are in no count of where postings ended.
    Letters may repeat (at least once); letters with bytes that this run never published are another run's.
    """
    found: Counter[State] = Counter()
    lost, wrong = [], []
    for posting_id, wanted in expected.items():
        row = rows.get(posting_id)
        state = _state(row)
        if wanted.state is State.REJECTED:
            if state is None:
                found[State.REJECTED] += posting_id not in uncounted
            else:
                wrong.append(f"{posting_id}: {state}, but nothing of it was usable")
            continue
        if row is None or state is None:
            lost.append(f"{posting_id}: absent, must be {wanted.state} at version {wanted.version}")
            continue
        found[state] += posting_id not in uncounted
        trouble = difference(wanted, row)
        if trouble is not None:
            wrong.append(f"{posting_id}: {trouble}")
    counted = Counter(letter.raw for letter in letters)
    dead_lettered = 0
    for raw, times in refused.items():
        dead_lettered += min(times, counted[raw])
        lost += [f"no dead letter with the bytes {_shown(raw)}"] * max(0, times - counted[raw])
    for letter in {letter.raw: letter for letter in letters if letter.raw in usable}.values():
        wrong.append(f"refused although usable ({letter.stage}, {letter.message}): {_shown(letter.raw)}")
    return Accounting(
        published=published,
        live=found[State.LIVE],
        deleted=found[State.DELETED],
        expired=found[State.EXPIRED],
        rejected=found[State.REJECTED],
        dead_lettered=dead_lettered,
        lost=len(lost),
        wrong=len(wrong),
        details=tuple(([f"lost: {line}" for line in lost] + [f"wrong: {line}" for line in wrong])[:MAX_DETAILS]),
    )


def matches(wanted: Expected, row: Row | None) -> bool:
    """Whether the row is what the oracle wants of this id."""
    if wanted.state is State.REJECTED:
        return _state(row) is None
    return row is not None and _state(row) is not None and difference(wanted, row) is None


def difference(wanted: Expected, row: Row) -> str | None:
    """The first thing about a present row that is not as it must be, in words; None when all is."""
    state, update = _state(row), row.update
    if state is not wanted.state:
        return f"{state}, must be {wanted.state}"
    if update is None:
        return "the row holds no update"
    if update.version != wanted.version:
        return f"version {update.version}, must be {wanted.version}"
    if update.tenant != wanted.tenant:
        return f"tenant {update.tenant!r}, must be {wanted.tenant!r}"
    if wanted.state is State.LIVE:
        if update.op is not IndexOp.UPSERT or update.attributes is None:
            return f"live from a {update.op}"
        for f in fields_of(Attributes):
            held, must = getattr(update.attributes, f.attribute), getattr(wanted.attributes, f.attribute)
            if held != must:
                return f"{f.name} is {held!r}, must be {must!r}"
        if update.expires_at != wanted.expires_at:
            return f"expires_at is {update.expires_at}, must be {wanted.expires_at}"
    return None


_STATES = {RowState.LIVE: State.LIVE, RowState.DELETED: State.DELETED, RowState.EXPIRED: State.EXPIRED}


def _state(row: Row | None) -> State | None:
    """None when no shard has the id."""
    return None if row is None else _STATES.get(row.state)


def _shown(raw: bytes) -> str:
    return f"{raw[:12].hex(' ')}… ({len(raw)} bytes)"
