"""Scores of older revisions: which may be served, to whom, and how they are computed anew."""

import itertools
import threading

import numpy as np
import pytest
from desk import make_desk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from refusing import Refusing

from penstock.infra.settings import RedisSettings
from penstock.ranker import refreshing
from penstock.ranker.cache import OLDER, STALE, Computed, PairVersion, ScoreCache
from penstock.ranker.job import Job
from penstock.ranker.redis_link import RedisLink, connect
from penstock.ranker.refreshing import REFRESHES, Refreshing
from penstock.schemas.events import Page, RankClass, RankQuery, RankRequest, RankResult

NOW = 1_000_000
LATER = NOW + 60_000
PREFIXES = itertools.count()


# --- what may be served --------------------------------------------------------------------------------------------

SCORED = st.tuples(
    st.sampled_from(("m", "n")),  # model
    st.sampled_from((b"q", b"r")),  # query
    st.builds(
        PairVersion,
        tenant=st.sampled_from("tu"),
        posting_id=st.sampled_from("ab"),
        version=st.integers(1, 2),
        revision=st.integers(0, OLDER + 2),
    ),
)


def cache_on(url, prefix):
    return ScoreCache(RedisLink(connect(RedisSettings(url=url)), lambda: 0.0), prefix, 900, lambda: 0.0)


def computed(p):
    return lambda positions: Computed(np.full((len(positions), 1), p), np.ones(len(positions), dtype=bool))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(known=st.lists(SCORED, max_size=12, unique=True), asked=st.lists(SCORED, min_size=1, max_size=6))
def test_only_an_older_revision_of_the_same_version_query_model_and_tenant_is_served(redis_url, known, asked):
    cache = cache_on(redis_url, f"stale{next(PREFIXES)}")
    p_of = {}
    for number, (model, query, pair) in enumerate(known, 1):
        p_of[model, query, pair] = number / 100
        cache.rows(model, 1, query, [pair], computed(number / 100), 1)
    for number, (model, query, pair) in enumerate(asked, 50):
        served = cache.rows(model, 1, query, [pair], computed(number / 100), 1, False, may_be_stale=True)
        revisions = [
            one.revision
            for m, q, one in p_of
            if (m, q, one.tenant, one.posting_id, one.version)
            == (model, query, pair.tenant, pair.posting_id, pair.version)
            and pair.revision - OLDER <= one.revision < pair.revision
        ]
        if (model, query, pair) in p_of:
            expected, hits, stale = p_of[model, query, pair], 1, ()
        elif revisions:
            older = PairVersion(pair.tenant, pair.posting_id, pair.version, max(revisions))
            expected, hits, stale = p_of[model, query, older], 1, ((0, max(revisions)),)
        else:
            expected, hits, stale = number / 100, 0, ()
            p_of[model, query, pair] = expected
        assert (served.rows.tolist(), served.hits, served.stale) == ([[expected]], hits, stale)


def test_what_was_served_stale_is_counted_kept_nowhere_and_computed_for_the_next(redis_url):
    cache = cache_on(redis_url, "t")
    old, new = (PairVersion("t", "a", 1, revision) for revision in (0, 1))
    cache.rows("m", 1, b"q", [old], computed(0.25), 1)
    before = STALE._value.get()
    both = [new, PairVersion("t", "b", 1, 1)]
    served = cache.rows("m", 1, b"q", both, computed(0.5), 1, False, may_be_stale=True)
    assert (served.rows.tolist(), served.stale, served.hits) == ([[0.25], [0.5]], ((0, 0),), 1)
    assert STALE._value.get() == before + 1
    fresh = cache.rows("m", 1, b"q", both, computed(0.75), 1, False)
    assert (fresh.rows.tolist(), fresh.stale, fresh.hits) == ([[0.75], [0.5]], (), 1)


# --- to whom -------------------------------------------------------------------------------------------------------


class Ranked:
    """Remembers the jobs and turns; waits while it is shut."""

    def __init__(self):
        self.jobs, self.turns = [], {}
        self.entered, self.open = threading.Semaphore(0), threading.Event()
        self.open.set()

    def __call__(self, job, turn):
        self.jobs.append(job)
        self.turns[job.request.request_id] = turn
        self.entered.release()
        assert self.open.wait(20)
        return RankResult(request_id=job.request.request_id, tenant=job.request.tenant, timings={})


@pytest.fixture
def desk():
    """Makes a started service over `Ranked`, with a door that a test may shut, and closes it in the end."""
    opened = []

    def make():
        ranked = Ranked()

        def around(shaper):
            ranked.door = Refusing(shaper)
            return ranked.door

        service = make_desk(ranked, workers=1, now_ms=lambda: NOW, around=around)
        opened.append((service, ranked))
        service.start()
        return service, ranked

    yield make
    for service, ranked in opened:
        ranked.open.set()
        service.close(20)


def request(name="r", class_=RankClass.ALERT, deadline=LATER, text="nurse", **changes):
    return RankRequest(
        request_id=name, tenant="t", class_=class_, deadline=deadline, query=RankQuery(text=text), **changes
    )


def submitted(service, asked, **how):
    job = Job(asked, asked.deadline, **how)
    assert service.try_submit(job) is None
    return job


