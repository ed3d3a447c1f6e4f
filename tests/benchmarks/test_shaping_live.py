"""The live rows' own parts: what is asked is the same for the same seed, clients keep to their contract, figures of
known runs are known.
"""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.driving.asking import DIGEST, INSTANT, INTERACTIVE, RECOMMENDATION, Asked, Words, alone, timeline
from benchmarks.driving.clients import WAITING, Answer, Clients, Told, missed
from benchmarks.driving.measuring import Run, add_rows, alert_misses, busy, described, latencies_s, p99_ratio
from benchmarks.report import Report
from benchmarks.shaping import ROWS
from benchmarks.simulating.workload import CLASSES, DEADLINES, KINDS
from benchmarks.simulating.world import RETRIES
from penstock.ranker.errors import CallerLeft, DeadlinePassed, QueueFull
from penstock.schemas.events import RankQuery, RankRequest, RankResult

CAPACITY, HORIZON_S = 30_000.0, 200.0


def request(kind, query, deadline_ms):
    class_ = CLASSES[KINDS[kind]]
    return RankRequest(request_id=f"{kind}-{query}", class_=class_, deadline=deadline_ms, query=RankQuery(text="q"))


def result(query, lm_scored=32, **changes):
    return RankResult(request_id=query, lm_scored=lm_scored, timings={"lm": 2.0}, **changes)


def now_ms():
    return time.time_ns() // 1_000_000


class Desk:
    """Does with the nth offer of a request what `says` says: None takes it in and answers, seconds refuse it, an error
    ends it. What is `kept` is never answered.
    """

    def __init__(self, says=lambda request_id, offers: None, kept=lambda job: False):
        self.says, self.kept = says, kept
        self.offers, self.times, self.open, self.left = [], [], set(), []
        self._lock = threading.Lock()

    def try_submit(self, job):
        name = job.request.request_id
        said = self.says(name, self.offers.count(name))
        self.offers.append(name)
        self.times.append(time.monotonic())
        if isinstance(said, float):
            return said
        if isinstance(said, Exception):
            job.future.set_exception(said)
        elif self.kept(job):
            self.open.add(job)
        else:
            threading.Thread(target=job.future.set_result, args=(result(name),)).start()
        return None

    def submit(self, job):
        if (again_s := self.try_submit(job)) is not None:
            raise QueueFull(again_s, "late", False)

    def leave(self, job):
        self.left.append(job)
        job.future.set_exception(CallerLeft("left"))


def ran(desk, asked, until_s=20.0, supply=None, at=()):
    began = time.monotonic()
    told = Clients(desk, request, now_ms, time.monotonic, 0, supply).run(asked, until_s, at)
    return told, time.monotonic() - began


# --- what is asked ---------------------------------------------------------------------------------------------------


def test_the_same_seed_asks_the_same_and_searches_alone_are_its_searches():
    one, other = (timeline(0.9, CAPACITY, HORIZON_S, 3) for _ in range(2))
    assert one == other != timeline(0.9, CAPACITY, HORIZON_S, 4)
    assert [each.at_s for each in one] == sorted(each.at_s for each in one)
    assert {each.kind for each in one} == {INTERACTIVE, RECOMMENDATION, INSTANT}
    searches = alone(one)
    assert searches == [each for each in one if each.kind == INTERACTIVE]
    assert len({each.query for each in searches}) < len(searches)  # some are asked again


def test_a_place_makes_another_text_of_a_judged_query():
    words = Words(["nurse", "welder"], ["Ohio", "Utah"])
    assert [words.text(number) for number in range(4)] == ["nurse", "welder", "nurse, Utah", "welder, Utah"]


# --- clients ---------------------------------------------------------------------------------------------------------


def test_everything_is_asked_at_its_time_and_the_run_ends_with_the_last_answer():
    asked = [Asked(0.02 * at, kind, at) for at, kind in enumerate((INTERACTIVE, RECOMMENDATION, INSTANT, INTERACTIVE))]
    desk = Desk()
    told, took_s = ran(desk, asked)
    assert desk.offers == ["0-0", "1-1", "2-2", "0-3"]
    assert told.met == {0, 1, 2, 3} and all(each.in_time for each in told.answers)
    assert all(gap >= 0.015 for gap in np.diff(desk.times)) and took_s < 10
    assert len(told.late_s) == 4 and min(told.late_s) >= 0


def test_a_refused_search_comes_again_when_it_was_told_with_a_new_deadline():
    desk = Desk(says=lambda name, offers: 0.03 if offers == 0 else None)
    told, _ = ran(desk, [Asked(0.0, INTERACTIVE, 7)])
    assert desk.offers == ["0-7", "0-7"]
    assert desk.times[1] - desk.times[0] >= 0.03
    assert told.refused == {"late": 1} and told.met == {0}
    [answer] = told.answers
    assert answer.due_s >= 0.03 and answer.took_s < DEADLINES["interactive"]


def test_a_search_gives_up_after_its_retries():
    desk = Desk(says=lambda *_: 0.001)
    told, _ = ran(desk, [Asked(0.0, INTERACTIVE, 1)])
    assert len(desk.offers) == 1 + RETRIES == sum(told.refused.values())
    assert not told.answers and missed([Asked(0.0, INTERACTIVE, 1)], told, INTERACTIVE) == 1


def test_a_search_that_expired_comes_again_and_other_errors_are_counted():
    late = DeadlinePassed("ranking began", late_ms=1)
    desk = Desk(says=lambda name, offers: late if offers == 0 else None)
    told, _ = ran(desk, [Asked(0.0, INTERACTIVE, 1)])
    assert len(desk.offers) == 2 and told.met == {0} and not told.errors
    desk = Desk(says=lambda *_: OSError("broken"))
    told, _ = ran(desk, [Asked(0.0, RECOMMENDATION, 1)])
    assert told.errors == {"OSError": 1} and not told.met


