"""The admission queue: earliest deadline first, bounded, none lost and none doubled."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.ranker.errors import QueueClosed, QueueFull
from penstock.ranker.shaping.queue import Admission, DeadlineQueue


def drain(queue, now):
    out, expired = [], []
    while True:
        taken = queue.take(now)
        expired += [ticket.item for ticket in taken.expired]
        if taken.work is None:
            return out, expired
        out.append(taken.work.item)


@given(st.lists(st.integers(0, 20), max_size=40), st.integers(0, 20))
def test_work_leaves_by_deadline_then_by_arrival_and_the_late_leave_as_expired(deadlines, now):
    queue = DeadlineQueue(100)
    for number, deadline in enumerate(deadlines):
        queue.offer((deadline, number), deadline, 0)
    worked, expired = drain(queue, now)
    everything = sorted((deadline, number) for number, deadline in enumerate(deadlines))
    assert worked == [item for item in everything if item[0] > now]
    assert expired == [item for item in everything if item[0] <= now]
    assert len(queue) == 0


steps = st.lists(
    st.one_of(
        st.tuples(st.just("offer"), st.integers(1, 30)),
        st.tuples(st.just("take"), st.integers(0, 30)),
        st.tuples(st.just("withdraw"), st.integers(0, 50)),
    ),
    max_size=80,
)


@given(steps, st.integers(1, 5))
def test_against_a_sorted_list_with_offers_takes_and_withdrawals_in_any_order(steps, capacity):
    queue, model, tickets = DeadlineQueue(capacity), [], []
    for number, (what, value) in enumerate(steps):
        if what == "offer":
            if len(model) == capacity:
                with pytest.raises(QueueFull, match=rf"{capacity} requests wait, at most {capacity} may"):
                    queue.offer(number, value, 0)
            else:
                tickets.append(queue.offer(number, value, 0))
                model.append((value, number))
        elif what == "take":
            taken = queue.take(value)
            due = sorted(entry for entry in model if entry[0] <= value)
            rest = sorted(entry for entry in model if entry[0] > value)
            assert [ticket.item for ticket in taken.expired] == [number for _, number in due]
            assert (taken.work.item if taken.work else None) == (rest[0][1] if rest else None)
            model = rest[1:]
        elif tickets:
            ticket = tickets[value % len(tickets)]
            entry = (ticket.deadline_ms, ticket.item)
            assert queue.withdraw(ticket) == (entry in model)
            model = [other for other in model if other != entry]
        assert len(queue) == len(model)


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), max_size=40))
def test_who_takes_urgent_work_only_leaves_the_rest_where_it_is(offers):
    queue = DeadlineQueue(100)
    for number, (deadline, urgent) in enumerate(offers):
        queue.offer((deadline, number, urgent), deadline, 0, urgent)
    urgent = []
    while (taken := queue.take(-1, urgent_only=True)).work is not None:
        urgent.append(taken.work.item)
    everything = sorted((deadline, number, urgent) for number, (deadline, urgent) in enumerate(offers))
    assert urgent == [item for item in everything if item[2]]
    assert drain(queue, -1)[0] == [item for item in everything if not item[2]]


def test_withdrawn_requests_do_not_pile_up():
    queue = DeadlineQueue(4)
    for _ in range(1_000):
        queue.withdraw(queue.offer("gone", 10, 0))
    assert len(queue._urgent) <= 2 * queue.capacity + 1


def test_concurrent_producers_and_consumers_lose_and_double_nothing():
    admission = Admission(DeadlineQueue(16), clock=lambda: 50)
    produced, seen, lock = 4 * 200, [], threading.Lock()

    def produce(name):
        for number in range(200):
            while True:
                try:
                    admission.offer((name, number), 40 + number % 20)
                    break
                except QueueFull:
                    continue

    def consume():
        while (taken := admission.take()) is not None:
            with lock:
                seen.extend(ticket.item for ticket in taken.expired)
                if taken.work is not None:
                    seen.append(taken.work.item)

    producers = [threading.Thread(target=produce, args=(name,)) for name in range(4)]
    consumers = [threading.Thread(target=consume) for _ in range(3)]
    for thread in producers + consumers:
        thread.start()
    for thread in producers:
        thread.join(60)
    admission.close()
    for thread in consumers:
        thread.join(60)
    assert len(seen) == produced
    assert set(seen) == {(name, number) for name in range(4) for number in range(200)}


def test_a_closed_queue_gives_what_waits_and_takes_nothing_more():
    admission = Admission(DeadlineQueue(4), clock=lambda: 0)
    admission.offer("last", 10)
    admission.close()
    with pytest.raises(QueueClosed):
        admission.offer("too late", 10)
    assert admission.take().work.item == "last"
    assert admission.take() is None


def test_a_queue_without_room_is_a_configuration_error():
    with pytest.raises(ValueError, match=r"ranker\.max_queue"):
        DeadlineQueue(0)
