"""Micro-batching: who waits, who is refused, and that everybody gets their own answer exactly once."""

import itertools
import math
import threading
from concurrent.futures import CancelledError
from contextlib import nullcontext

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from waiting import eventually

from penstock.retrieval.batching import GATHER_S, Batcher, BatchQueue, Cost, Limits, ScanTimes, cost_of, each
from penstock.schemas.errors import InvalidRecord
from penstock.schemas.grpc_avro import NotReady, Refused

AMPLE = Limits(max_batch=4, max_waiting=100, max_bytes=1_000)


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def scanned(queue, seconds, now):
    """A scan of everything that waits; when it ends."""
    taken = queue.take(now)
    queue.end(now + seconds)
    return taken, now + seconds


# --- the policy ------------------------------------------------------------------------------------------------------


def test_nobody_waits_for_an_idle_scanner():
    queue = BatchQueue(AMPLE)
    assert queue.due(5.0) is None
    queue.offer("a", 1, math.inf, 5.0)
    assert queue.due(5.0) == 5.0
    _, ended = scanned(queue, 0.01, 5.0)
    queue.offer("a again", 1, math.inf, ended)  # one caller after itself has nobody to wait for
    assert queue.due(ended) == ended


def test_after_a_batch_its_callers_may_come_back_for_a_millisecond():
    queue = BatchQueue(AMPLE)
    for name in "ab":
        queue.offer(name, 1, math.inf, 5.0)
    _, ended = scanned(queue, 0.01, 5.0)
    queue.offer("a again", 1, math.inf, ended)
    assert queue.due(ended) == ended + GATHER_S
    assert queue.due(ended + 0.5) == ended + 0.5
    queue.offer("b again", 1, math.inf, ended)
    assert queue.due(ended) == ended  # all are back


def test_two_callers_that_take_turns_come_together():
    queue = BatchQueue(AMPLE)
    queue.offer("a", 1, math.inf, 5.0)
    queue.take(5.0)
    queue.offer("b", 1, math.inf, 5.005)
    assert queue.due(5.005) is None
    queue.end(5.01)
    assert queue.due(5.01) == 5.01 + GATHER_S
    queue.offer("a", 1, math.inf, 5.0102)
    assert queue.due(5.0102) == 5.0102
    assert [ticket.item for ticket in queue.take(5.0102).batch] == ["b", "a"]


def test_what_the_queue_cannot_hold_is_refused_with_the_numbers():
    queue = BatchQueue(Limits(max_batch=4, max_waiting=2, max_bytes=100))
    queue.offer("a", 60, math.inf, 0.0)
    with pytest.raises(Refused, match="needs 50 bytes, those that wait hold 60 of 100"):
        queue.offer("b", 50, math.inf, 0.0)
    queue.offer("b", 40, math.inf, 0.0)
    with pytest.raises(Refused, match="2 searches wait already, at most 2"):
        queue.offer("c", 0, math.inf, 0.0)
    queue.take(0.0)
    queue.offer("c", 100, math.inf, 0.0)


def test_what_would_be_answered_too_late_is_refused_with_the_numbers():
    queue = BatchQueue(Limits(max_batch=1, max_waiting=100, max_bytes=100))
    queue.offer("a", 1, math.inf, 0.0)
    _, now = scanned(queue, 0.1, 0.0)
    queue.offer("b", 1, now + 0.001, now)  # the scanner is idle: it is tried
    queue.take(now)
    queue.offer("c", 1, now + 0.25, now)
    with pytest.raises(Refused, match=r"an answer is expected in 300 ms, the deadline is in 250 ms: 1 searches wait"):
        queue.offer("d", 1, now + 0.25, now)
    queue.offer("d", 1, now + 0.35, now)
    queue.offer("e", 1, now + 0.4, now + 0.1)  # of its scan 0 are left, two wait before it


def test_a_wrong_estimate_corrects_itself():
    queue = BatchQueue(AMPLE)
    queue.offer("a", 1, math.inf, 0.0)
    _, now = scanned(queue, 60.0, 0.0)  # the machine slept
    for _ in range(100):
        queue.offer("b", 1, now + 0.05, now)
        _, now = scanned(queue, 0.01, now)
    assert queue.times.of(1) == pytest.approx(0.01, rel=0.5)


