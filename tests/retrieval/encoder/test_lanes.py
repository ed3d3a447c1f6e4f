"""Lanes: calls of many threads in one batch, queries before postings, nothing waits for ever."""

import threading
import time

import pytest

from penstock.retrieval.encoder.lanes import Lane, LaneLimits, Precedence
from penstock.schemas.grpc_avro import NotReady, Refused

SOON = 10.0  # seconds after which a test gives up


def limits(**given):
    return LaneLimits(**{"max_batch": 64, "max_pending": 64, "window_s": 0.0, "chunk": 64, "patience_s": 0.0, **given})


@pytest.fixture
def lane_of():
    lanes = []

    def make(work, level=0, precedence=None, **given):
        lane = Lane(f"test-{len(lanes)}", level, limits(**given), precedence or Precedence(), work)
        lanes.append(lane)
        return lane

    yield make
    for lane in lanes:
        lane.close()


class Gate:
    """Work that waits until the test lets it go, and tells what it was given."""

    def __init__(self):
        self.entered = threading.Event()
        self.open = threading.Event()
        self.batches = []

    def __call__(self, items):
        self.batches.append(list(items))
        self.entered.set()
        assert self.open.wait(SOON)
        return [item * 10 for item in items]


def test_every_call_gets_its_own_results_in_order(lane_of):
    lane = lane_of(lambda items: [item * 10 for item in items])
    futures = [lane.submit([n, n + 1]) for n in range(20)]
    assert [future.result(SOON) for future in futures] == [[n * 10, n * 10 + 10] for n in range(20)]


def test_what_gathers_while_a_batch_runs_is_the_next_batch(lane_of):
    gate = Gate()
    lane = lane_of(gate)
    first = lane.submit([1])
    assert gate.entered.wait(SOON)
    rest = [lane.submit([n]) for n in (2, 3, 4)]
    gate.open.set()
    assert [future.result(SOON) for future in (first, *rest)] == [[10], [20], [30], [40]]
    assert gate.batches == [[1], [2, 3, 4]]


def test_a_batch_is_at_most_max_batch_but_a_larger_call_stays_whole(lane_of):
    gate = Gate()
    lane = lane_of(gate, max_batch=3)
    first = lane.submit([0])
    assert gate.entered.wait(SOON)
    calls = [lane.submit(items) for items in ([1, 2], [3, 4], [5, 6, 7, 8, 9])]
    gate.open.set()
    for future in (first, *calls):
        future.result(SOON)
    assert gate.batches == [[0], [1, 2], [3, 4], [5, 6, 7, 8, 9]]


def test_work_comes_in_chunks(lane_of):
    seen = []
    lane = lane_of(lambda items: [seen.append(len(items)) or item for item in items], chunk=4)
    assert lane.submit(list(range(10))).result(SOON) == list(range(10))
    assert seen == [4] * 4 + [4] * 4 + [2] * 2


def test_a_full_lane_refuses_and_says_why(lane_of):
    gate = Gate()
    lane = lane_of(gate, max_pending=2)
    first = lane.submit([1])
    assert gate.entered.wait(SOON)
    second = lane.submit([2, 3])
    with pytest.raises(Refused, match="at most 2"):
        lane.submit([4])
    gate.open.set()
    assert first.result(SOON) == [10] and second.result(SOON) == [20, 30]
    assert lane.submit([4]).result(SOON) == [40]


def test_one_call_larger_than_the_bound_is_taken_when_nothing_waits(lane_of):
    assert lane_of(lambda items: items, max_pending=2).submit([1, 2, 3]).result(SOON) == [1, 2, 3]


def test_a_caller_that_left_costs_no_work(lane_of):
    gate = Gate()
    lane = lane_of(gate)
    first = lane.submit([1])
    assert gate.entered.wait(SOON)
    gone = lane.submit([2], alive=lambda: False)
    here = lane.submit([3])
    gate.open.set()
    assert first.result(SOON) == [10] and here.result(SOON) == [30]
    with pytest.raises(TimeoutError, match="left"):
        gone.result(SOON)
    assert gate.batches == [[1], [3]] and lane.abandoned == 1


def test_work_that_fails_fails_its_batch_and_not_the_lane(lane_of):
    def work(items):
        if 0 in items:
            raise ValueError("zero")
        return items

    lane = lane_of(work)
    with pytest.raises(ValueError, match="zero"):
        lane.submit([0]).result(SOON)
    assert lane.submit([1]).result(SOON) == [1]


def test_a_closed_lane_answers_all_that_waits(lane_of):
    gate = Gate()
    lane = lane_of(gate)
    running = lane.submit([1])
    assert gate.entered.wait(SOON)
    waiting = lane.submit([2])
    closer = threading.Thread(target=lane.close)
    closer.start()
    gate.open.set()
    closer.join(SOON)
    assert running.result(SOON) == [10]
    with pytest.raises(NotReady):
        waiting.result(SOON)
    with pytest.raises(NotReady):
        lane.submit([3])


def test_a_lower_lane_gives_way_between_chunks(lane_of):
    precedence, second = Precedence(), threading.Event()
    low_gate, high_gate = Gate(), Gate()

    def low_work(items):
        if low_gate.entered.is_set():
            second.set()
        return low_gate(items)

    low = lane_of(low_work, level=1, precedence=precedence, chunk=1, patience_s=SOON)
    high = lane_of(high_gate, level=0, precedence=precedence)
    slow = low.submit([1, 2])
    assert low_gate.entered.wait(SOON)
    quick = high.submit([9])
    assert high_gate.entered.wait(SOON)
    low_gate.open.set()
    assert not second.wait(0.1)  # the higher lane is at work: the next chunk waits
    high_gate.open.set()
    assert quick.result(SOON) == [90] and slow.result(SOON) == [10, 20]
    assert second.is_set()


def test_patience_ends_so_that_no_lane_starves():
    precedence = Precedence()
    precedence.add(0, 1)  # a higher lane that never finishes
    lane = Lane("low", 1, limits(chunk=1, patience_s=0.01), precedence, lambda items: items)
    try:
        begun = time.monotonic()
        assert lane.submit([1, 2]).result(SOON) == [1, 2]
        assert time.monotonic() - begun < SOON
    finally:
        lane.close()


def test_an_empty_call_needs_no_turn(lane_of):
    assert lane_of(lambda items: items).submit([]).result(0) == []
