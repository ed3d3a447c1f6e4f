"""Waits until somebody answers, so that what follows does not meet a connection that is still being made."""

import time

from penstock.schemas.grpc_avro import CallError
from penstock.schemas.rpc import Ranker, RoleStatus

STATUS = {Ranker.STATUS: lambda request, context: RoleStatus(role="ranker", ready=True, numbers={}, texts={})}
WAIT_S = 20.0


def answered(call):
    """`call()`, as often as it takes."""
    give_up = time.monotonic() + WAIT_S
    while True:
        try:
            return call()
        except CallError:
            if time.monotonic() > give_up:
                raise


async def answered_on_a_loop(call):
    give_up = time.monotonic() + WAIT_S
    while True:
        try:
            return await call()
        except CallError:
            if time.monotonic() > give_up:
                raise
