"""What was read from Kafka and not taken in: nobody waits behind another's refusal; nothing is lost or passed over."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from penstock.ranker.backlog import BESIDE_BYTES, LONGEST_WAIT_S, MOST_BYTES, Backlog
from penstock.ranker.job import Job
from penstock.schemas.events import RankClass, RankQuery, RankRequest
from penstock.schemas.kafka import Record

PEOPLE, RECOMMENDATION, ALERT = RankClass.INTERACTIVE, RankClass.RECOMMENDATION, RankClass.ALERT
HOUR_MS = 3_600_000


def record(offset, partition=0, value=b""):
    return Record(partition, offset, None, value, None)


def job(class_=ALERT, tenant="t", deadline=1_000, name="r"):
    return Job(
        RankRequest(request_id=name, tenant=tenant, class_=class_, deadline=deadline, query=RankQuery(text="nurse")),
        deadline,
    )


def held(backlog, *jobs):
    for offset, one in enumerate(jobs, len(backlog)):
        backlog.read(record(offset))
        backlog.hold(record(offset), one)


def heads(backlog, now_s=0.0):
    return [(line.class_, line.head.job.request.tenant, line.head.job.deadline_ms) for line in backlog.due(now_s)]


def test_peoples_requests_go_first_and_then_the_earliest_deadline():
    backlog = Backlog(8)
    held(backlog, job(deadline=5), job(PEOPLE, deadline=90), job(RECOMMENDATION, deadline=7), job(deadline=3))
    assert heads(backlog) == [(PEOPLE, "t", 90), (ALERT, "t", 3), (RECOMMENDATION, "t", 7)]


def test_a_refused_request_stays_at_the_head_until_its_time_and_holds_up_its_own_line_alone():
    backlog = Backlog(8)
    held(backlog, job(deadline=5), job(deadline=6), job(tenant="other", deadline=9), job(PEOPLE, deadline=90))
    refused = backlog.due(0.0)[1]
    backlog.put_off(refused, 0.0, 0.5)
    assert heads(backlog, 0.4) == [(PEOPLE, "t", 90), (ALERT, "other", 9)]
    assert heads(backlog, 0.5) == [(PEOPLE, "t", 90), (ALERT, "t", 5), (ALERT, "other", 9)]
    backlog.put_off(refused, 0.5, 1_000.0)
    assert (ALERT, "t", 5) in heads(backlog, 0.5 + LONGEST_WAIT_S)


def test_an_instant_alert_does_not_wait_for_the_digest_that_was_refused_before_it():
    backlog = Backlog(8)
    held(backlog, job(deadline=HOUR_MS))
    backlog.put_off(backlog.due(0.0)[0], 0.0, 4.0)
    assert heads(backlog, LONGEST_WAIT_S / 2) == []
    held(backlog, job(deadline=2 * HOUR_MS))
    assert heads(backlog, LONGEST_WAIT_S / 2) == []
    held(backlog, job(deadline=30_000))
    assert heads(backlog, LONGEST_WAIT_S / 2) == [(ALERT, "t", 30_000)]


def test_what_somebody_waited_for_is_given_up_at_its_deadline_and_nothing_else():
    backlog = Backlog(8)
    held(backlog, *(job(class_, deadline=at) for class_ in (PEOPLE, RECOMMENDATION, ALERT) for at in (10, 11)))
    for line in backlog.due(0.0):
        backlog.put_off(line, 0.0, 4.0)
    assert list(backlog.late(9)) == []
    assert [one.job.deadline_ms for one in backlog.late(10)] == [10]
    assert backlog.waiting() == {PEOPLE: 1, RECOMMENDATION: 2, ALERT: 2, RankClass.UNKNOWN: 0}


def test_no_more_is_read_when_people_wait_and_however_much_else_does_only_bytes_count():
    backlog = Backlog(2)
    held(backlog, *(job(deadline=at) for at in range(100)))
    assert not backlog.is_full and backlog.room == 2
    held(backlog, job(PEOPLE, deadline=1))
    assert not backlog.is_full and backlog.room == 1
    held(backlog, job(PEOPLE, deadline=2))
    assert backlog.is_full and backlog.room == 1
    for offset in (100, 101):
        backlog.answered(record(offset))
    assert not backlog.is_full
    large = b"x" * (1 << 20)
    before, offset = backlog.bytes, 102
    while not backlog.is_full:
        backlog.read(record(offset, value=large))
        offset += 1
    assert MOST_BYTES <= backlog.bytes < MOST_BYTES + len(large) + BESIDE_BYTES
    assert backlog.bytes - before == (offset - 102) * (len(large) + BESIDE_BYTES)


@settings(max_examples=60, stateful_step_count=40, deadline=None)
class Lives(RuleBasedStateMachine):
    """Against sets: every record is in line, taken in, answered or lost, and the counters say so."""

    @initialize(people=st.integers(1, 5))
    def begins(self, people):
        self.backlog, self.most = Backlog(people), people
        self.next = Counter()
        self.line, self.taken = {}, {}  # place: (record, job)
        self.committed = {}
        self.now_s = 0.0

    @rule(
        partition=st.integers(0, 2),
        class_=st.sampled_from((PEOPLE, RECOMMENDATION, ALERT)),
        tenant=st.sampled_from("ab"),
        deadline=st.integers(0, 9),
        value=st.binary(max_size=4),
    )
    def reads(self, partition, class_, tenant, deadline, value):
        one = record(self.next[partition], partition, value)
        self.next[partition] += 1
        self.backlog.read(one)
        self.backlog.hold(one, job(class_, tenant, deadline))
        self.line[partition, one.offset] = one, (class_, tenant, deadline)

    @rule(after_s=st.floats(0, 9), refuse=st.sets(st.integers(0, 5)))
    def offers(self, after_s, refuse):
        for number, line in enumerate(self.backlog.due(self.now_s)):
            one = line.head
            told = one.job.request.class_, one.job.request.tenant
            mine = [deadline for *_, (class_, tenant, deadline) in self.line.values() if (class_, tenant) == told]
            assert one.job.deadline_ms == min(mine)
            if number in refuse:
                self.backlog.put_off(line, self.now_s, after_s)
            else:
                self.backlog.take(line)
                place = one.record.partition, one.record.offset
                self.taken[place] = self.line.pop(place)

    @rule(now_ms=st.integers(0, 9))
    def gives_up(self, now_ms):
        late = {(one.record.partition, one.record.offset) for one in self.backlog.late(now_ms)}
        assert late == {p for p, (_, (class_, _, at)) in self.line.items() if class_ is PEOPLE and at <= now_ms}
        for place in late:
            self.taken[place] = self.line.pop(place)

    @rule(by_s=st.floats(0, 9))
    def passes(self, by_s):
        self.now_s += by_s

    @rule(random=st.randoms())
    def answers(self, random):
        for place in random.sample(sorted(self.taken), len(self.taken) // 2):
            self.backlog.answered(self.taken.pop(place)[0])

    @rule(partition=st.integers(0, 2))
    def loses(self, partition):
        self.backlog.forget([partition])
        for places in (self.line, self.taken):
            for place in [place for place in places if place[0] == partition]:
                del places[place]
        self.committed.pop(partition, None)
        self.next[partition] += 1  # another read meanwhile

    @invariant()
    def counts(self):
        if not hasattr(self, "backlog"):
            return
        here = [*self.line.values(), *self.taken.values()]
        assert len(self.backlog) == len(here)
        assert self.backlog.people == sum(class_ is PEOPLE for _, (class_, *_) in here)
        assert self.backlog.bytes == sum(BESIDE_BYTES + len(one.value) for one, _ in here)
        assert sum(self.backlog.waiting().values()) == len(self.line)
        self.committed.update(self.backlog.committable())
        for partition, position in self.committed.items():
            assert all(offset >= position for at, offset in (*self.line, *self.taken) if at == partition)

    @invariant()
    def refusals_end(self):
        if hasattr(self, "backlog"):
            everything = {(class_, tenant) for _, (class_, tenant, _) in self.line.values()}
            due = self.backlog.due(self.now_s + LONGEST_WAIT_S)
            assert {(line.class_, line.head.job.request.tenant) for line in due} == everything


TestLives = Lives.TestCase


@given(st.lists(st.tuples(st.sampled_from((PEOPLE, RECOMMENDATION, ALERT)), st.sampled_from("ab"), st.integers(0, 5))))
def test_those_of_one_line_leave_by_deadline_and_then_in_the_order_they_were_read(asked):
    backlog = Backlog(8)
    held(backlog, *(job(class_, tenant, at, str(number)) for number, (class_, tenant, at) in enumerate(asked)))
    left = []
    for line in backlog.due(0.0):
        while line.heap:
            left.append(int(line.head.job.request.request_id))
            backlog.take(line)
    assert Counter(left) == Counter(range(len(asked)))
    for one in {entry[:2] for entry in asked}:
        mine = [(asked[number][2], number) for number in left if asked[number][:2] == one]
        assert mine == sorted(mine)
    assert backlog.due(0.0) == []


@pytest.mark.parametrize("people", [0, -3])
def test_there_is_always_room_for_one_person(people):
    backlog = Backlog(people)
    assert not backlog.is_full and backlog.room == 1
