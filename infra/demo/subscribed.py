"""People who want alerts while the demo runs: in force before the first event, withdrawn however the run ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from penstock.infra.demo import standing
from penstock.infra.kafka_clients import KafkaTrouble, Publisher
from penstock.retrieval.client import RetrievalClient
from penstock.schemas.events import Subscription
from penstock.schemas.grpc_avro import CallError
from penstock.schemas.rpc import StandingRequest
from penstock.schemas.topics import SUBSCRIPTIONS

IN_FORCE_PATIENCE_S = 120.0
LEAVE_S = 15.0  # for the withdrawals to reach the broker


class NothingGetsThrough(Exception):
    """The system is up, and yet no posting becomes searchable, or no subscription comes into force."""


@contextmanager
def subscribed(
    people: Sequence[Subscription], publisher: Publisher, retrieval: RetrievalClient, tell: Callable[[str], None]
) -> Iterator[None]:
    """Within it postings meet every subscription of `people`. Raises NothingGetsThrough.

    A system that somebody runs must not go on alerting a demo's people: they are withdrawn after Ctrl-C and errors too.
    """
    if not people:
        yield
        return
    try:
        _come_into_force(people, publisher, retrieval, tell)
        yield
    finally:
        for removal in standing.removals(people):
            publisher.publish(SUBSCRIPTIONS, removal)
        try:
            publisher.flush(LEAVE_S)
        except KafkaTrouble as error:
            tell(f"subscriptions {people[0].subscription_id} and those after it may be left: {error}")


def _come_into_force(
    people: Sequence[Subscription], publisher: Publisher, retrieval: RetrievalClient, tell: Callable[[str], None]
) -> None:
    tell(f"waiting for {len(people)} subscriptions to be in force")
    for one in people:
        publisher.publish(SUBSCRIPTIONS, one)
    publisher.flush()
    wanted = StandingRequest(tenant=people[0].tenant, subscription_ids=tuple(one.subscription_id for one in people))
    deadline = time.monotonic() + IN_FORCE_PATIENCE_S
    in_force, trouble = 0, ""
    while in_force < len(people):
        if time.monotonic() > deadline:
            raise NothingGetsThrough(
                f"{len(people) - in_force} of {len(people)} subscriptions were not in force within "
                f"{IN_FORCE_PATIENCE_S:.0f} s: `penstock status` and `penstock logs alerts` say more{trouble}"
            )
        try:
            in_force = sum(retrieval.standing(wanted, timeout=10.0).in_force)
        except CallError as error:
            trouble = f" ({error})"
        time.sleep(0.1)
