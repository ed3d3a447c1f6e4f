"""One request through the ranker: retrieval in memory, a real Redis, a scorer whose numbers are known."""

import math
import threading
import time
from dataclasses import replace

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shelf_in_memory import Shelf

from penstock.infra.settings import RedisSettings
from penstock.infra.telemetry import DEGRADED
from penstock.ranker import scoring
from penstock.ranker.backends.remote.errors import RemoteAway
from penstock.ranker.backends.scorer import Scores
from penstock.ranker.cache import ScoreCache
from penstock.ranker.engine.errors import EngineClosed, EngineFull, ForwardFailed
from penstock.ranker.errors import CallerLeft, DeadlinePassed, NonFiniteScore, RankFailed
from penstock.ranker.estimates import Estimates
from penstock.ranker.feature_store import Batch, FeatureStore
from penstock.ranker.job import Job, Turn
from penstock.ranker.pipeline import Pipeline
from penstock.ranker.policy import DepthLimits
from penstock.ranker.redis_link import RedisLink, connect
from penstock.ranker.scoring import Scorers
from penstock.ranker.shaping.depth import DepthBounds
from penstock.ranker.shaping.work import Why
from penstock.ranker.stages import LONGEST_CALL_S
from penstock.schemas import filters
from penstock.schemas.errors import InvalidRecord
from penstock.schemas.events import (
    Attributes,
    IndexOp,
    IndexUpdate,
    Location,
    Missing,
    Page,
    QueryVector,
    RankClass,
    RankQuery,
    RankRequest,
    Understood,
)
from penstock.schemas.grpc_avro import CallError
from penstock.schemas.rpc import AnalyzeQueriesReply, Models, QueryAnalysis, Retrieval

NOW = 1_000_000_000
VECTOR = QueryVector(space_id="s", encoder_id="e", dense=np.array([1, 0], "<f4").tobytes())
LIMITS = DepthLimits(6, 40)
STAGES = {"queue", "analyze", "retrieve", "cache", "features", "score", "reply"}


def posting(name, version=1, revision=0, region=None, posted_at=None):
    place = Location(region=region) if region else None
    return IndexUpdate(
        posting_id=name,
        version=version,
        revision=revision,
        op=IndexOp.UPSERT,
        attributes=Attributes(title=f"title of {name}", location=place, posted_at=posted_at),
        produced_at=5,
    )


class Reader:
    """p from the title's last digit; remembers what it scored."""

    tolerance, longest_s = 0.0, float("inf")

    def __init__(self, model_id="reader", sign=1.0):
        self.model_id = model_id
        self.part_names = ("title", "dense")
        self.sign = sign
        self.scored, self.callers = [], []
        self.broken = False

    def score(self, query, items, caller):
        self.callers.append(caller)
        self.scored += [item.update.posting_id for item in items]
        digit = np.array([float(item.update.attributes.title[-1]) for item in items])
        p = np.full(len(items), np.nan) if self.broken else 0.5 + self.sign * digit / 100
        return Scores(p, np.column_stack([digit, [item.dense for item in items]]))


class Encoder:
    """The models role: one vector for every text, and what it understands."""

    def __init__(self, understood=()):
        self.understood = understood
        self.texts = []

    def analyze(self, request, timeout):
        self.texts += request.texts
        return AnalyzeQueriesReply(analyses=(QueryAnalysis(vector=VECTOR, understood=self.understood),))


