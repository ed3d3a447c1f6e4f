"""The engine under threads and deadlines, on a small backend whose score of each item is known."""

import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from known_scores import KNOWN, Held, PositionSum, expected, request, soon, tokens, wait

from penstock.ranker.engine.engine import LONGEST_WAIT_S, STALLED_S, Engine, Limits
from penstock.ranker.engine.errors import EngineClosed, EngineFull, ItemTooLong
from penstock.ranker.engine.plan import MalformedRequest, Request, Vectors, plan
from penstock.ranker.engine.turns import Pending, choose, given_back, taken
from penstock.ranker.errors import CallerLeft, DeadlinePassed, NonFiniteScore

pytestmark = pytest.mark.usefixtures("in_flight")


def test_an_item_scores_what_it_scores_alone(engines):
    engine = engines()
    one = request([1, 2, 3], [4, 5], [6], [7, 8, 9, 10])
    answer = engine.ask(one, soon())
    assert answer.logits == pytest.approx(expected(one), abs=1e-12)
    assert answer.forwards == 1
    assert set(answer.timings) == {"queue", "pack", "forward", "reply"}
    assert all(spent >= 0 for spent in answer.timings.values())


_requests = st.builds(
    request,
    st.lists(st.integers(0, 99), max_size=6),
    st.lists(st.integers(0, 99), min_size=1, max_size=10),
    st.lists(st.integers(0, 99), min_size=1, max_size=10),
    interactive=st.booleans(),
)


@given(st.lists(_requests, min_size=1, max_size=12), st.integers(16, 60), st.integers(16, 60))
def test_every_request_is_served_whole_whatever_it_shares_forwards_with(requests, budget, interactive):
    backend = PositionSum()
    engine = Engine(lambda: backend, KNOWN, Limits(budget, interactive))
    engine.start()
    backend.forwards.clear()
    try:
        pending = [engine.submit(one, soon()) for one in requests]
        for one, asked in zip(requests, pending, strict=True):
            assert wait(asked).logits == pytest.approx(expected(one), abs=1e-12)
    finally:
        engine.close(20)
    assert all(len(forward) <= max(budget, interactive) for forward in backend.forwards)
    assert sum(len(forward.items) for forward in backend.forwards) == sum(len(one.items) for one in requests)
    status = engine.status()
    assert (status.waiting, status.waiting_tokens) == (0, 0)


def test_many_threads_get_their_own_scores(engines):
    engine = engines(limits=Limits(200, 100))
    rng = np.random.default_rng(0)
    asked = [
        request(rng.integers(0, 50, rng.integers(1, 4)), *(rng.integers(0, 99, rng.integers(1, 20)) for _ in range(7)))
        for _ in range(120)
    ]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda one: engine.ask(one, soon()), asked))
    for one, answer in zip(asked, answers, strict=True):
        assert answer.logits == pytest.approx(expected(one), abs=1e-12)


def test_what_waits_together_shares_a_forward_and_its_prefix(engines):
    held = Held(engines)
    some = [held.engine.submit(request([1, 2, 3], [number]), soon()) for number in range(16)]
    held.release()
    for one in some:
        wait(one)
    [forward] = held.backend.forwards
    assert len(forward.prefixes) == 1
    assert len(forward) == 3 + 16


def test_the_earliest_deadline_is_next_and_a_large_request_is_passed_between_its_forwards(engines):
    held = Held(engines, Limits(20, 20))
    now = time.monotonic()
    large = held.engine.submit(request([1], *[[number] * 6 for number in range(9)]), now + 30)
    urgent = held.engine.submit(request([2], [77] * 15), now + 20)
    held.release()
    wait(urgent)
    assert wait(large).forwards == 3
    assert [77 in forward.tokens for forward in held.backend.forwards] == [True, False, False, False]


def test_interactive_forwards_are_small_and_apart(engines):
    held = Held(engines, Limits(60, 20))
    background = held.engine.submit(request([1], *[[3] * 5] * 20, interactive=False), time.monotonic() + 20)
    person = held.engine.submit(request([2], *[[4] * 5] * 6), time.monotonic() + 20.1)
    held.release()
    wait(background), wait(person)
    for forward in held.backend.forwards:
        assert len(forward) <= (20 if 4 in forward.tokens else 60)
        assert not (3 in forward.tokens and 4 in forward.tokens)


@pytest.mark.parametrize("deadline_s", [math.inf, math.nan, 1e300])
def test_a_request_without_a_deadline_in_sight(engines, deadline_s):
    engine = engines()
    assert engine.ask(request([1], [2]), deadline_s).logits == pytest.approx(expected(request([1], [2])))
    assert engine.submit(request([1], [2]), deadline_s).deadline_s < soon() + LONGEST_WAIT_S or deadline_s == 1e300