@given(st.lists(st.tuples(st.floats(0, 1e9), st.floats(0, 10)), min_size=1))
def test_more_work_never_takes_less_time_nor_any_less_than_none(scans):
    times = ScanTimes()
    for cost, seconds in scans:
        times.add(cost, seconds)
    told = [times.of(cost) for cost in [0, *(10.0**n for n in range(10))]]
    assert told[0] >= 0
    assert all(a <= b + 1e-9 for a, b in itertools.pairwise(told))


@given(st.floats(0.001, 1), st.floats(0.0, 0.1), st.sampled_from([1, 1_000, 1_000_000]))
def test_scan_times_that_lie_on_a_line_are_told_exactly(fixed, each_, unit):
    times = ScanTimes()
    for n in (1, 5, 9, 2):
        times.add(n * unit, fixed + each_ * n)
    assert times.of(32 * unit) == pytest.approx(fixed + 32 * each_, rel=1e-6)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.0002, 0.0007, 0.0011, 0.004, 0.03]), st.sampled_from([0.0001, 0.0015, 0.005, 0.02])
        ),
        min_size=1,
        max_size=40,
    ),
    st.integers(1, 5),
)
def test_micro_batching_costs_at_most_a_millisecond_under_load_and_nothing_when_idle(arrivals, max_batch):
    """A day of the queue under a clock of its own: (seconds since the arrival before, seconds a scan for it takes)."""
    queue = BatchQueue(Limits(max_batch, 100, 1_000))
    at = list(itertools.accumulate(gap for gap, _ in arrivals))
    coming = list(zip(at, (seconds for _, seconds in arrivals), strict=True))
    now, ended, answered = 0.0, -math.inf, 0
    while coming or len(queue):
        due = queue.due(now)
        if due is None or (coming and coming[0][0] <= due):  # whoever arrives by then is in it
            now, seconds = coming.pop(0)
            queue.offer(seconds, 1, math.inf, now)
            continue
        idle_since, now = ended, due
        batch = queue.take(now).batch
        oldest = batch[0].offered
        held_up = now - max(oldest, idle_since)  # by the wish for company, not by a scan
        assert held_up <= GATHER_S + 1e-12
        if oldest > idle_since + GATHER_S:
            assert held_up == 0 and len({ticket.offered for ticket in batch}) == 1
        answered += len(batch)
        ended = now + max(ticket.item for ticket in batch)
        while coming and coming[0][0] < ended:
            moment, seconds = coming.pop(0)
            queue.offer(seconds, 1, math.inf, moment)
        now = ended
        queue.end(now)
    assert answered == len(arrivals)


def test_a_batch_pays_every_search_and_the_pass_they_share_once():
    assert cost_of([]) == 0
    assert cost_of([Cost(1, 9), Cost(2, 90), Cost(3)]) == 96


def test_a_cheap_search_is_not_refused_for_what_dear_ones_took():
    """Each search's delay comes of what it and those before it cost, not of how many they are."""
    queue = BatchQueue(Limits(max_batch=2, max_waiting=100, max_bytes=100))
    cheap, dear = Cost(own=10), Cost(own=1_000, shared=9_000)
    now = 0.0
    for cost, seconds in ((dear, 1.0), (cheap, 0.001)) * 10:
        queue.offer("past", 1, math.inf, now, cost)
        _, now = scanned(queue, seconds, now)
    queue.offer("running", 1, math.inf, now, cheap)
    queue.take(now)
    queue.offer("a", 1, now + 0.02, now, cheap)
    with pytest.raises(
        Refused, match=r"an answer is expected in 1\d\d\d ms, the deadline is in 20 ms: 1 searches wait"
    ):
        queue.offer("b", 1, now + 0.02, now, dear)
    queue.offer("b", 1, math.inf, now, dear)
    with pytest.raises(Refused):  # a second batch, after a dear one
        queue.offer("c", 1, now + 0.02, now, cheap)
    queue.offer("c", 1, now + 2.0, now, cheap)