class World:
    """A ranker's surroundings, and the pipeline in them."""

    def __init__(self, redis_url, count=10, lm=None, ceiling=3, shards=1, models=None, limits=LIMITS):
        self.shelf, self.fused, self.models = Shelf(), Reader(), models or Encoder()
        self.clock_s = 0.0
        self.link = link = RedisLink(connect(RedisSettings(url=redis_url)), time.monotonic)
        self.store = FeatureStore(link, "t", 60_000)
        depths = DepthBounds(1, ceiling, ceiling) if lm else DepthBounds(2, limits.default, limits.ceiling)
        self.estimates = Estimates(depths, limits, dear=lm is not None, clock=lambda: self.clock_s)
        self.pipeline = Pipeline(
            models=self.models,
            retrieval=self.shelf,
            shards=shards,
            store=self.store,
            cache=ScoreCache(link, "t", 900, time.monotonic),
            scorers=Scorers(self.fused, lm, ceiling),
            limits=limits,
            estimates=self.estimates,
            now_ms=lambda: self.now,
            clock=lambda: self.clock_s,
        )
        for number in range(count):  # p9 is nearest to the query
            self.add(posting(f"p{number}"), number)

    @property
    def now(self):
        return NOW + round(1000 * self.clock_s)

    def add(self, update, dense, stored=True):
        self.shelf.put(update, None if dense is None else np.array([dense, 0.0]))
        if stored:
            self.store.write(Batch(updates=[update], before={}, after={}))

    def rank(self, left=False, text="nurse", given=None, reason=Why.SUPPLY, may_be_stale=False, **changes):
        """`given`: the depth that the shaper gives, None: all there are."""
        query = changes.pop("query", None) or RankQuery(text=text)
        deadline = changes.pop("deadline", self.now + 10_000)
        self.job = job = Job(
            replace(RankRequest(request_id="r", deadline=deadline, query=query), **changes),
            deadline_ms=deadline,
        )
        if left:
            job.left.set()
        deadline_s = self.clock_s + (deadline - self.now) / 1000 if job.urgent else math.inf
        return self.pipeline.rank(job, Turn(3.0, deadline_s, given, reason, may_be_stale))


def ids(result):
    return [item.posting_id for item in result.items]


@pytest.fixture
def world(redis_url):
    return World(redis_url)


def test_a_search_is_analysed_retrieved_scored_ordered_and_timed(world):
    result = world.rank(page=Page(size=3))
    assert ids(result) == ["p9", "p8", "p7"]
    assert [item.score for item in result.items] == pytest.approx([0.59, 0.58, 0.57])
    assert result.items[0].parts == {"title": 9.0, "dense": 9.0}
    assert world.models.texts == ["nurse"]
    assert (result.depth_asked, result.depth_served, result.total, result.lm_scored) == (6, 6, 10, 0)
    assert (result.model_id, result.epoch, result.degraded, result.error) == ("reader", "shelf@1", (), None)
    assert set(result.timings) == STAGES
    assert result.timings["queue"] == 3.0
    assert min(result.timings.values()) >= 0


def test_only_the_block_of_the_page_is_scored_and_a_second_time_nothing_is(world):
    assert world.rank(page=Page(size=3)).cache_hits == 0
    assert sorted(world.fused.scored) == ["p4", "p5", "p6", "p7", "p8", "p9"]
    assert world.rank(page=Page(size=3)).cache_hits == 6
    assert len(world.fused.scored) == 6


def test_a_vector_that_came_along_is_not_made_again(world):
    assert ids(world.rank(query=RankQuery(text="nurse", vector=VECTOR)))[0] == "p9"
    assert world.models.texts == []


def test_a_new_version_is_scored_anew(world):
    world.rank()
    world.fused.scored.clear()
    world.add(posting("p9", version=2), 9)
    result = world.rank()
    assert world.fused.scored == ["p9"]
    assert result.items[0].version == 2


def test_ranking_does_not_depend_on_retrievals_order(redis_url):
    world = World(redis_url, count=0)
    for number in range(8):
        world.add(posting(f"p{number}"), -number)  # retrieval has them the other way round
    assert ids(world.rank(depth=8)) == [f"p{number}" for number in reversed(range(8))]


def test_pages_at_an_epoch_cover_everything_once_and_say_so_when_it_is_gone(redis_url):
    world = World(redis_url, count=10)
    seen, cursor, pages = [], None, 0
    while True:
        result = world.rank(page=Page(size=2, cursor=cursor), depth=4)
        seen += ids(result)
        pages += 1
        cursor = result.next_cursor
        if cursor is None:
            break
        assert result.degraded == ()
        last = cursor
    assert seen == [f"p{number}" for number in reversed(range(10))]
    assert pages == 5 + (len(seen) % 4 == 0)
    assert world.shelf.calls[-1][1].at_epoch == 1
    world.shelf.epoch, world.shelf.lost_epochs = 2, {1}
    result = world.rank(page=Page(size=2, cursor=last), depth=4)
    assert ids(result) == seen[-2:]
    assert "epoch 1 is not held any more, read 2" in result.degraded[0]


