"""Whom of a shard's replicas to ask, and when: decided from what recent calls took."""

import math

import pytest

from penstock.retrieval.hedging import ENOUGH, HEDGES_SAVED, KEPT, UNKNOWN_S, Replicas


def answered(replicas, seconds, method="search", now=0.0):
    race = replicas.race(method)
    race.answered(race.ask(now), now + seconds)


def patience(replicas, method="search", **more):
    race = replicas.race(method, **more)
    race.ask(0.0)
    return race.hedge_at()


def test_another_is_asked_after_the_95th_percentile_of_recent_calls():
    replicas = Replicas(2)
    for n in range(1, ENOUGH):
        answered(replicas, n / 1000)
    assert patience(replicas) == UNKNOWN_S
    for n in range(ENOUGH, 101):
        answered(replicas, n / 1000)
    assert patience(replicas) == pytest.approx(0.095)
    assert patience(replicas, "get") == UNKNOWN_S  # each method has its own
    for _ in range(KEPT):
        answered(replicas, 0.5)
    assert patience(replicas) == pytest.approx(0.5)  # what was long ago is forgotten


def test_who_has_no_other_is_never_hedged():
    assert patience(Replicas(1)) == math.inf
    assert patience(Replicas(2), may_hedge=False) == math.inf


def test_a_wait_that_was_asked_for_says_nothing_of_speed():
    replicas = Replicas(2)
    for _ in range(ENOUGH):
        race = replicas.race("search", may_hedge=False)
        race.answered(race.ask(0.0), 9.0)
    assert patience(replicas) == UNKNOWN_S


def test_a_failure_asks_the_next_at_once_and_each_once():
    race = Replicas(3).race("search")
    assert race.ask(0.0) == 0
    assert race.failed(0)
    assert race.ask(0.0) == 1
    assert race.failed(1)
    assert race.ask(0.0) == 2
    assert not race.failed(2) and not race.under_way()
    assert race.hedge_at() == math.inf


def test_while_another_is_under_way_a_failure_asks_nobody():
    race = Replicas(3).race("search")
    race.ask(0.0)
    assert race.ask_beside(0.1) == 1 == race.hedge
    assert race.hedge_at() == math.inf  # two at a time
    assert not race.failed(0) and race.under_way()
    assert race.failed(1)
    assert race.ask(0.2) == 2


def test_who_answered_last_is_asked_first():
    replicas = Replicas(3)
    race = replicas.race("search")
    race.ask(0.0)
    beside = race.ask_beside(0.1)
    race.answered(beside, 0.3)
    again = replicas.race("get")
    assert again.ask(1.0) == beside == 1
    assert again.failed(1) and again.ask(1.0) == 2


def test_an_answer_counts_from_when_its_replica_was_asked():
    replicas = Replicas(2)
    for _ in range(ENOUGH):
        race = replicas.race("search")
        race.ask(0.0)
        race.failed(race._replicas._first)
        race.answered(race.ask(9.0), 9.25)
    assert patience(replicas) == 0.25


def test_a_wait_in_vain_leaves_the_answer_to_whoever_still_waits():
    race = Replicas(3).race("search")
    race.ask(0.0)
    beside = race.ask_beside(0.1)
    assert race.in_vain(0) and race.under_way()
    assert not race.in_vain(beside)
    race.answered(beside, 0.3)  # the last one's answer counts, whatever it is


def test_only_so_many_calls_are_hedged():
    replicas = Replicas(2)
    hedged = 0
    for _ in range(1_000):
        race = replicas.race("search")
        first = race.ask(0.0)
        if race.ask_beside(0.1) is None:
            assert race.hedge_at() == math.inf and race.hedge is None
        else:
            hedged += 1
        race.answered(first, 0.2)
    assert hedged <= 100 + HEDGES_SAVED
    assert hedged >= 95