class QueueLives(RuleBasedStateMachine):
    """Any interleaving: each search leaves exactly once, by the way that it must."""

    @initialize(batch=st.integers(1, 4), waiting=st.integers(1, 6), nbytes=st.integers(1, 40))
    def begin(self, batch, waiting, nbytes):
        self.limits = Limits(batch, waiting, nbytes)
        self.queue = BatchQueue(self.limits)
        self.now = 0.0
        self.waits = []  # the model: tickets in the order of their offers
        self.began = None

    @rule(nbytes=st.integers(0, 20), life=st.sampled_from([0.0, 0.002, 0.05, 10.0, math.inf]))
    def offer(self, nbytes, life):
        idle = self.began is None and not self.waits
        try:
            ticket = self.queue.offer(object(), nbytes, self.now + life, self.now)
        except Refused:
            full = len(self.waits) == self.limits.max_waiting
            held = sum(one.nbytes for one in self.waits) + nbytes
            assert full or held > self.limits.max_bytes or (not idle and life < math.inf)
        else:
            self.waits.append(ticket)

    @precondition(lambda self: self.waits)
    @rule(data=st.data())
    def withdraw(self, data):
        ticket = data.draw(st.sampled_from(self.waits))
        assert self.queue.withdraw(ticket)
        assert not self.queue.withdraw(ticket)
        self.waits.remove(ticket)

    @rule(seconds=st.sampled_from([0.0001, 0.0005, 0.001, 0.01, 1.0]))
    def pass_time(self, seconds):
        self.now += seconds

    @precondition(lambda self: self.began is None)
    @rule()
    def take(self):
        taken = self.queue.take(self.now)
        assert set(taken.expired) == {one for one in self.waits if one.deadline <= self.now}
        on_time = [one for one in self.waits if one.deadline > self.now]
        assert list(taken.batch) == on_time[: self.limits.max_batch]
        self.waits = on_time[self.limits.max_batch :]
        self.began = self.now if taken.batch else None

    @precondition(lambda self: self.began is not None)
    @rule()
    def end(self):
        self.queue.end(self.now)
        self.began = None
        self.ended = self.now

    @invariant()
    def accounts(self):
        assert len(self.queue) == len(self.waits) <= self.limits.max_waiting
        assert self.queue.nbytes == sum(one.nbytes for one in self.waits) <= self.limits.max_bytes
        due = self.queue.due(self.now)
        if self.began is not None or not self.waits:
            assert due is None
        else:
            assert self.now <= due <= max(self.now, getattr(self, "ended", -1.0) + GATHER_S)
            if len(self.waits) >= self.limits.max_batch:
                assert due == self.now


TestQueueLives = QueueLives.TestCase
TestQueueLives.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


# --- the batcher -----------------------------------------------------------------------------------------------------


def echo(asks):
    return [InvalidRecord("ask", ask, "an even one") if ask % 2 else ask * 10 for ask in asks]


class Lives(RuleBasedStateMachine):
    """Arrivals, cancellations and deadlines in any order, scans in between: each gets its own answer, once."""

    @initialize()
    def begin(self):
        self.clock = Clock()
        self.scans = []
        self.during = []  # what happens while a scan runs
        self.batcher = Batcher(self.scan, Limits(3, 8, 100), nullcontext(), "shard-0", self.clock)
        self.asked = {}  # number -> pending
        self.left = set()

    def scan(self, asks):
        self.scans.append(asks)
        while self.during:
            self.during.pop()()
        return echo(asks)

    @rule(life=st.sampled_from([0.01, 1.0, math.inf]))
    def submit(self, life):
        number = len(self.asked)
        try:
            self.asked[number] = self.batcher.submit(number, 1, self.clock() + life)
        except Refused:
            self.asked[number] = None

    @precondition(lambda self: any(self.asked.values()))
    @rule(data=st.data(), during=st.booleans())
    def leave(self, data, during):
        number = data.draw(st.sampled_from([number for number, pending in self.asked.items() if pending]))

        def go():
            if not self.asked[number].answer.done():
                self.left.add(number)
            self.batcher.withdraw(self.asked[number])

        if during:
            self.during.append(go)
        else:
            go()

    @rule(seconds=st.sampled_from([0.001, 0.1, 2.0]))
    def pass_time(self, seconds):
        self.clock.now += seconds

    @rule()
    def turn(self):
        self.batcher.turn()

    def teardown(self):
        if not hasattr(self, "asked"):
            return
        self.clock.now += 0.5
        while len(self.batcher):
            self.batcher.turn()
        scanned = [ask for asks in self.scans for ask in asks]
        assert len(scanned) == len(set(scanned))  # none cost two scans
        assert all(len(asks) <= 3 for asks in self.scans)
        for number, pending in self.asked.items():
            if pending is None:
                assert number not in scanned
                continue
            assert pending.answer.done()
            if number in self.left:
                assert pending.answer.cancelled()
            elif number not in scanned:
                assert pending.deadline <= self.clock() and pending.answer.cancelled()
            elif number % 2:
                with pytest.raises(InvalidRecord, match=f"got {number},"):
                    self.batcher.wait(pending)
            else:
                assert self.batcher.wait(pending) == number * 10


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