def test_the_known_answer_may_be_left_unasked(engines):
    engine = engines(check_every_s=math.inf)
    begun = engine.status().forwards
    for number in range(3):
        assert len(engine.ask(request([1], [number]), soon()).logits) == 1
    assert engine.status().forwards == begun + 3


def test_a_request_without_items(engines):
    assert engines().ask(request([1])).logits.shape == (0,)


# --- work nobody waits for -----------------------------------------------------------------------------------------


def test_what_expired_or_was_left_costs_no_forward(engines):
    held = Held(engines)
    left = threading.Event()
    expired = held.engine.submit(request([1], [50]), time.monotonic() - 0.001)
    gone = held.engine.submit(request([1], [51]), soon())
    abandoned = held.engine.submit(request([1], [52]), soon(), left.is_set)
    kept = held.engine.submit(request([1], [53]), soon())
    gone.leave()
    left.set()
    held.release()
    wait(kept)
    with pytest.raises(DeadlinePassed, match="deadline passed before its forward"):
        wait(expired)
    for one in (gone, abandoned):
        with pytest.raises(CallerLeft):
            wait(one)
    computed = np.concatenate([forward.tokens for forward in held.backend.forwards])
    assert not np.isin([50, 51, 52], computed).any()
    assert held.engine.status().waiting_tokens == 0


def test_a_caller_waits_no_longer_than_its_deadline_and_the_rest_of_its_work_is_dropped(engines, until):
    held = Held(engines)
    with pytest.raises(DeadlinePassed):
        held.engine.ask(request([1], [50]), time.monotonic() + 0.02)
    held.release()
    until(lambda: held.engine.status().waiting == 0)
    assert not any(50 in forward.tokens for forward in held.backend.forwards)


def test_a_request_that_is_left_halfway_costs_no_further_forward(engines):
    held = Held(engines, Limits(10, 10))
    large = held.engine.submit(request([1], *[[3] * 8] * 50), soon(), lambda: len(held.backend.forwards) >= 2)
    held.release()
    with pytest.raises(CallerLeft):
        wait(large)
    assert len(held.backend.forwards) == 2


# --- what is not let in --------------------------------------------------------------------------------------------


def test_more_tokens_than_may_wait_are_refused_and_room_comes_back(engines):
    held = Held(engines, Limits(100, 100, waiting=50))
    waits = held.engine.submit(request([1] * 10, [2] * 30), soon())
    with pytest.raises(EngineFull, match="42 tokens wait for a forward and 9 more were asked, at most 50"):
        held.engine.submit(request([1], [2] * 8))
    assert held.engine.status().waiting_tokens == 42
    held.release()
    wait(waits)
    assert len(held.engine.ask(request([1], [2] * 8), soon()).logits) == 1


def test_work_that_nobody_waits_for_holds_no_room_and_costs_no_forward(engines):
    ahead = [0.0]
    held = Held(engines, Limits(100, 100, waiting=50), clock=lambda: time.monotonic() + ahead[0])
    late = held.engine.submit(request([1] * 10, [50] * 15), time.monotonic() + 10)
    left = held.engine.submit(request([1] * 10, [51] * 10), ahead[0] + soon())
    ahead[0] = 11.0
    left.leave()
    taken_in = held.engine.submit(request([1] * 10, [52] * 30), ahead[0] + soon())
    with pytest.raises(DeadlinePassed):
        wait(late)
    with pytest.raises(CallerLeft):
        wait(left)
    held.release()
    assert wait(taken_in).logits == pytest.approx(expected(taken_in.request))
    assert len(held.backend.forwards) == 1


def test_a_prompt_longer_than_a_forward_is_refused(engines):
    engine = engines(limits=Limits(30, 20))
    with pytest.raises(ItemTooLong, match="a prompt of 21 tokens, a forward takes at most 20"):
        engine.submit(request([1], [2] * 20))
    engine.ask(request([1], [2] * 20, interactive=False), soon())


def test_a_malformed_request_is_not_taken_in(engines):
    held = Held(engines)
    good = held.engine.submit(request([1], [2]), soon())
    with pytest.raises(MalformedRequest, match="item 1 has no token"):
        held.engine.submit(request([1], [2], []), soon())
    endless = Vectors(np.full((2, 4), np.inf, dtype=np.float32), tokens([3]))
    with pytest.raises(MalformedRequest, match="expected finite float32"):
        held.engine.submit(Request(tokens([1]), (endless,)), soon())
    held.release()
    assert wait(good).logits == pytest.approx(expected(request([1], [2])))
    assert len(held.backend.forwards) == 1
    assert held.engine.status().ready


