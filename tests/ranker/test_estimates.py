"""What is expected of a request before anything of it was retrieved, and what is learnt from answers."""

import numpy as np
import pytest

from penstock.ranker import policy
from penstock.ranker.backends.scorer import Scores
from penstock.ranker.desk import measure
from penstock.ranker.estimates import KNOWN, Estimates, Seen
from penstock.ranker.policy import DepthLimits
from penstock.ranker.shaping.depth import DepthBounds
from penstock.schemas import filters
from penstock.schemas.events import Page, RankClass, RankQuery, RankRequest

LIMITS = DepthLimits(250, 2_000)


class World:
    def __init__(self, dear, tokens=(0.0, 1.0)):
        self.now_s = 0.0
        depths = DepthBounds(16, 32, 64) if dear else DepthBounds(50, 250, 2_000)
        self.estimates = Estimates(depths, LIMITS, dear=dear, tokens=tokens, kept_s=900.0, clock=lambda: self.now_s)

    def work(self, request):
        return self.estimates.work(7, request, self.now_s, self.now_s + 0.5)


def request(text="nurse", **changes):
    return RankRequest(**{"request_id": "r", "tenant": "t", "deadline": 5, "query": RankQuery(text=text), **changes})


def margins(count, best=0.9):
    return best * 0.99 ** np.arange(count)


def test_alone_depth_is_of_candidates_and_the_floor_is_a_page_at_least():
    world = World(dear=False)
    work = world.work(request())
    assert (work.number, work.tenant, work.class_, work.deadline_s) == (7, "t", RankClass.INTERACTIVE, 0.5)
    assert (work.wanted, work.floor, work.fixed, work.item, work.hits) == (250, 50, 0.0, 1.0, 0.0)
    assert len(work.margins) == 250
    assert (world.work(request(page=Page(size=200))).floor, world.work(request(depth=1_000)).wanted) == (200, 1_000)
    named = world.work(request(candidates=tuple(f"p{number}" for number in range(9))))
    assert (named.wanted, named.least) == (9, 9)  # all of them are ranked


def test_with_a_language_model_depth_is_of_what_it_scores():
    world = World(dear=True, tokens=(30.0, 120.0))
    work = world.work(request())
    assert (work.wanted, work.floor, work.fixed, work.item) == (64, 16, 30.0, 120.0)
    assert world.work(request(candidates=("a", "b"))).wanted == 2
    assert (
        world.work(request(text=" ", query=RankQuery(text=" ", filters=filters.is_in("title", "x")))).tokens(0) == 0.0
    )
    assert world.estimates.deepest == 30.0 + 64 * 120.0


def test_a_page_that_goes_on_keeps_what_its_block_was_given():
    alone, dear = World(dear=False), World(dear=True)
    asked = request(page=Page(size=10))
    window = policy.decide_window(asked, LIMITS, 50)
    cursor = policy.next_cursor(asked, window, in_block=50, lm_items=20, epoch=3, limits=LIMITS)
    again = request(page=Page(size=10, cursor=cursor))
    work = alone.work(again)
    assert (work.wanted, work.least) == (50, 50)
    work = dear.work(again)
    assert (work.wanted, work.least) == (20, 20)


def test_a_query_seen_before_has_its_own_margins_candidates_prefix_and_hits():
    world = World(dear=True, tokens=(30.0, 120.0))
    mine = margins(40)
    world.estimates.served(request(), Seen(40, mine, hits=0.0, tokens=(55.0, 100.0)))
    work = world.work(request(request_id="other", deadline=9))
    assert (work.wanted, work.fixed) == (40, 55.0)
    assert work.margins == pytest.approx(mine)
    assert 100.0 < work.item < 120.0  # a mean that follows
    world.estimates.served(request(), Seen(40, mine, hits=0.95))
    assert world.work(request()).hits == 0.95
    assert world.work(request(text="welder")).hits == 0.0
    world.now_s = 901.0  # its scores are in the cache no more
    assert world.work(request()).hits == 0.0
    assert world.work(request(tenant="another")).wanted == 64


