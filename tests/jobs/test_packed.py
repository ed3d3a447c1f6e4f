"""Packed state on a ValueState of plain Python: what is read, written, counted and armed."""

from collections import Counter
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from penstock.jobs.operators.packed import Packed
from penstock.schemas.events import MinVersion
from penstock.schemas.wire import codec

HELD = MinVersion(posting_id="p", version=1)
NEXT = MinVersion(posting_id="p", version=2)


class Value:
    """A ValueState that says how often it was written."""

    def __init__(self):
        self.held, self.writes = None, 0

    def value(self):
        return self.held

    def update(self, value):
        self.held, self.writes = value, self.writes + 1

    def clear(self):
        self.update(None)


class Counters(dict):
    def __missing__(self, name):
        return SimpleNamespace(inc=lambda: self.said.update([name]))

    said: Counter


@dataclass
class Outcome:
    state: MinVersion | None
    wake_at: int | None = None
    counted: tuple[str, ...] = ()


class Ctx:
    """The context of an operator, which is its own timer service."""

    def __init__(self):
        self.armed = []

    def timer_service(self):
        return self

    def register_processing_time_timer(self, at):
        self.armed.append(at)


@pytest.fixture
def value():
    return Value()


@pytest.fixture
def counters():
    made = Counters()
    made.said = Counter()
    return made


@pytest.fixture
def packed(value, counters):
    return Packed(value, codec(MinVersion), counters)


def test_what_was_written_is_read(packed, value):
    assert packed.read() is None
    packed.become(None, Outcome(HELD), Ctx())
    assert packed.read() == HELD
    value.held = bytearray(value.held)
    assert packed.read() == HELD


def test_what_is_held_already_is_not_written_again(packed, value):
    packed.become(None, Outcome(HELD), Ctx())
    packed.become(HELD, Outcome(HELD), Ctx())
    assert value.writes == 1
    packed.become(HELD, Outcome(NEXT), Ctx())
    assert (packed.read(), value.writes) == (NEXT, 2)


def test_a_key_without_a_state_is_forgotten(packed):
    packed.become(None, Outcome(HELD), Ctx())
    packed.become(HELD, Outcome(None), Ctx())
    assert packed.read() is None


def test_an_outcome_is_counted_and_its_timer_armed(packed, counters):
    ctx = Ctx()
    packed.become(None, Outcome(HELD, counted=("stale", "stale", "repeat")), ctx)
    assert (counters.said, ctx.armed) == (Counter(stale=2, repeat=1), [])
    packed.become(HELD, Outcome(HELD, wake_at=7), ctx)
    assert ctx.armed == [7]