@pytest.fixture
def make():
    made = []

    def batcher(scan, limits=AMPLE, **more):
        made.append(Batcher(scan, limits, nullcontext(), "shard-0", **more))
        made[-1].start()
        return made[-1]

    yield batcher
    for one in made:
        one.close()


class Gate:
    """A scan that waits to be let through."""

    def __init__(self):
        self.began, self.open = threading.Semaphore(0), threading.Semaphore(0)
        self.batches = []

    def __call__(self, asks):
        self.batches.append(list(asks))
        self.began.release()
        assert self.open.acquire(timeout=20)
        return echo(asks)


def test_those_who_come_during_a_scan_share_the_next(make):
    gate = Gate()
    batcher = make(gate)
    first = batcher.submit(0, 1)
    assert gate.began.acquire(timeout=20)
    rest = [batcher.submit(number, 1) for number in range(2, 12, 2)]
    gate.open.release(3)
    assert [batcher.wait(one) for one in (first, *rest)] == [0, 20, 40, 60, 80, 100]
    assert gate.batches == [[0], [2, 4, 6, 8], [10]]


def test_a_deadline_that_comes_while_waiting_costs_no_scan(make):
    clock, gate = Clock(), Gate()
    batcher = make(gate, clock=clock)
    first = batcher.submit(0, 1)
    assert gate.began.acquire(timeout=20)
    brief, gone = batcher.submit(2, 1, clock() + 1), batcher.submit(4, 1)
    batcher.withdraw(gone)
    clock.now += 2
    with pytest.raises(TimeoutError, match="shard-0: the deadline came"):
        batcher.wait(brief)
    with pytest.raises(TimeoutError, match="nobody waited"):
        batcher.wait(gone)
    assert len(batcher) == 0
    gate.open.release()
    assert batcher.wait(first) == 0
    assert gate.batches == [[0]]


def test_a_deadline_that_comes_during_the_scan_ends_the_wait(make):
    gate = Gate()
    batcher = make(gate)
    slow = batcher.submit(0, 1, batcher._clock() + 0.05)
    with pytest.raises(TimeoutError, match="the deadline came"):
        batcher.wait(slow)
    gate.open.release()
    after = batcher.submit(2, 1)
    gate.open.release()
    assert batcher.wait(after) == 20
    with pytest.raises(CancelledError):
        slow.answer.result()


def test_a_scan_that_fails_or_loses_answers_fails_its_searches_and_no_others(make):
    faults = [RuntimeError("no memory"), None]

    def scan(asks):
        fault = faults.pop() if faults else 0
        if fault is None:
            return []
        if fault:
            raise fault
        return echo(asks)

    batcher = make(scan)
    for text in ("0 answers to 1 searches", "no memory"):
        with pytest.raises(RuntimeError, match=text):
            batcher.wait(batcher.submit(0, 1))
    assert batcher.wait(batcher.submit(2, 1)) == 20


def test_many_threads_get_their_own_answers(make):
    batcher = make(echo)
    wrong = []

    def caller(start):
        for number in range(start, start + 60, 2):
            try:
                if batcher.wait(batcher.submit(number, 1)) != number * 10:
                    wrong.append(number)
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=caller, args=(1_000 * n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []


def test_at_the_end_those_who_wait_are_told(make):
    gate = Gate()
    batcher = make(gate)
    first = batcher.submit(0, 1)
    assert gate.began.acquire(timeout=20)
    second = batcher.submit(2, 1)
    closing = threading.Thread(target=batcher.close)
    closing.start()
    eventually(lambda: batcher._closed, "it is closing")
    gate.open.release()
    closing.join(20)
    assert batcher.wait(first) == 0
    with pytest.raises(NotReady, match="shard-0 is stopping"):
        batcher.wait(second)
    with pytest.raises(NotReady, match="stopping"):
        batcher.submit(4, 1)


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_a_failing_batch_fails_its_bad_asks_alone(bad):
    calls = []

    def many(asks):
        calls.append(asks)
        for number in asks:
            if bad[number]:
                raise InvalidRecord("ask", number, "a good one")
        return [number * 10 for number in asks]

    answers = each(many, range(len(bad)))
    for number, answer in enumerate(answers):
        if bad[number]:
            assert isinstance(answer, InvalidRecord) and answer.given == number
        else:
            assert answer == number * 10
    assert len(calls) == 1 or any(bad)
