"""Two forwards in flight: what is launched while another is on the device, and what must not be."""

import time

import numpy as np
import pytest
from known_scores import FOREIGN, POISON, ROT, Held, PositionSum, expected, request, soon, wait

from penstock.ranker.engine.engine import Limits
from penstock.ranker.engine.errors import ForwardFailed
from penstock.ranker.engine.flights import BUSY, Flights
from penstock.ranker.engine.plan import MalformedRequest, plan
from penstock.ranker.errors import NonFiniteScore


class OnADevice(PositionSum):
    in_flight = 2

    def __init__(self):
        super().__init__()
        self.company = []  # of each launch: the last token, and those of what was launched before and not landed

    def launch(self, forward):
        last = int(forward.tokens[-1])
        aloft = [int(one.tokens[-1]) for one in self.forwards[len(self.forwards) - self.launched + self.landed :]]
        launched = super().launch(forward)
        self.company.append((last, aloft))
        return launched


@pytest.fixture
def backend():
    return OnADevice()


def held(engines, backend, limits, **options):
    return Held(engines, limits, backend=backend, **options)


def test_the_next_is_launched_while_one_is_computed_and_no_more_than_the_backend_takes(engines, backend):
    held_ = held(engines, backend, Limits(10, 10))
    asked = [held_.engine.submit(request([1], [number] * 8), soon()) for number in range(6)]
    assert (backend.launched - backend.landed, backend.most_in_flight) == (0, 1)  # alone, it was waited for at once
    held_.release()
    for one in asked:
        assert wait(one).logits == pytest.approx(expected(one.request))
    assert backend.most_in_flight == 2


def test_a_request_in_two_forwards_is_answered_when_both_have_landed(engines, backend):
    held_ = held(engines, backend, Limits(10, 10))
    asked = held_.engine.submit(request([1], *[[number] * 8 for number in range(5)]), soon())
    held_.release()
    answer = wait(asked)
    assert answer.logits == pytest.approx(expected(asked.request))
    assert (answer.forwards, backend.most_in_flight) == (5, 2)


def test_what_breaks_forwards_breaks_no_others_that_are_in_flight_with_it(engines, backend):
    held_ = held(engines, backend, Limits(10, 10))
    tokens = [10, 11, POISON, 12, 13]
    asked = [held_.engine.submit(request([1], [token] * 8), soon() + at) for at, token in enumerate(tokens)]
    held_.release()
    for token, one in zip(tokens, asked, strict=True):
        if token == POISON:
            with pytest.raises(ForwardFailed, match="2 times, last with RuntimeError: poisoned"):
                wait(one)
        else:
            assert wait(one).logits == pytest.approx(expected(one.request))
    failed = [at for at, (token, _) in enumerate(backend.company) if token == POISON]
    assert len(failed) == 2
    assert backend.company[failed[1]] == (POISON, [])
    assert backend.company[failed[1] + 1] == (9, [])  # the known answer, and nothing between


def test_what_is_tried_alone_is_not_launched_behind_another(engines, backend):
    held_ = held(engines, backend, Limits(10, 10))
    deadline = soon()
    first = held_.engine.submit(request([1], [10] * 8), deadline)
    small, foreign = (held_.engine.submit(request([1], [token] * 4), deadline + 1) for token in (11, FOREIGN))
    held_.release()
    with pytest.raises(MalformedRequest, match="foreign"):
        wait(foreign)
    for one in (first, small):
        assert wait(one).logits == pytest.approx(expected(one.request))
    assert dict(backend.company[-2:]) == {10: [], 11: []}


class OutOfMemory(OnADevice):
    def launch(self, forward):
        if 700 in forward.tokens:
            raise MemoryError
        return super().launch(forward)


def test_what_is_tried_alone_has_nothing_launched_behind_it(engines):
    """Else it would fail a second time by what cannot be launched."""
    held_ = held(engines, OutOfMemory(), Limits(10, 10))
    tokens = [POISON, 12, 700]
    poisoned, good, large = (
        held_.engine.submit(request([1], [token] * 8), soon() + at) for at, token in enumerate(tokens)
    )
    held_.release()
    assert wait(good).logits == pytest.approx(expected(good.request))
    for one, why in ((poisoned, "poisoned"), (large, "MemoryError")):
        with pytest.raises(ForwardFailed, match=why):
            wait(one)


def test_a_request_whose_forwards_fail_together_is_tried_once_more(engines, backend):
    held_ = held(engines, backend, Limits(10, 10))
    asked = held_.engine.submit(request([1], *[[number] * 8 for number in range(4)]), soon())
    backend.fails = {0}
    held_.release()
    assert wait(asked).logits == pytest.approx(expected(asked.request))