def test_a_query_that_load_ranked_in_part_still_has_all_its_candidates():
    world = World(dear=False)
    world.estimates.served(request(), Seen(1_200, margins(50)))
    work = world.work(request())
    assert work.wanted == 250
    assert np.all(np.diff(work.margins) <= 0) and work.margins[200] == pytest.approx(margins(50)[-1])


def test_the_mean_of_a_class_stands_in_for_a_query_nobody_asked_and_never_rises():
    world = World(dear=True)
    for number in range(200):
        world.estimates.served(request(f"query {number}"), Seen(100, margins(100, 0.5)))
    unknown = world.work(request("never asked"))
    assert unknown.margins == pytest.approx(margins(64, 0.5), abs=0.01)
    assert np.all(np.diff(unknown.margins) <= 0)
    assert world.work(request("never asked", class_=RankClass.ALERT)).margins == pytest.approx(np.ones(64))


def test_it_forgets_the_queries_asked_longest_ago():
    world = World(dear=True)
    for number in range(KNOWN + 10):
        world.estimates.served(request(f"query {number}"), Seen(3, margins(3)))
        world.work(request("query 0"))  # asked again and again
    assert world.work(request("query 0")).wanted == 3
    assert world.work(request("query 5")).wanted == 64
    assert world.work(request(f"query {KNOWN + 9}")).wanted == 3


def test_time_beside_the_language_model_is_left_free_before_a_deadline_and_a_third_of_it_at_most():
    dear, alone = World(dear=True), World(dear=False)
    for world in (dear, alone):
        for number in range(300):
            world.estimates.served(request(f"query {number}"), Seen(3, margins(3), beside_s=0.04))
    assert dear.estimates.beside_s == pytest.approx(0.04, rel=0.01)
    assert 0.45 <= dear.work(request()).deadline_s <= 0.46
    assert (alone.work(request()).deadline_s, alone.estimates.beside_s) == (0.5, 0.0)
    for number in range(300):
        dear.estimates.served(request(f"query {number}"), Seen(3, margins(3), beside_s=5.0))
    assert dear.work(request()).deadline_s == pytest.approx(0.5 - 0.5 / 3)


def test_what_is_alike_in_its_answer_has_one_key_and_nothing_else_has():
    key = World(dear=False).work(request()).key
    world = World(dear=False)
    alike = request(request_id="x", deadline=77, class_=RankClass.ALERT, echo=b"x", trace="t", produced_at=4)
    assert world.work(alike).key == key
    for other in (
        request("welder"),
        request(tenant="another"),
        request(page=Page(size=20)),
        request(depth=60),
        request(candidates=("a",)),
        request(query=RankQuery(text="nurse", filters=filters.is_in("location.region", "OH"))),
    ):
        assert world.work(other).key != key


class Timed:
    """A scorer that takes what it is told, of a clock it moves itself."""

    part_names, model_id, tolerance = (), "timed", 0.0

    def __init__(self, clock_s, overhead_s, token_s):
        self.clock_s, self.overhead_s, self.token_s = clock_s, overhead_s, token_s

    def score(self, query, items, caller=None):
        tokens = 20, 50 * len(items)
        self.clock_s[0] += self.overhead_s + self.token_s * sum(tokens)
        return Scores(np.full(len(items), 0.5), np.empty((len(items), 0)), tokens=tokens)


@pytest.mark.parametrize(("overhead_s", "token_s"), [(0.003, 4e-5), (0.0, 1e-6), (0.05, 0.0)])
def test_what_a_batch_takes_is_measured(monkeypatch, overhead_s, token_s):
    clock_s = [0.0]
    monkeypatch.setattr("penstock.ranker.desk.time.perf_counter", lambda: clock_s[0])
    measured = measure(Timed(clock_s, overhead_s, token_s))
    assert (measured.fixed, measured.item) == (20.0, 50.0)
    if token_s:
        assert measured.prior.overhead_s == pytest.approx(overhead_s, abs=1e-9)
        assert measured.prior.token_s == pytest.approx(token_s)
    else:  # the clock saw no difference: all of it is held for tokens
        assert measured.prior.token_s > 0 and measured.prior.overhead_s >= 0
