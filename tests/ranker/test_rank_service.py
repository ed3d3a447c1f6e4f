"""The desk: everything that came in is answered."""

import threading
import time

import pytest
from desk import make_desk

from penstock.ranker import service as service_module
from penstock.ranker.errors import CallerLeft, DeadlinePassed, QueueClosed, QueueFull
from penstock.ranker.job import Job, error_result
from penstock.schemas import validate
from penstock.schemas.events import RankClass, RankQuery, RankRequest, RankResult

NOW = 1_000_000
LATER = NOW + 60_000


def request(name="r", deadline=LATER, **changes):
    return RankRequest(request_id=name, tenant="t", deadline=deadline, query=RankQuery(text=f"nurse {name}"), **changes)


def result(job, turn=None):
    return RankResult(request_id=job.request.request_id, tenant=job.request.tenant, timings={})


@pytest.fixture
def desk():
    """Makes a started service and closes it in the end."""
    opened = []

    def make(rank=result, capacity=64, workers=2, **how):
        service = make_desk(rank, workers=workers, places=capacity, now_ms=lambda: NOW, **how)
        opened.append(service)
        service.start()
        return service

    yield make
    for service in opened:
        service.close(20)


class Gate:
    """A rank function that waits until it is opened."""

    def __init__(self):
        self.entered = threading.Semaphore(0)
        self.open = threading.Event()
        self.order = []

    def __call__(self, job, turn):
        self.order.append(job.request.request_id)
        self.entered.release()
        assert self.open.wait(20)
        return result(job)


def test_answers_come_and_are_counted(desk):
    service = desk()
    jobs = [Job(request(str(number)), LATER) for number in range(20)]
    for job in jobs:
        service.submit(job)
    assert [job.future.result(20).request_id for job in jobs] == [str(number) for number in range(20)]
    assert service.counts() == {"served": 20, "failed": 0, "expired": 0, "refused": 0, "left": 0}


def test_closing_waits_no_longer_than_it_is_told(desk):
    gate = Gate()
    service = desk(gate, workers=16)
    for number in range(16):
        service.submit(Job(request(str(number)), LATER))
        assert gate.entered.acquire(timeout=20)
    began = time.monotonic()
    service.close(0.5)
    assert time.monotonic() - began < 4  # once, not once a worker: that would be 8 s
    gate.open.set()


def test_an_expired_request_costs_no_work_and_says_why(desk):
    def never(job, turn):
        raise AssertionError("worked on an expired request")

    service, job = desk(never), Job(request(deadline=NOW - 5), NOW - 5)
    service.submit(job)
    with pytest.raises(DeadlinePassed, match="deadline passed before ranking began: 5 ms late"):
        job.future.result(20)
    assert service.counts()["expired"] == 1


def test_a_caller_that_left_is_dropped_before_work(desk):
    gate = Gate()
    service = desk(gate, workers=1)
    busy, gone, last = (Job(request(name), LATER) for name in ("busy", "gone", "last"))
    service.submit(busy)
    assert gate.entered.acquire(timeout=20)
    service.submit(gone)
    service.submit(last)
    service.leave(gone)
    with pytest.raises(CallerLeft):
        gone.future.result(20)
    gate.open.set()
    last.future.result(20)
    service.leave(last)
    assert gate.order == ["busy", "last"]
    assert service.counts()["left"] == 1
    assert service.depth == 0


def test_a_full_queue_refuses_with_numbers_and_a_closed_one_too(desk):
    gate = Gate()
    service = desk(gate, capacity=1, workers=1)
    service.submit(Job(request("busy"), LATER))
    assert gate.entered.acquire(timeout=20)
    for name in ("waits", "waits too"):
        service.submit(Job(request(name), LATER))
    with pytest.raises(QueueFull, match=r"not let in \(queue\): the ranker is full; ask again in 1\.00 s") as told:
        service.submit(Job(request("refused"), LATER))
    assert (told.value.retry_after_s, told.value.why, told.value.tenant) == (1.0, "queue", False)
    assert service.try_submit(Job(request("of a feed"), LATER)) is None  # it holds no thread of the listener
    gate.open.set()
    service.close(20)
    with pytest.raises(QueueClosed):
        service.submit(Job(request("late"), LATER))
    assert service.counts()["refused"] == 2


