"""Any error as one sentence and an exit code. Imported only when something has gone wrong."""

from __future__ import annotations

import grpc

from penstock.infra.kafka_clients import BrokerUnreachable
from penstock.infra.locate import configured_elsewhere, stack_runs
from penstock.infra.settings import SettingsError, data_dir
from penstock.schemas.errors import InvalidRecord
from penstock.schemas.grpc_avro import CallError

FAILURE = 1
WRONG_ARGUMENT = 2


def explain(error: Exception) -> tuple[str, int]:
    """(one sentence for stderr, exit code). What is not one of our own errors is named by its type."""
    if isinstance(error, SettingsError | InvalidRecord):
        return str(error), WRONG_ARGUMENT
    if isinstance(error, BrokerUnreachable):
        return unreachable(str(error)), FAILURE
    if isinstance(error, CallError):
        if error.code is grpc.StatusCode.UNAVAILABLE:
            return unreachable(str(error)), FAILURE
        if error.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return refused(error), FAILURE
        # The server refused the request itself: its message names the field.
        return str(error), WRONG_ARGUMENT if error.code is grpc.StatusCode.INVALID_ARGUMENT else FAILURE
    if isinstance(error, OSError):
        return _operating_system(error), FAILURE
    if type(error).__module__.startswith("penstock."):
        return str(error), FAILURE
    return (
        f"unexpected {type(error).__name__}: {error} (PENSTOCK_DEBUG=1 shows where; please report it)",
        FAILURE,
    )


def refused(error: CallError) -> str:
    """What to tell when a role has more to do than it can."""
    role = error.method.service.lower()
    if error.retry_after_s is None:
        return f"the {role} is busy: {error.said}"
    whose = "this tenant asks more than its share of it; " if error.refused_for == "tenant" else ""
    return f"the {role} is busy: {whose}try again in {error.retry_after_s:.1f} s ({error.said})"


def unreachable(what: str) -> str:
    """What to tell when something does not answer: no stack here, a stack that is ill, or somebody's own system."""
    if configured_elsewhere():
        return what
    directory = data_dir()
    if not stack_runs(directory):
        return f"no stack is running in {directory}: start one with `penstock up`"
    return f"{what}; `penstock status` says what is wrong with the stack in {directory}, `penstock up` heals it"


def _operating_system(error: OSError) -> str:
    where = f" {error.filename}" if error.filename else ""
    return f"the system refused{where}: {error.strerror or error}"
