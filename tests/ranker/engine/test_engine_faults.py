"""The engine when forwards fail: nothing is lost, and nobody pays for another's request."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from known_scores import KILL, KNOWN, POISON, ROT, Held, PositionSum, expected, request, soon, wait

from penstock.ranker.engine.engine import Limits
from penstock.ranker.engine.errors import EngineClosed, ForwardFailed
from penstock.ranker.errors import DeadlinePassed, NonFiniteScore


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
    engine = engines(lambda: Flaky(rng), Limits(64, 64))
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