def test_what_is_refused_of_a_partition_stays_at_its_head_and_stops_those_behind_it_alone():
    desk = Desk(says=lambda name, offers: 0.05 if name == "2-0" and offers < 2 else None)
    asked = [Asked(0.0, INSTANT, 0), Asked(0.001, INSTANT, 1), Asked(0.002, RECOMMENDATION, 2)]
    told, _ = ran(desk, asked)
    assert desk.offers == ["2-0", "1-2", "2-0", "2-0", "2-1"]
    assert told.paused == 2 and told.met == {0, 1, 2} and not told.refused


def test_so_many_digests_always_wait_and_are_left_in_the_end():
    numbers = iter(range(10_000))
    desk = Desk(kept=lambda job: job.request.request_id.startswith(f"{DIGEST}-") and len(desk.offers) > WAITING // 2)
    called = []
    told, _ = ran(
        desk, [Asked(0.0, INTERACTIVE, 5)], supply=lambda: next(numbers), at=[(0.2, lambda: called.append(1))]
    )
    answered = sum(each.kind == DIGEST for each in told.answers)
    assert called == [1] and answered == WAITING // 2
    assert len(desk.left) == WAITING == len(desk.open)
    assert missed([Asked(0.0, INTERACTIVE, 5)], told, INTERACTIVE) == 0


def test_a_run_ends_at_its_time_whatever_is_open():
    desk = Desk(kept=lambda _: True)
    told, took_s = ran(desk, [Asked(0.0, INSTANT, 0)], until_s=0.1)
    assert 0.1 <= took_s < 10 and len(desk.left) == 1 and not told.met


# --- figures ---------------------------------------------------------------------------------------------------------


def told_of(latencies, kind=INTERACTIVE, due_s=15.0, **changes):
    each = [Answer(kind, due_s, took, took <= DEADLINES[KINDS[kind]], result("a", **changes)) for took in latencies]
    return Told(answers=each, met=set(range(len(each))))


def run(mixed, latencies, **changes):
    asked = [Asked(15.0, INTERACTIVE, 0)] * len(latencies)
    return replace(Run(mixed, asked, told_of(latencies), 10.0, 70.0, 30.0, 60.0, 6e5, 300), **changes)


def test_latencies_are_of_the_window_late_ones_too_and_only_of_answers():
    told = told_of([0.1, 0.7])
    told.answers += [
        Answer(INTERACTIVE, 9.9, 5.0, False, result("a")),
        Answer(INTERACTIVE, 70.0, 5.0, False, result("a")),
        Answer(INTERACTIVE, 20.0, 0.6, False, None),
        Answer(INSTANT, 20.0, 9.0, True, result("a")),
    ]
    assert latencies_s(run(False, [], told=told)).tolist() == [0.1, 0.7]


def test_the_ratio_is_of_all_runs_of_a_sort_together():
    runs = [run(False, [0.1] * 50), run(True, [0.12] * 50), run(True, [0.15] * 50), run(False, [0.1] * 50)]
    assert p99_ratio(runs) == pytest.approx(1.5)


def test_there_is_no_ratio_where_nobody_was_answered():
    with pytest.raises(ValueError, match="0 searches were answered with everything on top, 5 alone"):
        p99_ratio([run(False, [0.1] * 5), run(True, [])])


def test_how_many_searches_were_met_stands_beside_the_ratio():
    report = Report("shaping")
    half = run(True, [0.1] * 4, told=Told(answers=told_of([0.1] * 2).answers, met={0, 3}))
    add_rows(report, [run(False, [0.1] * 4), half])
    assert report.notes["live_searches_met"] == {"alone": 1.0, "with everything": 0.5}


def test_busy_is_of_the_runs_with_everything_and_alerts_must_be_met():
    asked = [Asked(1.0, INSTANT, 0), Asked(2.0, INSTANT, 0), Asked(3.0, RECOMMENDATION, 0)]
    mixed = run(True, [0.1], busy_s=57.0, asked=asked, told=Told(met={0}))
    assert busy([run(False, [0.1], busy_s=1.0), mixed, run(True, [0.1], busy_s=51.0)]) == pytest.approx(0.9)
    assert alert_misses([mixed, run(True, [0.1])]) == 1
    assert alert_misses([replace(mixed, mixed=False)]) == 0


def test_the_notes_name_what_was_less_than_asked():
    told = told_of([0.1, 0.2], lm_scored=8, degraded=("language model: slow",), depth_reason="load")
    found = described(run(True, [0.1, 0.2], told=told))
    assert found["kinds"]["interactive"] == {
        "asked": 2,
        "met": 2,
        "answers": 2,
        "lm_scored": 8.0,
        "below_the_floor": 2,
        "degraded": {"language model": 2},
        "depth_reasons": {"load": 2},
    }
    assert (found["busy"], found["tokens_a_second"], found["tokens_a_forward"]) == (0.5, 10_000, 2_000)
    assert found["stages_ms"] == {"lm": 2.0}


def test_the_rows_are_the_issues():
    report = Report("shaping")
    add_rows(report, [run(False, [0.1]), run(True, [0.1])])
    wanted = [
        (f"shaping/{name}", unit, target, better) for name, unit, target, better in ROWS if name.startswith("live/")
    ]
    assert [(each.name, each.unit, each.target, each.better) for each in report.results] == wanted