def test_with_several_shards_no_epoch_is_asked_for(redis_url):
    world = World(redis_url, shards=2)
    first = world.rank(page=Page(size=2))
    world.rank(page=Page(size=2, cursor=first.next_cursor))
    assert world.shelf.calls[-1][1].at_epoch is None


# --- filters -------------------------------------------------------------------------------------------------------


def understood(region):
    clause = filters.is_in("location.region", region, missing=Missing.INCLUDE)
    return Understood(label=f"in {region}", span=region, filter=clause, needs_values=True)


def test_a_place_is_strict_only_where_postings_have_it_and_the_result_says_which(redis_url):
    world = World(redis_url, count=2, models=Encoder((understood("OH"), understood("ZZ"))))
    world.add(posting("in3", region="OH"), 3)
    world.add(posting("out4", region="IA"), 4)
    result = world.rank()
    assert set(ids(result)) == {"in3", "p0", "p1"}  # those without a region are not known to violate
    assert [(one.label, one.applied) for one in result.understood] == [("in OH", True), ("in ZZ", False)]
    assert result.degraded == ()


def test_what_the_queries_job_understood_is_used_as_it_is(redis_url):
    world = World(redis_url, count=1)
    world.add(posting("out4", region="IA"), 4)
    world.add(posting("in3", region="OH"), 3)
    query = RankQuery(text="nurse", vector=VECTOR, understood=(understood("OH"),))
    assert set(ids(world.rank(query=query))) == {"in3", "p0"}


def test_the_callers_filters_hold(redis_url):
    world = World(redis_url, count=3)
    world.add(posting("in3", region="OH"), 3)
    query = RankQuery(text="nurse", filters=filters.is_in("location.region", "OH"))
    result = world.rank(query=query)
    assert ids(result) == ["in3"]
    assert result.total == 1


def test_without_words_or_vector_the_newest_come_first_unscored(redis_url):
    world = World(redis_url, count=0)
    for number, posted_at in enumerate([30, 10, 20]):
        world.add(posting(f"p{number}", region="OH", posted_at=posted_at), 1)
    result = world.rank(query=RankQuery(text=" ", filters=filters.is_in("location.region", "OH")))
    assert ids(result) == ["p0", "p2", "p1"]
    assert result.model_id == "newest-first"
    assert [item.score for item in result.items] == [0, 0, 0]
    assert world.fused.scored == [] and world.models.texts == []


class Away(Encoder):
    """The models role while it does not answer."""

    def __init__(self, code=grpc.StatusCode.UNAVAILABLE):
        super().__init__()
        self.code = code
        self.timeouts = []

    def analyze(self, request, timeout):
        self.timeouts.append(timeout)
        if self.code is not None:
            raise CallError(Models.ANALYZE, "models", self.code, "no answer")
        return super().analyze(request, timeout)


def test_while_the_models_role_is_away_words_alone_are_searched_and_the_result_says_so(redis_url):
    world = World(redis_url, count=5, models=Away())
    result = world.rank(text="p3")
    [(_, asked)] = [call for call in world.shelf.calls if call[0] == "search"]
    assert (asked.vector, asked.words) == (None, "p3")
    assert len(ids(result)) == 5
    assert result.model_id == "reader"
    assert [d for d in result.degraded if d.startswith("analyze: models away, words alone")]
    [timeout] = world.models.timeouts
    assert timeout == 5.0, "half of the time is left for the search"


def test_words_alone_are_not_what_a_vector_scored_before(redis_url):
    world = World(redis_url, count=3, models=Away(None))
    world.rank()
    world.models.code = grpc.StatusCode.UNAVAILABLE
    assert world.rank().cache_hits == 0


def test_a_role_that_fails_is_left_alone_for_a_moment_and_asked_again_later(redis_url):
    world = World(redis_url, count=2, models=Away())
    for _ in range(3):
        world.rank()
    assert len(world.models.timeouts) == 1
    world.clock_s += 1.0
    world.models.code = None
    assert not [d for d in world.rank().degraded if "analyze" in d]


