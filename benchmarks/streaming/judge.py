"""Nothing lost, nothing wrong: every posting that a phase published against what the demo's oracle says of it.

Memory is bounded by ids: the oracle is given postings without their descriptions (nothing it compares), and new
postings under their key instead of their bytes. Owned by one thread.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from penstock.infra.demo.accounting import Accounting, Oracle, Published, compare, matches
from penstock.infra.demo.plan import PlannedEvent
from penstock.infra.kafka_clients import Tail
from penstock.infra.settings import Settings
from penstock.retrieval.client import RetrievalClient
from penstock.schemas.events import DeadLetter
from penstock.schemas.rpc import GetRequest, Row
from penstock.schemas.topics import POSTINGS
from penstock.schemas.wire import codec

IDS_A_CALL = 500
CALL_S = 30.0
LOOK_EVERY_S = 1.0


class Judge:
    """Follows the dead letters from its making on; `close` when done."""

    def __init__(self, settings: Settings, retrieval: RetrievalClient) -> None:
        self._retrieval = retrieval
        self._oracle = Oracle()
        self._published = 0
        self._tail = Tail(settings.kafka, [POSTINGS.dead_letters])
        self._letters: list[DeadLetter] = []
        self._by_key: set[bytes] = set()

    def close(self) -> None:
        self._tail.close()

    def published(self, events: Iterable[PlannedEvent], *, by_key: bool) -> int:
        """Account for a phase's events, in order; how many there were. `by_key`: each key comes once."""
        count = 0
        for event in events:
            posting = None if event.posting is None else replace(event.posting, description=None)
            value = event.posting_id.encode() if by_key else event.value
            if by_key:
                self._by_key.add(value)
            self._oracle.apply(Published(event.posting_id, value, posting, event.refused))
            count += 1
        self._published += count
        return count

    def verdict(self, patience_s: float) -> Accounting:
        """The verdict, once it is clean or `patience_s` seconds have brought nothing nearer."""
        wrong_before, until = None, time.monotonic() + patience_s
        open_ids: set[str] = set(self._oracle.expected(_now_ms()))
        while True:
            expected = self._oracle.expected(_now_ms())
            rows = self._rows(open_ids)
            open_ids = {each for each in open_ids if not matches(expected[each], rows.get(each))}
            missing = self._missing_letters()
            if wrong_before is None or len(open_ids) + missing < wrong_before:
                wrong_before, until = len(open_ids) + missing, time.monotonic() + patience_s
            if wrong_before == 0 or time.monotonic() > until:
                return self._compare()
            time.sleep(LOOK_EVERY_S)

    def _compare(self) -> Accounting:
        expected = self._oracle.expected(_now_ms())
        refused, usable = self._oracle.refused(), self._oracle.usable()
        return compare(self._published, expected, self._rows(expected), refused, usable, self._heard())

    def _missing_letters(self) -> int:
        refused = self._oracle.refused()
        refused.subtract(letter.raw for letter in self._heard())
        return sum(count for count in refused.values() if count > 0)

    def _heard(self) -> list[DeadLetter]:
        for message in self._tail.poll(0.0, most=10_000):
            letter = codec(DeadLetter).decode_unbounded(message.value() or b"")
            key = letter.key or b""
            self._letters.append(replace(letter, raw=key) if key in self._by_key else letter)
        return self._letters

    def _rows(self, ids: Iterable[str]) -> Mapping[str, Row]:
        return {row.posting_id: row for row in rows(self._retrieval, ids)}


def rows(retrieval: RetrievalClient, ids: Iterable[str]) -> Iterator[Row]:
    """What retrieval holds of these ids. Raises CallError."""
    wanted = list(ids)
    for start in range(0, len(wanted), IDS_A_CALL):
        yield from retrieval.get(GetRequest(posting_ids=tuple(wanted[start : start + IDS_A_CALL])), CALL_S).rows


def _now_ms() -> int:
    return int(time.time() * 1000)
