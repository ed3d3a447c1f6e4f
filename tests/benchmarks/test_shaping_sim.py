"""The simulator is what it says: the workload's shares, the oracle's optimum, conservation, measures on known cases."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.report import Report
from benchmarks.shaping import ROWS, filled
from benchmarks.simulating.baselines import Fifo, StaticPriority, UniformPid
from benchmarks.simulating.excerpt import SHARED, cut
from benchmarks.simulating.fairness import bursting, merged
from benchmarks.simulating.feasible import feasible
from benchmarks.simulating.measures import fair_shares, goodput, jain, ndcg_bounds, ndcg_ratio, over_seeds, settling
from benchmarks.simulating.plant import Plant, fitted, measured
from benchmarks.simulating.policies import full
from benchmarks.simulating.svg import Line, Panel, drawn
from benchmarks.simulating.workload import DEADLINES, KINDS, SHARES, Workload, generate, relevance, trace
from benchmarks.simulating.world import RETRIES, World
from penstock.ranker.shaping.work import Batch, Refused

PLANT = Plant(0.003, 33e-6, np.ones(1))
POLICIES = {
    "FIFO": lambda: Fifo(32, 8_000.0),
    "static priority": lambda: StaticPriority(32, 8_000.0),
    "uniform PID": lambda: UniformPid(16, 32, 64, 8_000.0),
    "full": full,
}


def few(arrived, kind, cost=2_559.0, horizon_s=100.0):
    count = len(arrived)
    return Workload(
        np.array(arrived, float),
        np.array([KINDS.index(each) for each in kind], np.int8),
        np.zeros(count, np.int16),
        np.zeros(count, np.int32),
        np.zeros(count),
        np.full(count, cost),
        horizon_s,
    )


class Watched:
    """A shaper whose every word is remembered."""

    def __init__(self, shaper):
        self._shaper = shaper
        self.taken, self.left, self.refused = [], [], []

    def __getattr__(self, name):
        return getattr(self._shaper, name)

    def offer(self, work, now_s):
        said = self._shaper.offer(work, now_s)
        (self.refused if isinstance(said, Refused) else self.taken).append(work.number)
        return said

    def batch(self, now_s, budget_tokens):
        found = self._shaper.batch(now_s, budget_tokens)
        if isinstance(found, Batch):
            self.left += [part.work.number for part in found.parts] + [work.number for work in found.expired]
        return found


@pytest.mark.parametrize("arrivals", ["code", "conv"])
def test_the_workload_has_the_load_and_the_shares_of_the_issue(arrivals):
    asked = generate(0.9, PLANT.capacity, 900.0, 3, arrivals)
    assert asked.load(PLANT.capacity) == pytest.approx(0.9, rel=0.01)
    for kind, name in enumerate(KINDS):
        assert asked.cost[asked.kind == kind].sum() / asked.cost.sum() == pytest.approx(SHARES[name], abs=0.01)
    assert (np.diff(asked.arrived_s) >= 0).all()
    assert asked.arrived_s[0] >= 0 and asked.arrived_s[-1] <= 900.0


def test_the_code_trace_stays_bursty_and_the_other_nearly_poisson():
    def dispersion(arrivals):
        asked = generate(0.9, PLANT.capacity, 900.0, 0, arrivals)
        counts = np.histogram(asked.arrived_s[asked.kind == 0], 900)[0]
        return counts.var() / counts.mean()

    assert dispersion("code") > 10 > 3 > dispersion("conv")


def test_seeds_decide_everything():
    one, same, other = (generate(0.9, PLANT.capacity, 300.0, seed) for seed in (1, 1, 2))
    assert (one.arrived_s == same.arrived_s).all() and (one.query == same.query).all()
    assert len(one) != len(other) or (one.arrived_s != other.arrived_s).any()


def test_more_than_half_of_what_people_ask_is_in_the_cache():
    asked = generate(0.9, PLANT.capacity, 1_800.0, 0)
    assert 0.5 < asked.hits[asked.kind == 0].mean() < 0.7
    assert not asked.hits[asked.kind > 0].any()


def test_what_ships_needs_no_shared_folder_and_is_sound():
    curves, margins = relevance()
    assert curves.shape[1] == margins.shape[1] + 1
    assert ((curves >= 0) & (curves <= 1)).all()
    assert (np.diff(margins, axis=1) <= 0).all() and (margins > 0).all()
    assert curves[:, 64].mean() > curves[:, 16].mean() > curves[:, 0].mean()


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("load", [0.9, 5.0])
def test_no_request_is_lost_or_answered_twice(name, load):
    asked = generate(load, PLANT.capacity, 30.0, 0)
    shaper = Watched(POLICIES[name]())
    outcome = World(shaper, asked, PLANT, 0).run(30.0 + DEADLINES["digest"] + 600)
    assert sorted(shaper.left) == sorted(shaper.taken)
    assert not {*shaper.left} & {*shaper.refused}
    assert outcome.tries.max() <= RETRIES + 1
    alerts = asked.kind >= 2
    assert not np.isnan(outcome.answered_s[alerts]).any()  # late perhaps, dropped never


def test_the_same_run_twice_is_the_same():
    asked = generate(2.0, PLANT.capacity, 20.0, 0)
    one, two = (World(full(), asked, measured(), 0).run(60.0) for _ in range(2))
    assert np.array_equal(one.answered_s, two.answered_s, equal_nan=True)
    assert (one.depth == two.depth).all()


def test_a_lone_request_takes_what_the_plant_says():
    outcome = World(Fifo(32, 1e9), few([1.0], ["interactive"]), PLANT, 0).run(10.0)
    assert outcome.answered_s[0] == pytest.approx(1.0 + 0.003 + 33e-6 * (63 + 32 * 78))
    assert outcome.in_time[0] and outcome.depth[0] == 32
    assert goodput(outcome) == pytest.approx(25.59)


def test_a_late_answer_is_asked_for_again_and_no_goodput():
    slow = replace(PLANT, overhead_s=1.0)
    outcome = World(Fifo(32, 1e9), few([0.0], ["interactive"]), slow, 0).run(60.0)
    assert outcome.tries[0] == RETRIES + 1
    assert not outcome.in_time[0] and goodput(outcome) == 0
    assert len(outcome.late_s) == RETRIES + 1 and min(outcome.late_s) > 0.5


def test_a_refused_client_comes_back_after_retry_after():
    shaper = Watched(Fifo(32, 2_600.0))
    outcome = World(shaper, few([0.0, 0.001, 0.002], ["interactive"] * 3), PLANT, 0).run(60.0)
    assert shaper.refused and outcome.in_time.all()


def test_a_paused_partition_keeps_its_order():
    asked = few(np.arange(40) * 1e-3, ["digest"] * 40)
    outcome = World(Fifo(32, 6_000.0), asked, PLANT, 0).run(600.0)
    assert outcome.in_time.all() and outcome.refusals
    assert (np.diff(outcome.answered_s) >= 0).all()


def test_a_partition_is_asked_again_within_a_second():
    class Pessimist(Fifo):
        def offer(self, work, now_s):
            said = super().offer(work, now_s)
            return Refused(1_000.0, said.reason) if isinstance(said, Refused) else said

    asked = few(np.arange(40) * 1e-3, ["digest"] * 40)
    outcome = World(Pessimist(32, 6_000.0), asked, PLANT, 0).run(600.0)
    assert outcome.refusals and outcome.in_time.all() and outcome.answered_s.max() < 60.0


def test_what_depth_could_be_worth_bounds_what_it_is():
    load = generate(1.2, PLANT.capacity, 60.0, 0)
    full_, pid = (World(POLICIES[name](), load, PLANT, 0).run(90.0) for name in ("full", "uniform PID"))
    even, known, nominal = ndcg_bounds(full_, pid)
    assert known >= ndcg_ratio(full_, pid)[0] - 1e-3 and known >= even - 1e-3
    same = ndcg_bounds(pid, pid)
    assert same[1] >= 1.0 - 1e-3 and nominal > 0.9


def test_priority_goes_before_arrival():
    asked = few([0.0, 0.001, 0.002], ["digest", "digest", "interactive"])
    fifo, priority = (
        World(shaper, asked, PLANT, 0).run(60.0).answered_s for shaper in (Fifo(32, 1e9), StaticPriority(32, 1e9))
    )
    assert priority[2] < fifo[2] and priority[1] > priority[2]


def test_the_pid_goes_down_under_load_and_up_when_it_ends():
    shaper = UniformPid(16, 32, 64, 1e9)
    asked = few(np.sort(np.concatenate([np.arange(0, 20, 0.05), np.arange(20, 60, 0.5)])), ["interactive"] * 480)
    outcome = World(shaper, asked, PLANT, 0).run(70.0)
    assert outcome.depth[300:400][outcome.in_time[300:400]].mean() < 24
    assert outcome.depth[-20:].mean() > 50


def test_the_oracle_meets_all_that_can_be_met_and_no_more():
    floor = (63 + 16 * 78) * PLANT.token_s
    fits = int(0.5 / floor)
    assert feasible(few([0.0] * fits, ["interactive"] * fits), PLANT).all()
    assert feasible(few([0.0] * (fits + 3), ["interactive"] * (fits + 3)), PLANT).sum() == fits
    mixed = feasible(few([0.0] * 400, ["digest"] * (400 - fits) + ["interactive"] * fits), PLANT)
    assert mixed.all()  # who is due first goes first


def test_the_line_of_a_plant_is_found_again():
    tokens = np.linspace(100, 4_000, 60)
    found = fitted(tokens, 0.004 + 3e-5 * tokens)
    assert found.overhead_s == pytest.approx(0.004) and found.token_s == pytest.approx(3e-5)
    assert found.noise.mean() == pytest.approx(1.0)


def test_jain_is_one_for_equals_and_one_nth_for_one_alone():
    assert jain(np.ones(7)) == pytest.approx(1.0)
    assert jain(np.array([1.0, 0, 0, 0])) == pytest.approx(0.25)


def test_fair_shares_fill_from_below():
    assert fair_shares(np.array([1.0, 2.0, 9.0]), 6.0).tolist() == [1.0, 2.0, 3.0]
    assert fair_shares(np.array([1.0, 1.0]), 6.0).tolist() == [1.0, 1.0]


def test_settling_of_a_known_curve():
    times = np.arange(0, 60, 0.05)
    depths = np.where(times < 20, 64, np.where(times < 22, 20, 32))
    found = settling(list(zip(times.tolist(), depths.tolist(), strict=True)), 20.0, 60.0)
    assert (found.before, found.final) == (64.0, 32.0)
    assert found.overshoot == pytest.approx(12 / 32)
    assert found.settle_s == pytest.approx(2.0, abs=0.11) and found.astray == 0


def test_a_depth_that_never_rests_never_settles():
    times = np.arange(0, 60, 0.05)
    depths = 32 + 10 * np.sign(np.sin(times * 3))
    found = settling(list(zip(times.tolist(), depths.tolist(), strict=True)), 20.0, 60.0)
    assert found.settle_s == pytest.approx(40.0, abs=0.2) and found.astray == 1


def test_an_interval_covers_its_seeds_by_student():
    found = over_seeds([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found.mean == 3.0 and found.within == pytest.approx(2.776 * np.sqrt(2.5) / np.sqrt(5))


def test_ndcg_compares_what_both_answered_and_all_that_was_asked():
    asked = few([0.0, 0.0], ["interactive", "interactive"])
    one = World(Fifo(32, 1e9), asked, PLANT, 0).run(10.0)
    other = World(Fifo(32, 1e9), asked, PLANT, 0).run(10.0)
    other.in_time[1] = False
    both, everything = ndcg_ratio(one, other)
    assert both == pytest.approx(1.0) and everything == pytest.approx(2.0)


def test_a_burst_is_one_tenants_alone():
    asked = bursting(PLANT, 0)
    inside = (asked.arrived_s > 100) & (asked.arrived_s < 200)
    costs = np.bincount(asked.tenant[inside], asked.cost[inside])
    assert len(costs) == 10
    assert costs[0] / costs[1:].mean() == pytest.approx(10, rel=0.2)
    assert len(merged(asked, asked)) == 2 * len(asked)


def test_every_row_of_the_issue_is_there_and_the_live_ones_say_what_they_need():
    report = Report("shaping")
    filled({"jain_under_burst": (0.96, None)}, report)
    assert [result.name for result in report.results] == [f"shaping/{name}" for name, *_ in ROWS]
    assert {result.needs for result in report.results if "live/" in result.name} == {"--live"}
    assert [result.value for result in report.results if result.value is not None] == [0.96]


def test_a_plot_is_well_formed_and_says_its_names():
    from xml.etree import ElementTree

    x = np.arange(5.0)
    svg = drawn(
        "a < b", x, [(0.0, "0"), (4.0, "4")], [Panel("depth & delay", [Line("one", x, True)], marks=((2.0, "m"),))], "s"
    )
    texts = [element.text for element in ElementTree.fromstring(svg).iter() if element.text and element.text.strip()]
    assert {"a < b", "depth & delay", "one", "m", "s"} <= {*texts}


def test_alerts_are_served_late_rather_than_dropped():
    asked = few([0.0] * 30 + [0.01], ["instant"] * 30 + ["interactive"], cost=1_311.0)
    outcome = World(full(), asked, replace(PLANT, token_s=2e-3), 0).run(2_000.0)
    alerts = asked.kind == KINDS.index("instant")
    assert not np.isnan(outcome.answered_s[alerts]).any()
    assert not outcome.in_time[alerts].all()


@pytest.mark.skipif(not (SHARED / "arrival_traces").is_dir(), reason="the shared data is not here")
def test_the_shipped_traces_are_those_of_the_shared_data():
    for name, values in cut(SHARED).items():
        assert np.array_equal(values, trace(name)), name