def test_one_impatient_caller_or_a_full_queue_close_nobody_else_s_way(redis_url):
    world = World(redis_url, count=2, models=Away(grpc.StatusCode.RESOURCE_EXHAUSTED))
    assert [d for d in world.rank().degraded if "words alone" in d]
    world.models.code = grpc.StatusCode.DEADLINE_EXCEEDED
    world.rank(deadline=world.now + 100)
    world.models.code = None
    assert not [d for d in world.rank().degraded if "analyze" in d]


def test_a_text_that_cannot_be_encoded_is_searched_by_its_words(redis_url):
    models = Encoder()
    models.analyze = lambda request, timeout: AnalyzeQueriesReply(analyses=(QueryAnalysis(),))
    world = World(redis_url, count=2, models=models)
    result = world.rank()
    assert len(ids(result)) == 2
    assert [d for d in result.degraded if "could not be encoded" in d]


def test_a_shard_that_cannot_search_words_fails_the_request_by_name(redis_url):
    world = World(redis_url, count=2, models=Away())

    def unable(request, timeout):
        raise CallError(Retrieval.SEARCH, "shelf", grpc.StatusCode.INVALID_ARGUMENT, "words: got 'nurse', expected …")

    world.shelf.search = unable
    with pytest.raises(RankFailed, match=r"retrieve: .*words: got 'nurse'"):
        world.rank()


def test_a_named_candidate_is_scored_by_words_too(redis_url):
    world = World(redis_url, count=3, models=Away())
    assert ids(world.rank(text="p1", candidates=("p1", "p2"))) == ["p2", "p1"]


# --- named candidates ----------------------------------------------------------------------------------------------


def test_named_candidates_are_ranked_and_nothing_else(world):
    world.add(posting("P3"), 99)  # equal without case: the filter lets it through, the ranker must not
    result = world.rank(candidates=("p3", "p5", "p5", "absent"))
    assert ids(result) == ["p5", "p3"]
    assert (result.total, result.depth_asked, result.depth_served) == (2, 3, 2)


def test_the_echo_comes_back_untouched(world):
    assert world.rank(echo=b"\x00go on\xff").echo == b"\x00go on\xff"
    assert world.rank().echo is None


def test_a_named_candidate_without_a_vector_is_ranked_too_but_not_past_the_filters(redis_url):
    world = World(redis_url, count=2)
    world.add(posting("bare3", region="OH"), None)
    world.add(posting("bare4", region="IA"), None)
    query = RankQuery(text="nurse", filters=filters.is_in("location.region", "OH", missing=Missing.INCLUDE))
    result = world.rank(query=query, candidates=("p1", "bare3", "bare4"))
    assert ids(result) == ["bare3", "p1"]
    assert result.items[0].parts["dense"] == 0.0


# --- features ------------------------------------------------------------------------------------------------------


def test_postings_that_the_store_lacks_are_read_from_retrieval_and_named(redis_url):
    world = World(redis_url, count=3)
    world.add(posting("new9"), 9, stored=False)
    world.shelf.put(posting("p2", version=2), np.array([2.0, 0.0]))  # the store is a version behind
    result = world.rank()
    assert ids(result) == ["new9", "p2", "p1", "p0"]
    assert result.degraded == ("features: 2 of 4 postings read from retrieval, not the store",)
    assert world.rank().cache_hits == 4


def test_a_store_ahead_of_retrieval_is_used_but_its_score_is_not_kept(redis_url):
    world = World(redis_url, count=1)
    world.store.write(Batch(updates=[posting("p0", version=2)], before={}, after={}))
    assert ids(world.rank()) == ["p0"]
    assert world.rank().cache_hits == 0


def test_a_posting_deleted_since_is_not_shown(redis_url):
    world = World(redis_url, count=3)
    gone = IndexUpdate(posting_id="p2", version=1, revision=9, op=IndexOp.DELETE, produced_at=5)
    world.store.write(Batch(updates=[gone], before={}, after={}))
    result = world.rank()
    assert ids(result) == ["p1", "p0"]
    assert (result.depth_served, result.total) == (2, 3)


def test_without_redis_the_answer_is_the_same_and_says_what_it_did(redis_server):
    world = World(redis_server.url, count=4)
    healthy = ids(world.rank())
    redis_server.stop()
    result = world.rank()
    assert ids(result) == healthy
    assert [reason.split(":")[0] for reason in result.degraded] == ["score cache", "feature store"]


