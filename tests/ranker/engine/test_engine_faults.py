"""The engine when forwards fail: nothing is lost, and nobody pays for another's request."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from known_scores import FOREIGN, KILL, KNOWN, POISON, ROT, Held, PositionSum, expected, request, soon, wait

from penstock.ranker.engine.engine import STALLED_S, Engine, Limits
from penstock.ranker.engine.errors import EngineClosed, EngineStalled, ForwardFailed
from penstock.ranker.engine.plan import MalformedRequest
from penstock.ranker.errors import CallerLeft, DeadlinePassed, NonFiniteScore

pytestmark = pytest.mark.usefixtures("in_flight")


class Factory:
    """Makes backends; `breaks` of them refuse to be made, after the first."""

    def __init__(self, breaks=0):
        self.made = []
        self.breaks = breaks

    def __call__(self):
        if self.made and self.breaks:
            self.breaks -= 1
            raise MemoryError("no room for weights")
        self.made.append(PositionSum())
        return self.made[-1]


@pytest.mark.parametrize("token", [POISON, KILL])
def test_one_that_breaks_forwards_is_told_so_and_breaks_nobody_elses(engines, token):
    held = Held(engines)
    good = [request([1], [number]) for number in range(10)]
    asked = [held.engine.submit(one, soon()) for one in good[:5]]
    bad = held.engine.submit(request([1], [token]), soon())
    asked += [held.engine.submit(one, soon()) for one in good[5:]]
    held.release()
    for one, pending in zip(good, asked, strict=True):
        assert wait(pending).logits == pytest.approx(expected(one))
    with pytest.raises(ForwardFailed, match=r"the forward failed 2 times, last with \w+: (poisoned|killed)"):
        wait(bad)
    assert held.engine.ask(KNOWN, soon()).logits == pytest.approx(expected(KNOWN))


class Dies(PositionSum):
    """Fails every forward from the `after`th on, as a device does that is lost."""

    def __init__(self, after):
        super().__init__()
        self.after = after

    def logits(self, forward):
        if len(self.forwards) >= self.after:
            raise RuntimeError("the device is lost")
        return super().logits(forward)


def test_a_dead_backend_is_made_anew_and_its_requests_are_served(engines, until):
    made = []

    def make():
        made.append(Dies(6) if not made else PositionSum())
        return made[-1]

    engine = engines(make)
    asked = [request([1], [number], [number + 1]) for number in range(30)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda one: engine.ask(one, soon()), asked))
    for one, answer in zip(asked, answers, strict=True):
        assert answer.logits == pytest.approx(expected(one))
    assert len(made) == 2
    until(lambda: engine.status().ready)
    assert engine.status().restarts == 1


def test_while_there_is_no_backend_the_engine_is_unready_and_the_late_are_told(engines, until):
    factory = Factory(breaks=10**9)
    engine = engines(factory)
    factory.made[0].logits = None  # lost: calling it fails
    waits = engine.submit(request([1], [2]), time.monotonic() + 0.1)
    kept = engine.submit(request([1], [3]), soon())
    with pytest.raises(DeadlinePassed):
        wait(waits)
    assert not engine.status().ready
    assert "MemoryError: no room for weights" in until(
        lambda: "Memory" in engine.status().reason and engine.status().reason
    )
    factory.breaks = 0
    assert wait(kept).logits == pytest.approx(expected(request([1], [3])))
    until(lambda: engine.status().ready)


def test_closing_while_there_is_no_backend_answers_what_waits(engines, until):
    factory = Factory(breaks=10**9)
    engine = engines(factory)
    factory.made[0].logits = None
    waits = engine.submit(request([1], [2]), soon())
    until(lambda: "Memory" in engine.status().reason)
    engine.close(20)
    with pytest.raises(EngineClosed):
        wait(waits)


class OfTheWrongShape(PositionSum):
    def logits(self, forward):
        found = super().logits(forward)
        return found if len(self.forwards) < 6 else found[:-1]


def test_a_backend_that_gives_too_few_scores_is_not_believed(engines):
    made = []

    def make():
        made.append(OfTheWrongShape() if not made else PositionSum())
        return made[-1]

    engine = engines(make)
    for number in range(12):
        one = request([1], [number])
        assert engine.ask(one, soon()).logits == pytest.approx(expected(one))
    assert len(made) == 2


def test_scores_that_are_not_finite_fail_their_own_request_and_have_the_known_answer_asked(engines, until):
    held = Held(engines)
    bad = held.engine.submit(request([1], [2], [ROT]), soon())
    good = held.engine.submit(request([1], [3]), soon())
    before = held.engine.status().checked_s
    held.release()
    with pytest.raises(NonFiniteScore, match=r"1 of 2 logits are not finite \(item 1: nan\)"):
        wait(bad)
    assert wait(good).logits == pytest.approx(expected(request([1], [3])))
    until(lambda: held.engine.status().checked_s > before)
    assert held.engine.status().restarts == 0


class Flaky(PositionSum):
    """Fails one forward in four."""

    def __init__(self, rng):
        super().__init__()
        self.rng = rng

    def logits(self, forward):
        if len(self.forwards) > 3 and self.rng.random() < 0.25:
            raise OSError("flaky")
        return super().logits(forward)


def test_under_failures_again_and_again_everything_ends_with_its_scores_or_the_cause(engines):
    rng = np.random.default_rng(0)
    engine = engines(lambda: Flaky(rng), Limits(64, 64), back_off_s=(0.001,))
    asked = [request([number % 3], [number], [2, number]) for number in range(200)]

    def ask(one):
        try:
            return engine.ask(one, time.monotonic() + 60).logits.tolist()
        except ForwardFailed as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        ends = list(pool.map(ask, asked))
    failed = [end for end in ends if isinstance(end, str)]
    for one, end in zip(asked, ends, strict=True):
        assert end in failed or end == pytest.approx(expected(one))
    assert 0 < len(failed) < 100
    assert engine.status().waiting == 0


def test_what_shared_a_failed_forward_is_tried_again_alone_one_request_a_forward(engines):
    held = Held(engines, Limits(200, 200))
    some = [request([1], *[[number] * 6] * 3) for number in range(10, 16)]
    asked = [held.engine.submit(one, soon()) for one in some]
    held.backend.fails = {0}
    held.release()
    for one, pending in zip(some, asked, strict=True):
        assert wait(pending).logits == pytest.approx(expected(one))
    shared, known, *alone = held.backend.forwards
    assert len(shared.items) == 18
    assert known.tokens.tolist() == [5, 6, 7, 8, 9]
    assert [sorted(set(forward.tokens.tolist()) - {1}) for forward in alone] == [[number] for number in range(10, 16)]


def test_a_malformed_request_found_by_the_backend_costs_no_other_request_an_attempt(engines):
    """One failed forward after it is still forgiven."""
    held = Held(engines)
    good = request([1], [2])
    asked = held.engine.submit(good, soon())
    bad = held.engine.submit(request([1], [FOREIGN]), soon())
    held.backend.fails = {1}
    held.release()
    with pytest.raises(MalformedRequest, match="foreign"):
        wait(bad)
    assert wait(asked).logits == pytest.approx(expected(good))


def test_asking_whether_a_caller_left_may_fail_and_ends_that_request_alone(engines):
    held = Held(engines)

    def broken():
        raise OSError("the connection is gone")

    odd = held.engine.submit(request([1], [50]), soon(), broken)
    good = held.engine.submit(request([1], [3]), soon())
    held.release()
    with pytest.raises(CallerLeft, match="OSError: the connection is gone"):
        wait(odd)
    assert wait(good).logits == pytest.approx(expected(request([1], [3])))
    assert not any(50 in forward.tokens for forward in held.backend.forwards)
    assert held.engine.ask(KNOWN, soon()).logits == pytest.approx(expected(KNOWN))


def test_a_known_request_that_a_backend_calls_malformed_has_it_made_anew(engines, until):
    made = []

    def make():
        made.append(PositionSum())
        return made[-1]

    engine = engines(make, check_every_s=0.01)
    made[0].refuses = set(KNOWN.prefix.tolist())
    until(lambda: engine.status().restarts == 1 and engine.status().ready)
    assert engine.ask(KNOWN, soon()).logits == pytest.approx(expected(KNOWN))


# --- forwards that hang --------------------------------------------------------------------------------------------


def test_while_a_forward_hangs_nothing_is_taken_in_and_the_late_are_told(engines):
    ahead = [0.0]
    held = Held(engines, clock=lambda: time.monotonic() + ahead[0])
    waits = held.engine.submit(request([1], [50]), time.monotonic() + 20)
    patient = held.engine.submit(request([1], [51]), time.monotonic() + 20 + 2 * STALLED_S)
    ahead[0] = STALLED_S + 1
    with pytest.raises(EngineStalled, match="has not come back for 31 s"):
        held.engine.submit(request([1], [52]))
    with pytest.raises(DeadlinePassed):
        wait(waits)
    assert not held.engine.status().ready
    assert not patient.future.done()
    held.release()
    assert wait(patient).logits == pytest.approx(expected(request([1], [51])))
    assert len(held.engine.ask(request([1], [52]), ahead[0] + soon()).logits) == 1
    assert held.engine.status().waiting_tokens == 0


# --- dying again and again -----------------------------------------------------------------------------------------

SCORES = "scores"
_deeds = st.sampled_from([SCORES, SCORES, SCORES, "raises", "exits", "no memory", "too few", "not finite"])
_makings = st.sampled_from(["made", "made", "no memory", "exits"])


class Doomed(PositionSum):
    """Does with each forward what its script says, then scores."""

    def __init__(self, deeds):
        super().__init__()
        self.deeds = deeds

    def logits(self, forward):
        deed = next(self.deeds, SCORES)
        if deed == "raises":
            raise RuntimeError("the device is lost")
        if deed == "exits":
            raise SystemExit(1)
        if deed == "no memory":
            raise MemoryError
        found = super().logits(forward)
        return {"too few": found[:-1], "not finite": found * np.nan}.get(deed, found)


@settings(max_examples=15)
@given(
    st.lists(_deeds, max_size=30),
    st.lists(_makings, max_size=4),
    st.lists(st.integers(1, 4), min_size=2, max_size=4),
    st.booleans(),
)
def test_many_threads_while_backends_die_again_and_again(deeds, makings, callers, close_early):
    """Every request taken in ends once: with its own scores, or with an error that says why. No room is lost."""
    script, birth = iter(()), iter(())

    def make():
        nonlocal backend
        what = next(birth, "made")
        if what == "no memory":
            raise MemoryError
        if what == "exits":
            raise SystemExit(1)
        backend = Doomed(script)
        return backend

    backend = None
    engine = Engine(make, KNOWN, Limits(40, 40, 400), back_off_s=(0.001,))
    engine.start()
    backend.deeds, birth = iter(deeds), iter(makings)
    script = backend.deeds
    ends, refused = [], []
    lock = threading.Lock()

    def call(number, requests):
        for at in range(requests):
            one = request([number], [at, 3], *[[at] * 7] * (3 * at))
            left = threading.Event()
            if at == 2:
                left.set()
            try:
                pending = engine.submit(one, time.monotonic() + (20 if at != 3 else 0.002), left.is_set)
            except EngineClosed:
                with lock:
                    refused.append(one)
                continue
            pending.future.add_done_callback(ends.append)
            error = pending.future.exception(20)
            if error is None:
                assert pending.future.result().logits == pytest.approx(expected(one)), "another's scores"
            else:
                assert isinstance(error, ForwardFailed | NonFiniteScore | CallerLeft | DeadlinePassed | EngineClosed)

    with ThreadPoolExecutor(len(callers)) as pool:
        calls = [pool.submit(call, number, requests) for number, requests in enumerate(callers)]
        if close_early:
            engine.close(20)
        for one in calls:
            one.result(60)
    engine.close(20)
    status = engine.status()
    assert (status.waiting, status.waiting_tokens) == (0, 0)
    assert len(ends) + len(refused) == sum(callers)
    assert not engine._thread.is_alive()
