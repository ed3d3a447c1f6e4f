"""The demo's people are in force while it runs, and gone after it, however it ends."""

import pytest

from penstock.infra.demo import subscribed as subscribed_module
from penstock.infra.demo.subscribed import NothingGetsThrough, subscribed
from penstock.infra.kafka_clients import PublishFailed
from penstock.schemas.events import Op, Subscription
from penstock.schemas.rpc import StandingReply

PEOPLE = tuple(Subscription(subscription_id=f"s{n}", version=1, person_id="ann", text="nurse") for n in range(3))


class System:
    """The broker and a shard: what is on the topic is in force, unless `deaf`."""

    def __init__(self, deaf=False):
        self.queued, self.topic, self.said, self.deaf, self.away = [], [], [], deaf, False

    def publish(self, topic, record):
        self.queued.append(record)

    def flush(self, timeout=300.0):
        if self.away:
            raise PublishFailed("no answer")
        self.topic += self.queued
        self.queued = []

    def standing(self, request, timeout):
        newest = {one.subscription_id: one for one in self.topic}
        held = tuple(not self.deaf and newest[name].op is Op.UPSERT for name in request.subscription_ids)
        return StandingReply(versions=(1,) * len(held), in_force=held)

    def left(self):
        newest = {one.subscription_id: one for one in self.topic}
        return [name for name, one in newest.items() if one.op is Op.UPSERT]

    def subscribed(self, people=PEOPLE):
        return subscribed(people, self, self, self.said.append)


@pytest.mark.parametrize("end", [None, KeyboardInterrupt, RuntimeError])
def test_they_are_in_force_within_and_gone_afterwards(end):
    system = System()
    try:
        with system.subscribed():
            assert len(system.left()) == 3
            if end is not None:
                raise end
    except (KeyboardInterrupt, RuntimeError):
        assert end is not None
    assert system.left() == [] and len(system.topic) == 6


def test_those_who_never_came_into_force_are_withdrawn_too(monkeypatch):
    monkeypatch.setattr(subscribed_module, "IN_FORCE_PATIENCE_S", 0.0)
    system = System(deaf=True)
    with pytest.raises(NothingGetsThrough, match="3 of 3"), system.subscribed():
        pytest.fail("nobody is in force")
    assert system.left() == [] and len(system.topic) == 6


def test_a_broker_that_is_away_hides_no_error_and_is_told():
    system = System()
    with pytest.raises(RuntimeError, match="the run's own"), system.subscribed():
        system.away = True
        raise RuntimeError("the run's own")
    assert "may be left" in system.said[-1]


def test_nobody_is_nothing_to_do():
    system = System()
    with system.subscribed(()):
        pass
    assert system.topic == system.queued == system.said == []