# --- the language model --------------------------------------------------------------------------------------------


def test_the_language_model_scores_the_top_and_the_rest_stays_below(redis_url):
    lm = Reader("lm", sign=-5.0)  # of the opposite opinion, and a stronger one
    world = World(redis_url, lm=lm, limits=DepthLimits(10, 40))
    result = world.rank()
    assert sorted(lm.scored) == ["p7", "p8", "p9"]
    assert result.lm_scored == 3
    assert ids(result) == ["p7", "p8", "p9", *(f"p{number}" for number in reversed(range(7)))]
    scores = [item.score for item in result.items]
    assert scores == sorted(scores, reverse=True) and all(0 <= score <= 1 for score in scores)
    assert result.model_id == "reader+lm"
    assert result.items[0].parts == pytest.approx({"title": 7, "dense": 7, "fused": 0.57, "yes_no": 0.15})
    again = world.rank()
    assert ids(again) == ids(result)
    assert (again.cache_hits, again.lm_scored, len(lm.scored)) == (13, 3, 3)


class Model(Reader):
    """A language model whose calls take seconds of the world's clock, or fail."""

    def __init__(self, error=None):
        super().__init__("lm", sign=-5.0)
        self.seconds_an_item, self.error, self.world = 0.0, error, None

    def score(self, query, items, caller):
        self.world.clock_s += len(items) * self.seconds_an_item
        if self.error is not None:
            raise self.error
        return super().score(query, items, caller)


def with_model(redis_url, model, **options):
    model.world = World(redis_url, lm=model, limits=DepthLimits(10, 40), **options)
    return model.world


FAILURES = [
    EngineFull(900, 200, 1_000),
    EngineClosed(),
    ForwardFailed(MemoryError("no room"), 2),
    RemoteAway("no connection"),
    NonFiniteScore("weights are damaged"),
    DeadlinePassed("its forward", late_ms=3),
    TimeoutError("an identical request took too long"),
    RuntimeError("a bug"),
]


ALERT = {"class_": RankClass.ALERT, "candidates": ("p9",), "page": Page(size=1)}


def test_an_alert_that_gives_way_is_served_the_score_of_an_older_revision_and_it_is_asked_for_anew(redis_url):
    world = World(redis_url, lm=(lm := Reader("lm", sign=-5.0)))
    heard = []
    world.pipeline.refresh = lambda request, names: heard.append((request.request_id, names))
    first = world.rank(**ALERT)
    world.add(posting("p9", revision=1), 9)
    again = world.rank(**ALERT, may_be_stale=True)
    assert (lm.scored, heard) == (["p9"], [("r", ("p9",))])
    assert again.degraded == ("stale score of revision 0 (1 of 1)",)
    assert (again.items[0].revision, again.items[0].score, again.lm_scored) == (1, first.items[0].score, 1)
    assert world.fused.scored == ["p9", "p9"]  # what a revision changes is what the fused score is made of
    fresh = world.rank(**ALERT)
    assert (lm.scored, fresh.degraded) == (["p9", "p9"], ())
    assert world.rank(**ALERT, may_be_stale=True).degraded == () and len(heard) == 1


def test_the_score_of_another_version_is_never_served(redis_url):
    world = World(redis_url, lm=(lm := Reader("lm", sign=-5.0)))
    world.rank(**ALERT)
    world.add(posting("p9", version=2, revision=1), 9)
    result = world.rank(**ALERT, may_be_stale=True)
    assert (lm.scored, result.degraded, result.items[0].version) == (["p9", "p9"], (), 2)


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
def test_when_the_language_model_gives_nothing_the_fused_order_stands_and_says_so(redis_url, error):
    world = with_model(redis_url, Model(error=error))
    counted = DEGRADED.labels("ranker", "language model")._value.get()
    result = world.rank()
    assert ids(result) == [f"p{number}" for number in reversed(range(10))]
    assert [item.score for item in result.items] == pytest.approx(
        [0.5 + number / 100 for number in reversed(range(10))]
    )
    assert result.lm_scored == 0 and "yes_no" not in result.items[0].parts
    [reason] = result.degraded
    assert reason.startswith("language model: ") and str(error) in reason and "fused scores alone" in reason
    assert DEGRADED.labels("ranker", "language model")._value.get() == counted + 1
    assert world.job.fell_back == (not isinstance(error, DeadlinePassed))  # what had its whole time shows what it takes