def test_the_known_answer_is_asked_when_nothing_else_is_in_flight(engines, backend, until):
    held_ = held(engines, backend, Limits(10, 10))
    before = held_.engine.status().checked_s
    tokens = [ROT, 10, 11, 12]
    asked = [held_.engine.submit(request([1], [token] * 8), soon() + at) for at, token in enumerate(tokens)]
    held_.release()
    with pytest.raises(NonFiniteScore):
        wait(asked[0])
    for one in asked[1:]:
        assert wait(one).logits == pytest.approx(expected(one.request))
    until(lambda: held_.engine.status().checked_s > before)
    assert backend.most_in_flight == 2
    assert [token for token, _ in backend.company[-5:]] == [ROT, 10, 9, 11, 12]  # 9 is the known answer's
    assert backend.company[-3] == (9, [])
    assert held_.engine.status().restarts == 0


class Slow(OnADevice):
    """Takes ten seconds of the engine's clock a forward."""

    def __init__(self, ahead):
        super().__init__()
        self.ahead = ahead

    def logits(self, forward):
        self.ahead[0] += 10
        return super().logits(forward)


def test_time_in_flight_behind_another_is_the_queues_and_none_is_counted_twice(engines):
    ahead = [0.0]
    backend = Slow(ahead)
    held_ = held(engines, backend, Limits(10, 10), clock=lambda: time.monotonic() + ahead[0])
    never = time.monotonic() + 1e6
    first, second = (held_.engine.submit(request([1], [number] * 8), never + number) for number in (2, 3))
    large = held_.engine.submit(request([1], *[[number] * 8 for number in range(4)]), never + 4)
    held_.release()
    timings = [wait(one).timings for one in (first, second, large)]
    assert backend.most_in_flight == 2
    assert [round(each["forward"], -4) for each in timings] == [10_000, 10_000, 40_000]
    behind = [round(each["queue"] - timings[0]["queue"], -4) for each in timings]
    assert behind == [0, 10_000, 20_000]


# --- in flight, on its own -----------------------------------------------------------------------------------------


def _forward(length):
    (forward,) = plan([request([1], [2] * length)], 100, 100)
    return forward


def test_a_hang_is_counted_from_when_the_oldest_had_the_backend_for_itself():
    now = [0.0]
    flights, backend = Flights(lambda: now[0]), OnADevice()
    assert flights.hung_s(9.0) == 0
    flights.launch(backend, _forward(3))
    now[0] = 5.0
    flights.launch(backend, _forward(4))
    assert (len(flights), flights.tokens, flights.hung_s(7.0)) == (2, 9, 7.0)
    now[0] = 8.0
    flight, logits = flights.land()
    assert (len(flight.forward), logits.shape, flights.hung_s(9.0)) == (4, (1,), 1.0)
    flights.land()
    assert flights.hung_s(99.0) == 0


def busy_s():
    return next(iter(BUSY.collect())).samples[0].value


def test_the_backend_is_busy_from_a_launch_until_nothing_is_in_flight():
    now, before = [0.0], busy_s()
    flights, backend = Flights(lambda: now[0]), OnADevice()
    for at_s, act in (
        (1.0, lambda: flights.launch(backend, _forward(3))),
        (4.0, lambda: flights.launch(backend, _forward(4))),
        (5.0, flights.land),
        (8.0, flights.land),
        (20.0, lambda: flights.launch(backend, _forward(3))),
        (21.5, flights.abandon),
        (30.0, flights.abandon),
    ):
        now[0] = at_s
        act()
    assert busy_s() - before == pytest.approx(7.0 + 1.5)


def test_what_cannot_be_launched_leaves_what_is_in_flight():
    flights, backend = Flights(lambda: 1.0), OnADevice()
    backend.refuses = {2}
    with pytest.raises(ValueError, match="foreign"):
        flights.launch(backend, _forward(3))
    assert (len(flights), flights.hung_s(9.0)) == (0, 0.0)
    backend.refuses = set()
    flights.launch(backend, _forward(3))
    backend.refuses = {2}
    with pytest.raises(ValueError, match="foreign"):
        flights.launch(backend, _forward(3))
    assert flights.hung_s(9.0) == 8.0
    assert np.isfinite(flights.land()[1]).all()


def test_a_forward_that_failed_in_flight_is_abandoned_with_those_behind_it():
    flights, backend = Flights(lambda: 1.0), OnADevice()
    backend.fails = {0}
    flights.launch(backend, _forward(3))
    flights.launch(backend, _forward(4))
    with pytest.raises(OSError, match="failed"):
        flights.land()
    assert (flights.abandon(), len(flights), flights.hung_s(9.0)) == ([], 0, 0.0)
