"""`penstock top` and traffic shaping: what the ranker's metrics of two moments say, and how it looks.

The metrics are those that the ranker really shows, of a real shaper.
"""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from shaping_plant import FIXED, ITEM, work

from penstock.infra.settings import Settings
from penstock.infra.top import stages, view
from penstock.infra.top.reading import Reading
from penstock.infra.top.samples import Samples, from_text
from penstock.infra.top.shaping import Queue, Shaping, shaping
from penstock.ranker import decisions
from penstock.ranker.shaping.cost import Prior
from penstock.ranker.shaping.limits import Limits
from penstock.ranker.shaping.shaper import TrafficShaper
from penstock.ranker.shaping_status import StateCollector
from penstock.schemas.events import RankClass

PRIOR = Prior(0.002, 2.5e-6)
FLOOR_S = PRIOR.overhead_s + PRIOR.token_s * (FIXED + 131 * ITEM)


class Ranker:
    """A shaper and the endpoint that shows it."""

    def __init__(self):
        self.shaper = decisions.Counted(TrafficShaper(Limits(), PRIOR))
        self.now_s = 0.0
        self._offers = 0
        self._registry = CollectorRegistry()
        collector = StateCollector()
        collector.read = lambda: self.shaper.state(self.now_s)
        for each in (decisions.DECISIONS, decisions.DEPTHS, decisions.DEPTH, collector):
            self._registry.register(each)

    def offer(self, count, class_=RankClass.INTERACTIVE, **changes):
        for _ in range(count):
            self._offers += 1
            self.shaper.offer(work(self._offers, self.now_s, class_, **changes), self.now_s)

    def reading(self, at):
        return Reading(at=at, metrics={"ranker": from_text(generate_latest(self._registry).decode())})


def by_name(found):
    return {queue.name: queue for queue in found.queues}


def test_what_waits_and_what_was_decided_in_between():
    ranker = Ranker()
    before = ranker.reading(10.0)
    ranker.offer(3, wanted=20)
    ranker.offer(4, patience_s=FLOOR_S / 2)  # nobody could
    ranker.offer(2, RankClass.ALERT, patience_s=FLOOR_S / 2)
    ranker.offer(1, RankClass.RECOMMENDATION)
    ranker.now_s = 0.1
    told = shaping(before, ranker.reading(12.0))
    queues = by_name(told)
    assert list(queues) == ["interactive", "recommendation", "alert", "late"]
    people, alerts, late = queues["interactive"], queues["alert"], queues["late"]
    assert (people.waiting, people.admitted, people.deferred, people.shed) == (3, 1.5, 0, 2)
    assert people.tokens > 3 * 20 * ITEM
    assert people.oldest_s == pytest.approx(0.1)
    assert people.why == {"late": 2.0}
    assert (alerts.waiting, alerts.admitted, alerts.deferred, alerts.why) == (0, 0, 1, {"late": 1.0})
    assert (late.waiting, late.admitted, late.why) == (2, None, None)
    assert (queues["recommendation"].waiting, queues["recommendation"].depth) == (1, None)
    state = ranker.shaper.state(0.1)
    assert (told.depth, told.depth_reason, told.slack_s) == (state.depth, state.depth_reason, state.slack_s)
    assert (told.overhead_s, told.token_s, told.confidence) == (PRIOR.overhead_s, PRIOR.token_s, 0.0)
    assert told.delay_s == state.delay_s > 0


def test_depths_and_their_reasons_are_those_of_the_window():
    ranker = Ranker()
    ranker.offer(1, wanted=900)
    ranker.shaper.batch(0.0, 1e9)
    before = ranker.reading(0.0)
    ranker.offer(3, wanted=30)
    batch = ranker.shaper.batch(0.0, 1e9)
    assert len(batch.parts) == 3
    told = shaping(before, ranker.reading(1.0))
    assert by_name(told)["interactive"].depth == 30
    assert told.depth_reasons == {"supply": 1.0}


def test_what_expired_is_shed_and_says_so():
    ranker = Ranker()
    before = ranker.reading(0.0)
    ranker.offer(1, patience_s=2 * FLOOR_S)
    ranker.shaper.batch(1.0, 1e9)
    people = by_name(shaping(before, ranker.reading(1.0)))["interactive"]
    assert (people.shed, people.why) == (1, {"expired": 1})


def test_a_ranker_that_began_anew_counts_from_nothing():
    count = 'penstock_shaping_decisions_total{class="ALERT",decision="deferred",reason="queue"} %d\n'
    depth = 'penstock_shaping_depth{reason="load"} 20\n'
    given = "penstock_shaping_depth_items"
    sums = given + '_sum{class="ALERT"} %d\n' + given + '_count{class="ALERT"} %d\n'
    before, now = (
        Reading(at=at, metrics={"ranker": from_text(depth + count % counted + sums % (16 * counted, counted))})
        for at, counted in ((1.0, 500), (2.0, 7))
    )
    alerts = by_name(shaping(before, now))["alert"]
    assert (alerts.deferred, alerts.depth) == (7, 16)