def test_digests_that_hold_threads_leave_people_places_of_their_own(desk):
    gate = Gate()
    service = desk(gate, capacity=4, workers=1)
    digests = [Job(request(f"digest {n}", class_=RankClass.ALERT), LATER) for n in range(3)]
    for one in digests:  # half of the four places, and of the two threads of the desk
        service.submit(one)
    with pytest.raises(QueueFull, match=r"not let in \(queue\)"):
        service.submit(Job(request("digest too many", class_=RankClass.ALERT), LATER))
    searches = [Job(request(f"search {n}"), LATER) for n in range(3)]
    for one in searches:
        service.submit(one)
    with pytest.raises(QueueFull, match=r"not let in \(queue\)"):
        service.submit(Job(request("search too many"), LATER))
    gate.open.set()
    assert [one.future.result(20).request_id for one in digests + searches] == [
        one.request.request_id for one in digests + searches
    ]


@pytest.mark.parametrize("error", [ValueError("odd"), MemoryError("none left"), ZeroDivisionError()])
def test_a_request_that_breaks_is_answered_and_the_worker_lives_on(desk, error):
    def rank(job, turn):
        if job.request.request_id == "bad":
            raise error
        return result(job)

    service = desk(rank, workers=1)
    bad, good = Job(request("bad"), LATER), Job(request("good"), LATER)
    service.submit(bad)
    service.submit(good)
    assert good.future.result(20).request_id == "good"
    told = error_result(bad.request, bad.future.exception(20))
    assert told.error == f"RankFailed: rank: {type(error).__name__}: {error}"
    assert service.counts()["failed"] == 1


class Breaking:
    """A shaper that raises where a test says, and otherwise decides as the one within."""

    def __init__(self, shaper):
        self.shaper, self.at = shaper, set()

    def __getattr__(self, name):
        def call(*given):
            if name in self.at:
                raise IndexError("array index out of range")
            return getattr(self.shaper, name)(*given)

        return call


@pytest.mark.parametrize("at", ["batch", "done", "withdraw"])
def test_a_shaper_that_breaks_leaves_no_request_without_an_answer_and_no_thread_less(desk, monkeypatch, at):
    monkeypatch.setattr(service_module, "BROKEN_S", 0.01)
    shapers = []
    service = desk(around=lambda shaper: shapers.append(Breaking(shaper)) or shapers[0])
    [shaper] = shapers
    shaper.at = {at, "batch"} if at == "withdraw" else {at}
    jobs = [Job(request(str(number)), LATER) for number in range(9)]
    for job in jobs:
        service.submit(job)
    if at == "done":
        assert all(job.future.result(20) for job in jobs)
    else:
        errors = [job.future.exception(20) for job in jobs]
        assert {str(error) for error in errors} == {"shaping: IndexError: array index out of range"}
        assert service.counts()["failed"] == 9 and service.depth == 0
    shaper.at = set()
    again = Job(request("again"), LATER)
    service.submit(again)
    assert again.future.result(20).request_id == "again"


def test_what_is_answered_without_the_dearest_scorer_teaches_nothing_of_what_it_takes(desk):
    def without(job, turn):
        job.fell_back = job.request.request_id.startswith("without")
        return result(job)

    service = desk(without, workers=1)

    def confidence_after(name):
        job = Job(request(name), LATER)
        service.submit(job)
        job.future.result(20)
        service.submit(last := Job(request(f"without {name} again"), LATER))  # begun when the one before is told
        last.future.result(20)
        return service.shaping().confidence

    before = service.shaping().confidence
    assert confidence_after("without") == before
    assert confidence_after("with") != before


def test_an_error_gives_the_echo_back_unless_that_is_what_is_wrong():
    error = ValueError("odd")
    assert error_result(request(echo=b""), error).echo == b""
    most = b"x" * validate.MAX_ECHO_BYTES
    assert error_result(request(echo=most), error).echo == most
    assert error_result(request(echo=most + b"x"), error).echo is None