def test_a_caller_that_leaves_the_language_model_leaves_the_request(redis_url):
    with pytest.raises(CallerLeft):
        with_model(redis_url, Model(error=CallerLeft("gone"))).rank()


def test_a_request_whose_own_deadline_passed_in_the_language_model_is_late(redis_url):
    model = Model(error=DeadlinePassed("its forward", late_ms=3))
    world = with_model(redis_url, model)
    score = model.score

    def slow(query, items, caller):
        world.clock_s = 11.0
        return score(query, items, caller)

    model.score = slow
    with pytest.raises(DeadlinePassed):
        world.rank()


def test_the_language_model_is_told_who_waits_and_has_part_of_the_time(redis_url):
    world = with_model(redis_url, model := Model())
    world.rank(deadline=NOW + 500)
    world.rank(text="other", class_=RankClass.ALERT, deadline=NOW + 1_000)
    searching, alert = model.callers
    assert (searching.interactive, searching.deadline_s) == (True, pytest.approx(scoring.SHARE * 0.5))
    assert (alert.interactive, alert.deadline_s) == (False, pytest.approx(scoring.SHARE * LONGEST_CALL_S))
    model.longest_s = 0.1
    world.rank(text="fifth")
    assert model.callers[-1].deadline_s == pytest.approx(0.1)


def test_the_language_model_scores_as_many_as_the_shaper_gives_and_the_answer_says_what_it_lost(redis_url):
    world = with_model(redis_url, Model(), ceiling=8)
    deep = world.rank()
    assert (deep.lm_scored, deep.depth_reason, deep.degraded) == (8, "supply", ())
    counted = DEGRADED.labels("ranker", "depth")._value.get()
    shallow = world.rank(text="other", given=2, reason=Why.SLACK)
    assert (shallow.lm_scored, shallow.depth_reason, shallow.depth_served) == (2, "slack", 10)
    assert shallow.degraded == ("depth: 2 of 8 candidates by the language model (slack)",)
    assert DEGRADED.labels("ranker", "depth")._value.get() == counted + 1


def test_alone_the_fused_scorer_ranks_as_many_as_the_shaper_gives_in_whole_pages(redis_url):
    world = World(redis_url, limits=DepthLimits(8, 40))
    assert world.rank(page=Page(size=2)).degraded == ()
    first = world.rank(page=Page(size=2), given=3, reason=Why.FLOOR)
    assert (first.depth_asked, first.depth_served, first.depth_reason) == (8, 4, "floor")
    assert first.degraded == ("depth: 4 of 8 candidates (floor)",)
    assert ids(first) == ["p9", "p8"]
    second = world.rank(page=Page(size=2, cursor=first.next_cursor))
    third = world.rank(page=Page(size=2, cursor=second.next_cursor))
    assert (ids(second), ids(third)) == (["p7", "p6"], ["p5", "p4"])
    assert second.degraded == third.degraded == ()  # the block keeps its depth: nothing was taken from this page


def test_what_can_wait_is_ranked_however_late(redis_url):
    world = World(redis_url)
    assert len(ids(world.rank(class_=RankClass.ALERT, deadline=NOW - 1_000))) == 10
    with pytest.raises(DeadlinePassed):
        world.rank(deadline=NOW - 1_000)


def test_the_pages_of_a_search_are_ordered_alike_whatever_the_load_is_meanwhile(redis_url):
    world = with_model(redis_url, model := Model(), ceiling=8)
    first = world.rank(page=Page(size=5), depth=10, given=2, reason=Why.LOAD)
    second = world.rank(page=Page(size=5, cursor=first.next_cursor), depth=10)
    assert (first.lm_scored, second.lm_scored) == (2, 2)
    assert sorted(ids(first) + ids(second)) == [f"p{number}" for number in range(10)]
    model.error = RemoteAway("no connection")
    world.pipeline._cache = ScoreCache(world.link, "emptied", 900, time.monotonic)
    alone = world.rank(page=Page(size=5, cursor=first.next_cursor), depth=10)
    assert "page: ordered without the language model" in alone.degraded[-1]