def test_only_alerts_that_were_put_off_may_be_stale_and_refreshes_never(desk):
    service, ranked = desk()
    late = NOW - 5  # cannot be met, so it is deferred
    cases = {
        "alert in time": (RankClass.ALERT, LATER, False, False),
        "alert put off": (RankClass.ALERT, late, False, True),
        "recommendation put off": (RankClass.RECOMMENDATION, late, False, False),
        "refresh put off": (RankClass.ALERT, late, True, False),
        "search": (RankClass.INTERACTIVE, LATER, False, False),
    }
    for name, (class_, deadline, refreshes, _) in cases.items():
        asked = request(name, class_, deadline, text=name, candidates=("p",))
        submitted(service, asked, refreshes=refreshes).future.result(20)
    assert {name: ranked.turns[name].may_be_stale for name in cases} == {
        name: stale for name, (*_, stale) in cases.items()
    }


@pytest.mark.parametrize(
    ("class_", "ranked_for"), [(RankClass.INTERACTIVE, "other"), (RankClass.RECOMMENDATION, "alert")]
)
def test_who_shares_an_alerts_answer_is_never_served_stale(desk, class_, ranked_for):
    service, ranked = desk()
    ranked.open.clear()
    busy = submitted(service, request("busy", text="chef"))
    assert ranked.entered.acquire(timeout=20)
    alert = submitted(service, request("alert", deadline=NOW - 5))
    other = submitted(service, request("other", class_))
    ranked.open.set()
    for job in (busy, alert, other):
        assert job.future.result(20).request_id == job.request.request_id
    assert [job.request.request_id for job in ranked.jobs] == ["busy", ranked_for]  # they shared it
    assert alert.deferred and not ranked.turns[ranked_for].may_be_stale


# --- computed anew -------------------------------------------------------------------------------------------------


def outcomes():
    return {name: REFRESHES.labels(name)._value.get() for name in ("done", "dropped", "failed")}


def since(before):
    return {name: now - before[name] for name, now in outcomes().items() if now != before[name]}


def test_a_refresh_asks_for_the_same_query_and_the_stale_postings_once_while_it_waits(desk, until):
    service, ranked = desk()
    ranked.open.clear()
    refresh, before = Refreshing(service, 900.0, lambda: NOW), outcomes()
    stale = request("a", candidates=("p1", "p2", "p3"), echo=b"e", page=Page(size=1))
    refresh.ask(stale, ("p1", "p2"))
    assert ranked.entered.acquire(timeout=20)
    refresh.ask(stale, ("p2",))
    refresh.ask(stale, ("p2", "p3"))
    refresh.ask(request("b", text="chef"), ("p1",))
    assert len(refresh) == 3
    ranked.open.set()
    until(lambda: len(refresh) == 0)
    first, *others = [job.request for job in ranked.jobs]
    assert (first.candidates, first.query, first.tenant, first.page.size) == (("p1", "p2"), stale.query, "t", 2)
    assert (first.class_, first.deadline, first.echo) == (RankClass.ALERT, NOW + 900_000, None)
    assert {(one.query.text, one.candidates) for one in others} == {("nurse", ("p3",)), ("chef", ("p1",))}
    assert all(job.refreshes for job in ranked.jobs)
    refresh.ask(stale, ("p2",))
    until(lambda: since(before) == {"done": 4})


def test_refreshes_are_the_first_to_be_dropped(desk, until):
    service, ranked = desk()
    before, refresh = outcomes(), Refreshing(service, 900.0, lambda: NOW)
    ranked.door.after_s = lambda work: 1.0
    refresh.ask(request(), ("p",))
    assert since(before) == {"dropped": 1} and len(refresh) == 0
    ranked.door.after_s = lambda work: None
    Refreshing(service, -1.0, lambda: NOW).ask(request(), ("p",))  # a deadline that cannot be met: put off
    until(lambda: since(before) == {"dropped": 2})
    service.close(20)
    refresh.ask(request(), ("p",))
    assert since(before) == {"dropped": 3} and len(refresh) == 0


def test_no_more_refreshes_wait_than_their_bound(desk, until, monkeypatch):
    monkeypatch.setattr(refreshing, "MOST", 3)
    service, ranked = desk()
    ranked.open.clear()
    before, refresh = outcomes(), Refreshing(service, 900.0, lambda: NOW)
    for number in range(8):
        refresh.ask(request(text=f"nurse {number}"), ("p",))
    assert len(refresh) == 3 and since(before) == {"dropped": 5}
    ranked.open.set()
    until(lambda: since(before) == {"dropped": 5, "done": 3})
    assert len(ranked.jobs) == 3


def test_one_that_fails_is_counted_and_may_be_asked_for_again(desk, until, monkeypatch):
    service, ranked = desk()
    before, refresh = outcomes(), Refreshing(service, 900.0, lambda: NOW)
    monkeypatch.setattr(service, "_rank", lambda job, turn: 1 / 0)
    refresh.ask(request(), ("p",))
    until(lambda: since(before) == {"failed": 1})
    monkeypatch.setattr(service, "_rank", ranked)
    refresh.ask(request(), ("p",))
    until(lambda: since(before) == {"failed": 1, "done": 1})