@pytest.mark.parametrize(("held", "has", "busy"), [(10.0, 11.5, 0.75), (None, 3.0, None), (10.0, 1.0, 0.5)])
def test_the_engine_is_busy_by_the_seconds_of_its_forwards(held, has, busy):
    depth, name = 'penstock_shaping_depth{reason="load"} 20\n', "penstock_engine_busy_seconds_total"
    text = [depth if each is None else f"{depth}{name} {each}\n" for each in (held, has)]
    before, now = (Reading(at=2.0 * at, metrics={"ranker": from_text(told)}) for at, told in enumerate(text))
    assert shaping(before, now).busy == busy


def test_a_ranker_that_does_not_tell_or_only_just_began():
    ranker = Ranker()
    silent, told = Reading(at=1.0), ranker.reading(2.0)
    assert shaping(told, silent) is None
    assert shaping(told, Reading(at=2.0, metrics={"ranker": Samples()})) is None
    found = shaping(silent, told)
    assert found.slack_s is None and by_name(found)["alert"].admitted is None


def test_the_document_is_json_without_infinities():
    ranker = Ranker()
    told = shaping(ranker.reading(1.0), ranker.reading(2.0))
    document = json.loads(json.dumps(stages.as_document([], [], told, 1.0), allow_nan=False))
    assert document["shaping"]["queues"][0]["name"] == "interactive"
    assert document["shaping"]["slack_s"] is None
    assert stages.as_document([], [], None, 1.0)["shaping"] is None


# --- how it looks ----------------------------------------------------------------------------------------------------


def shown(told, width):
    rows = stages.rows(Settings(), Reading(at=1.0), Reading(at=2.0))
    return view.screen(rows, [], told, title="penstock top", width=width).plain.split("\n")


numbers = st.floats(0, 1e8)
queues = st.builds(
    Queue,
    name=st.sampled_from(["interactive", "recommendation", "late"]),
    waiting=st.integers(0, 10**6),
    tokens=numbers,
    oldest_s=st.floats(0, 1e6),
    admitted=numbers,
    deferred=numbers,
    shed=numbers,
    depth=st.floats(0, 2_000),
    why=st.dictionaries(st.sampled_from(["late", "standing", "tenant", "queue", "expired"]), numbers),
)


@given(
    st.builds(
        Shaping,
        queues=st.lists(queues, min_size=4, max_size=4).map(tuple),
        depth=st.floats(1, 2_000),
        depth_reason=st.sampled_from(["load", "ceiling"]),
        depth_reasons=st.dictionaries(st.sampled_from(["load", "floor", "supply", "margin"]), st.floats(0, 1)),
        slack_s=st.none() | st.floats(-100, 1e5),
        busy=st.none() | st.floats(0, 1),
        delay_s=st.floats(0, 1e4),
        confidence=st.floats(0, 1),
        overhead_s=st.floats(0, 1),
        token_s=st.floats(0, 0.01),
    ),
    st.sampled_from([80, 100]),
)
def test_every_line_fits_with_the_stages_above(told, width):
    lines = shown(told, width)
    assert max(len(line) for line in lines) <= width
    assert len(lines) <= 22  # of 24, the parts below take two: what is cut off a small terminal is theirs
    for queue in told.queues:
        assert any(line.startswith(f"{queue.name} ") for line in lines)


def test_as_many_reasons_as_there_is_room_for_the_most_frequent_first():
    told = {"late": 3.2, "standing": 1.1, "tenant": 0.3, "expired": 0.2}
    people = Queue("interactive", 12, 4_210.0, 0.12, 92.0, 0.0, 4.8, 22.0, told)
    found = Shaping((people,), 22.4, "load", {"load": 0.6, "floor": 0.4}, None, 0.97, 0.09, 0.9, 0.0034, 3.35e-5)
    line = {width: next(each for each in shown(found, width) if "interactive" in each) for width in (80, 100, 120)}
    assert line[80].endswith(" late 3.2") and line[100].endswith(" late 3.2 standing 1.1")
    assert line[120].endswith(" late 3.2 standing 1.1 tenant 0.3 expired 0.2")
    text = "\n".join(shown(found, 120))
    assert "depth 22 load · given for load 60% floor 40% · slack ∞ · busy 97% · a search would wait 90ms" in text
    assert "a batch takes 3.4ms + 33.5µs a token, 90% sure" in text


def test_without_a_shaper_nothing_is_shown_of_it():
    assert not any("queue " in line for line in shown(None, 80))


@pytest.mark.parametrize(("seconds", "told"), [(None, "∞"), (-0.25, "−250ms"), (0.0, "0ms"), (14.2, "14s")])
def test_slack_may_be_negative(seconds, told):
    assert view.duration_or_less(seconds) == told
