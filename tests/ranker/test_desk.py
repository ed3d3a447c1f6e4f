"""The desk under load: threads, a clock of the test's, and whatever a pipeline may do; nobody is lost or held up."""

import heapq
import itertools
import random
import threading
import time
from concurrent.futures import wait

import numpy as np
import pytest
from desk import make_desk

from penstock.ranker.errors import CallerLeft, DeadlinePassed, QueueClosed, QueueFull, RankFailed
from penstock.ranker.job import Job
from penstock.ranker.service import OUTCOMES
from penstock.ranker.shaping.cost import Prior
from penstock.ranker.shaping.depth import DepthBounds
from penstock.ranker.shaping.work import Why
from penstock.schemas.events import RankClass, RankQuery, RankRequest, RankResult

NOW = 1_000_000
CLASSES = (RankClass.INTERACTIVE, RankClass.RECOMMENDATION, RankClass.ALERT)


def job(name, in_ms=60_000, class_=RankClass.INTERACTIVE, tenant="t", text=None, now_ms=NOW, **changes):
    query = RankQuery(text=text or f"nurse {name}")
    request = RankRequest(
        request_id=str(name), tenant=tenant, class_=class_, deadline=now_ms + in_ms, query=query, **changes
    )
    return Job(request, request.deadline)


def result(job):
    asked = job.request
    return RankResult(request_id=asked.request_id, class_=asked.class_, timings={"queue": 0.0}, echo=asked.echo)


def epoch_ms():
    return time.time_ns() // 1_000_000