def test_who_waits_for_a_search_does_not_wait_for_the_same_pair_of_an_alert(redis_url):
    world, entered, release = with_model(redis_url, model := Model()), threading.Event(), threading.Event()
    score = model.score

    def slow(query, items, caller):
        if not caller.interactive:
            entered.set()
            assert release.wait(20)
        return score(query, items, caller)

    model.score = slow
    alert = threading.Thread(target=world.rank, kwargs={"class_": RankClass.ALERT})
    alert.start()
    assert entered.wait(20)
    assert world.rank().lm_scored == 3  # while the alert's are not done
    release.set()
    alert.join(20)
    assert not alert.is_alive()


def test_what_a_model_spent_where_is_in_the_timings(redis_url):
    world = with_model(redis_url, model := Model())
    score = model.score
    model.score = lambda *asked: replace(score(*asked), timings={"forward": 12.0, "queue": 3.0})
    result = world.rank()
    assert result.timings.keys() == STAGES | {"lm", "lm_forward", "lm_queue"}
    assert (result.timings["lm_forward"], result.timings["lm_queue"]) == (12.0, 3.0)
    assert not world.job.fell_back


probabilities = st.lists(st.floats(0, 1), max_size=8).map(lambda values: np.array(values, dtype=np.float64))


@given(probabilities, probabilities)
def test_the_rest_keeps_its_order_below_the_top(rest, top):
    scaled = scoring.below(rest, top)
    assert scaled.shape == rest.shape
    if rest.size and top.size:
        assert scaled.max() < top.min() or scaled.max() == top.min() == 0
    assert (np.diff(scaled[np.argsort(rest, kind="stable")]) >= 0).all()


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_combining_is_monotone_symmetric_and_stays_a_probability(a, b, c):
    def one(x, y):
        return float(scoring.combine(np.array([x]), np.array([y]))[0])

    assert 0 <= one(a, b) <= 1
    assert one(a, b) == pytest.approx(one(b, a))
    low, high = sorted((b, c))
    assert one(a, low) <= one(a, high) + 1e-12
    assert one(0.3, 0.3) == pytest.approx(0.3)


# --- what goes wrong -----------------------------------------------------------------------------------------------


def test_a_number_that_is_no_probability_is_an_error_and_is_not_kept(world):
    world.fused.broken = True
    with pytest.raises(RankFailed, match="score: NonFiniteScore: 10 of 10 scores are not probabilities"):
        world.rank()
    world.fused.broken = False
    assert world.rank().cache_hits == 0


def test_a_stage_that_fails_is_named_with_its_cause(world):
    world.shelf.down = True
    with pytest.raises(RankFailed, match=r"retrieve: CallError: .*shelf is down"):
        world.rank()


def test_a_deadline_that_passes_in_the_middle_stops_the_work(world):
    search = world.shelf.search

    def slow(request, timeout):
        assert timeout == 10.0
        world.clock_s = 11.0
        return search(request, timeout)

    world.shelf.search = slow
    with pytest.raises(DeadlinePassed, match="deadline passed before cache: 1000 ms late after 11003 ms here"):
        world.rank()
    assert world.fused.scored == []


def test_a_caller_that_left_stops_the_work(world):
    with pytest.raises(CallerLeft):
        world.rank(left=True)
    assert world.shelf.calls == []


def test_a_bad_cursor_is_the_callers_mistake(world):
    with pytest.raises(InvalidRecord, match=r"page\.cursor"):
        world.rank(page=Page(cursor="x"))


def test_identical_requests_at_once_score_each_pair_once(redis_url):
    world, entered, release = World(redis_url), threading.Event(), threading.Event()
    score = world.fused.score

    def slow(query, items, caller):
        entered.set()
        assert release.wait(20)
        return score(query, items, caller)

    world.fused.score = slow
    results = []
    threads = [threading.Thread(target=lambda: results.append(world.rank())) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert entered.wait(20)
    release.set()
    for thread in threads:
        thread.join(20)
    assert len({tuple(ids(result)) for result in results}) == 1 and len(results) == 4
    assert len(world.fused.scored) == len(set(world.fused.scored)) == results[0].depth_served