def test_vectors_of_two_sizes_do_not_share_a_forward(engines):
    held = Held(engines)
    some = [Request(tokens([1]), (Vectors(np.zeros((1, size), np.float32), tokens([3])),)) for size in (4, 5)]
    asked = [held.engine.submit(one, soon()) for one in some]
    held.release()
    for one in asked:
        assert len(wait(one).logits) == 1
    assert len(held.backend.forwards) == 2


def test_an_engine_that_is_not_running_takes_nothing(engines):
    engine = engines(start=False)
    assert not engine.status().ready
    with pytest.raises(EngineClosed):
        engine.submit(KNOWN)


def test_closing_answers_what_waits(engines, until):
    held = Held(engines)
    waits = held.engine.submit(request([1], [2, 3]), soon())
    closing = threading.Thread(target=held.engine.close, args=(20,))
    closing.start()
    until(lambda: not held.engine.status().ready)
    with pytest.raises(EngineClosed):
        held.engine.submit(KNOWN)
    held.release()
    closing.join(20)
    assert len(wait(waits).logits) == 1


def test_closing_an_engine_that_hangs_fails_what_waits(engines):
    held = Held(engines)
    waits = held.engine.submit(request([1], [2, 3]), soon())
    held.engine.close(0.01)
    for one in (waits, held.first):
        with pytest.raises(EngineClosed):
            wait(one)
    held.release()


# --- health --------------------------------------------------------------------------------------------------------


class Drifts(PositionSum):
    shift = 0.0

    def logits(self, forward):
        return super().logits(forward) + self.shift


def test_idle_the_known_answer_is_asked_and_a_backend_that_gives_another_is_replaced(engines, until):
    made = []

    def make():
        made.append(Drifts())
        return made[-1]

    engine = engines(make, check_every_s=0.01)
    begun = engine.status()
    until(lambda: engine.status().checked_s > begun.checked_s)
    assert engine.status().forwards > begun.forwards
    made[0].shift = 1.0
    until(lambda: engine.status().restarts == 1 and engine.status().ready)
    assert engine.ask(KNOWN, soon()).logits == pytest.approx(expected(KNOWN))


def test_a_forward_that_does_not_come_back_makes_it_unready(engines):
    ahead = [0.0]
    held = Held(engines, clock=lambda: time.monotonic() + ahead[0])
    assert held.engine.status().ready
    ahead[0] = STALLED_S + 1
    assert held.engine.status().reason.startswith("a forward has not come back for 31 s")
    held.release()
    assert len(wait(held.first).logits) == 1
    assert held.engine.status().ready


def test_a_backend_that_starts_without_a_number_does_not_start(engines):
    class Rotten(PositionSum):
        def logits(self, forward):
            return super().logits(forward) * np.nan

    engine = engines(Rotten, start=False)
    with pytest.raises(NonFiniteScore, match="the weights are damaged"):
        engine.start()
    assert not engine.status().ready


def test_it_is_warm_at_every_size_before_the_first_request(engines):
    backend = PositionSum()
    engines(backend, Limits(200, 60))
    sizes = [len(forward) for forward in backend.forwards]
    assert min(sizes) == 5
    assert {59, 200} <= set(sizes)


# --- whose turn it is: pure ----------------------------------------------------------------------------------------

_waiting = st.lists(st.tuples(_requests, st.integers(0, 5), st.booleans()), max_size=15)


@given(_waiting, st.integers(16, 80), st.integers(16, 80))
def test_turns_serve_every_item_once_within_the_budget_in_one_forward_each(described, budget, interactive):
    waiting = [
        Pending(one, float(deadline), 0.0, number, alone=alone)
        for number, (one, deadline, alone) in enumerate(described)
    ]
    served = [[] for _ in waiting]
    while parts := choose(waiting, budget, interactive):
        kind = parts[0].of.request.interactive
        assert all(part.of.request.interactive is kind for part in parts)
        assert len(parts) == 1 or not any(part.of.alone for part in parts)
        remaining = [one for one in waiting if one.remaining and not one.alone]
        if not parts[0].of.alone and remaining:
            assert parts[0].of.deadline_s == min(one.deadline_s for one in remaining)
        [forward] = plan([part.request for part in parts], budget, interactive)
        assert len(forward) <= (interactive if kind else budget)
        before = [list(part.of.remaining) for part in parts]
        taken(parts)
        given_back(parts)
        assert [list(part.of.remaining) for part in parts] == before
        taken(parts)
        for part in parts:
            served[part.of.number] += part.items
    assert [sorted(items) for items in served] == [list(range(len(one.request.items))) for one in waiting]