# --- nobody is lost --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_every_future_ends_once_whatever_requests_callers_and_stages_do(seed):
    chance = random.Random(seed)
    ends, lock = {}, threading.Lock()

    def rank(one, turn):
        with lock:
            what = chance.random()
        np.dot(np.ones(2_000), np.ones(2_000))
        if one.left.is_set():
            raise CallerLeft("left")
        if what < 0.1:
            raise RankFailed("score", ValueError("odd"))
        if what < 0.2:
            raise DeadlinePassed("score", late_ms=1)
        if what < 0.25:
            raise ZeroDivisionError("a bug")
        return result(one)

    service = make_desk(
        rank,
        workers=chance.choice([1, 2, 3]),
        together=chance.choice([1, 4]),
        places=40,
        stuck_s=chance.choice([0.0001, 60.0]),
        now_ms=epoch_ms,
        prior=Prior(1e-4, 1e-6),
    )
    service.start()
    taken, refused = [], []

    def produce(number):
        mine = random.Random(1_000 * seed + number)
        for at in range(120):
            one = job(
                f"{number}/{at}",
                in_ms=mine.choice([-5, 1, 20, 500, 60_000]),
                class_=mine.choice(CLASSES),
                tenant=mine.choice("abc"),
                text=mine.choice([None, "nurse", "welder"]),
                now_ms=epoch_ms(),
            )
            one.future.add_done_callback(lambda _, name=one.request.request_id: ended(name))
            try:
                entered = True
                if mine.random() < 0.5:
                    service.submit(one)
                else:
                    entered = service.try_submit(one) is None
            except (QueueFull, QueueClosed):
                entered = False
            (taken if entered else refused).append(one)
            if mine.random() < 0.2:
                service.leave(one)

    def ended(name):
        with lock:
            ends[name] = ends.get(name, 0) + 1

    threads = [threading.Thread(target=produce, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    if seed % 2:  # close in the middle of it
        service.close(0.01)
    for thread in threads:
        thread.join(60)
    service.close(20)
    _, pending = wait([one.future for one in taken], 20)
    assert not pending
    assert set(ends) == {one.request.request_id for one in taken} and set(ends.values()) <= {1}
    assert not any(one.future.done() for one in refused)
    told = service.counts()
    assert sum(told[name] for name in OUTCOMES if name != "refused") <= len(taken)
    assert sum(told.values()) >= len(taken)
    state = service.shaping()
    assert service.depth == 0 and state.late.works == 0
    assert all(waiting.works == 0 for waiting in state.queues.values())


def test_identical_requests_that_wait_together_are_ranked_once_and_each_has_its_own_answer():
    ranked, entered, release = [], threading.Event(), threading.Event()

    def rank(one, turn):
        ranked.append(one.request.request_id)
        if one.request.request_id == "busy":
            entered.set()
            assert release.wait(20)
        return result(one)

    service = make_desk(rank, workers=1, now_ms=lambda: NOW)
    service.start()
    busy, first = job("busy"), job("first", text="nurse", echo=b"1")
    service.submit(busy)
    assert entered.wait(20)
    service.submit(first)
    others = [job(f"other {number}", 120_000, text="nurse", class_=CLASSES[number], echo=b"x") for number in range(3)]
    for one in others:
        service.submit(one)
    elsewhere = job("elsewhere", text="nurse", tenant="another")
    service.submit(elsewhere)
    release.set()
    for one in (first, *others):
        told = one.future.result(20)
        assert (told.request_id, told.class_, told.echo) == (
            one.request.request_id,
            one.request.class_,
            one.request.echo,
        )
    elsewhere.future.result(20)
    assert sorted(ranked) == ["busy", "elsewhere", "first"]
    assert service.counts()["served"] == 6
    service.close(20)


def test_when_the_first_of_identical_ones_has_left_the_next_is_ranked():
    entered, release = threading.Event(), threading.Event()

    def rank(one, turn):
        entered.set()
        assert release.wait(20)
        if one.left.is_set():
            raise CallerLeft("left")
        return result(one)

    service = make_desk(rank, workers=1, now_ms=lambda: NOW)
    service.start()
    service.submit(busy := job("busy"))
    assert entered.wait(20)
    first, second, third = (job(name, 60_000 + at, text="nurse") for at, name in enumerate("abc"))
    for one in (first, second, third):
        service.submit(one)
    service.leave(first)  # withdrawn: the next stands in its place
    with pytest.raises(CallerLeft):
        first.future.result(20)
    second.left.set()  # leaves in the middle of its ranking
    release.set()
    with pytest.raises(CallerLeft):
        second.future.result(20)
    assert third.future.result(20).request_id == "c"
    assert busy.future.result(20).request_id == "busy"
    service.close(20)


def test_a_person_s_request_leads_the_alerts_that_are_identical():
    entered, release, led = threading.Event(), threading.Event(), []

    def rank(one, turn):
        led.append((one.request.request_id, turn.deadline_s))
        entered.set()
        assert release.wait(20)
        return result(one)

    service = make_desk(rank, workers=1, now_ms=lambda: NOW, clock=lambda: 1.0)
    service.start()
    service.submit(job("busy"))
    assert entered.wait(20)
    alert, person = job("alert", 1_000, RankClass.ALERT, text="nurse"), job("person", 2_000, text="nurse")
    service.submit(alert)
    service.submit(person)
    release.set()
    assert (alert.future.result(20).request_id, person.future.result(20).request_id) == ("alert", "person")
    assert led[1:] == [("person", pytest.approx(3.0))]  # by its deadline, and with the engine's haste
    service.close(20)


def test_closing_tells_those_whom_nobody_can_answer_in_time():
    entered, release = threading.Event(), threading.Event()

    def rank(one, turn):
        entered.set()
        assert release.wait(20)
        return result(one)

    service = make_desk(rank, workers=1, now_ms=lambda: NOW)
    service.start()
    service.submit(busy := job("busy"))
    assert entered.wait(20)
    waits = [job(number, class_=RankClass.ALERT) for number in range(3)]
    for one in waits:
        service.submit(one)
    service.close(0.05)
    for one in waits:
        with pytest.raises(QueueClosed):
            one.future.result(20)
    release.set()
    assert busy.future.result(20).request_id == "busy"


def test_a_lane_that_is_stuck_gives_way_and_a_person_goes_first():
    now_s, entered, release, order = [0.0], threading.Semaphore(0), threading.Event(), []

    def rank(one, turn):
        order.append(one.request.request_id)
        entered.release()
        assert release.wait(20)
        return result(one)

    service = make_desk(rank, workers=2, stuck_s=0.25, now_ms=lambda: NOW, clock=lambda: now_s[0])
    service.start()
    alerts = [job(f"alert {number}", class_=RankClass.ALERT) for number in range(9)]
    for one in alerts:
        service.submit(one)
    assert entered.acquire(timeout=20) and entered.acquire(timeout=20)
    service.submit(search := job("search"))
    assert not entered.acquire(blocking=False)
    now_s[0] = 0.3
    assert entered.acquire(timeout=20)
    assert "search" in order[:4]
    release.set()
    wait([one.future for one in (search, *alerts)], 20)
    assert len(order) == 10
    service.close(20)


def test_a_step_of_the_wall_clock_changes_no_deadline_that_was_taken_in():
    wall_ms, entered, release, turns = [NOW], threading.Event(), threading.Event(), []

    def rank(one, turn):
        turns.append(turn)
        entered.set()
        assert release.wait(20)
        return result(one)

    service = make_desk(rank, workers=1, now_ms=lambda: wall_ms[0], clock=lambda: 5.0)
    service.start()
    service.submit(first := job("first", 500))
    assert entered.wait(20)
    service.submit(second := job("second", 700))
    wall_ms[0] += 3_600_000
    release.set()
    assert first.future.result(20).degraded == second.future.result(20).degraded == ()
    assert [turn.deadline_s for turn in turns] == [pytest.approx(5.5), pytest.approx(5.7)]
    service.close(20)


def test_what_can_wait_is_served_late_and_says_so_and_a_person_s_request_is_not():
    now_s = [0.0]
    service = make_desk(lambda one, turn: result(one), workers=1, now_ms=lambda: NOW, clock=lambda: now_s[0])
    late, gone = job("late", -1_500, RankClass.ALERT), job("gone", -1_500)
    assert service.try_submit(late) is None
    service.submit(gone)
    service.start()
    assert late.future.result(20).degraded == ("late: answered 1500 ms after its deadline",)
    with pytest.raises(DeadlinePassed, match="1500 ms late"):
        gone.future.result(20)
    service.close(20)


# --- nobody is held up: an engine whose time is the test's -----------------------------------------------------------


class Engine:
    """A desk with one lane over an engine that takes `overhead_s` and `item_s` a candidate of the test's own time.

    What arrives while a request is ranked is submitted by then; when nothing waits, time goes on to the next arrival.
    """

    def __init__(self, arrivals, overhead_s=0.004, item_s=0.002, **limits):
        self.now_s, self.item_s, self.overhead_s = 0.0, item_s, overhead_s
        self._lock = threading.RLock()
        tie = itertools.count()
        self._arrivals = [(at_s, next(tie), class_, in_ms, tenant) for at_s, class_, in_ms, tenant in arrivals]
        heapq.heapify(self._arrivals)
        self.served, self.refused, self.jobs = [], [], []  # (class, came, waited, turn); (class, error); all taken in
        self.service = make_desk(
            self._rank,
            workers=1,
            places=100_000,
            now_ms=lambda: NOW + round(1_000 * self.now_s),
            clock=lambda: self.now_s,
            prior=Prior(overhead_s, item_s),
            depths=DepthBounds(16, 32, 64),
            **limits,
        )

    def run(self):
        self.service.start()
        while self._arrivals:
            with self._lock:
                if not self.service.depth and self._arrivals and all(one.future.done() for one in self.jobs[-64:]):
                    self.now_s = max(self.now_s, self._arrivals[0][0])
                    self._arrive()
            wait([one.future for one in self.jobs], 20)
        _, pending = wait([one.future for one in self.jobs], 20)
        assert not pending
        self.service.close(20)
        return self

    def _arrive(self):
        while self._arrivals and self._arrivals[0][0] <= self.now_s:
            _, number, class_, in_ms, tenant = heapq.heappop(self._arrivals)
            one = job(number, in_ms, class_, tenant, now_ms=NOW + round(1_000 * self.now_s))
            try:
                self.service.submit(one)
                self.jobs.append(one)
            except QueueFull as error:
                self.refused.append((class_, error))

    def _rank(self, one, turn):
        with self._lock:
            began_s = self.now_s
            depth = 64 if turn.depth is None else min(turn.depth, 64)
            self.served.append((one.request.class_, began_s, turn, depth))
            end_s = began_s + self.overhead_s + self.item_s * depth
            while self._arrivals and self._arrivals[0][0] <= end_s:
                self.now_s = max(self.now_s, self._arrivals[0][0])
                self._arrive()
            self.now_s = end_s
        return result(one)


def every(gap_s, from_s, to_s, class_, in_ms, tenant="t"):
    return [(from_s + gap_s * at, class_, in_ms, tenant) for at in range(int((to_s - from_s) / gap_s))]


def test_a_burst_of_alerts_holds_no_person_up_and_every_alert_is_served():
    people = every(0.4, 0.0, 30.0, RankClass.INTERACTIVE, 500)
    alone = Engine(people).run()
    storm = [(1.0, RankClass.ALERT, 30_000, "t")] * 150
    both = Engine([*people, *storm]).run()

    def waited(engine):
        return sorted(turn.waited_ms for class_, _, turn, _ in engine.served if class_ is RankClass.INTERACTIVE)

    assert not alone.refused and not both.refused
    assert len(waited(both)) == len(people)
    one_batch_ms = 1_000 * (0.004 + 0.002 * 64)
    assert waited(alone)[-1] == 0.0
    assert waited(both)[-1] <= one_batch_ms + 1.0  # what was begun is not interrupted: no more than that
    assert sum(class_ is RankClass.ALERT for class_, *_ in both.served) == 150
    assert both.service.counts()["expired"] == 0


def test_depth_gives_way_to_load_and_comes_back_and_every_turn_says_why():
    calm, rush = 0.5, 0.06  # a search at the ceiling takes 0.13 s, at the floor 0.036 s
    arrivals = [
        *every(calm, 0.0, 20.0, RankClass.INTERACTIVE, 500),
        *every(rush, 20.0, 40.0, RankClass.INTERACTIVE, 500),
        *every(calm, 40.0, 60.0, RankClass.INTERACTIVE, 500),
    ]
    engine = Engine(arrivals).run()

    def between(from_s, to_s):
        return [(depth, turn.reason) for _, at_s, turn, depth in engine.served if from_s <= at_s < to_s]

    before, during, after = between(5, 20), between(25, 40), between(45, 60)
    deep, shallow, deep_again = (np.median([depth for depth, _ in phase]) for phase in (before, during, after))
    assert min(deep, deep_again) >= 50
    assert 16 <= shallow <= 32
    assert {reason for depth, reason in during if depth < 64} <= {
        Why.FLOOR,
        Why.MARGIN,
        Why.SLACK,
        Why.BUDGET,
        Why.LOAD,
    }
    assert len(engine.refused) < 0.05 * len(arrivals)


def test_a_tenant_that_floods_is_refused_before_another_is():
    quiet = every(0.3, 5.0, 25.0, RankClass.INTERACTIVE, 500, "quiet")
    flood = every(0.01, 0.0, 25.0, RankClass.INTERACTIVE, 500, "loud")
    engine = Engine([*quiet, *flood]).run()
    served = [one.request.tenant for one in engine.jobs]
    assert served.count("quiet") / len(quiet) > 2 * served.count("loud") / len(flood)
    assert any(error.tenant and error.retry_after_s > 0 for _, error in engine.refused)
    assert engine.service.shaping().refused[Why.TENANT] > 0
