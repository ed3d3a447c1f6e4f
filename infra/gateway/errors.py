"""Everything a caller may be told of trouble, in one shape: {"error": {field, given, expected, message, request_id}}.

422 the request breaks a rule, 404 nobody has that id, 409 somebody else does, 401 no good key, 413 too much, 429 the
caller's tenant asks more than its share while others wait, 503 a role is overloaded or a role or the broker is away,
504 the answer would be late, 500 our fault. 429 and 503 come with Retry-After, in whole seconds. What an exception says
of our insides (addresses, types, stacks) goes to the log and never to the caller.
"""

from __future__ import annotations

import math
import re

import grpc

from penstock.schemas.errors import InvalidRecord, WireError
from penstock.schemas.grpc_avro import CallError

RETRY_S = 1
MAX_SHOWN = 120  # characters of what was given
_SAID = re.compile(r"^(?P<field>[^:]{1,200}): got (?P<given>.*), expected (?P<expected>.*)$", re.DOTALL)


class Problem(Exception):
    """An answer that is not the one hoped for. `retry_s`: seconds after which asking again makes sense."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        field: str | None = None,
        given: object = None,
        expected: str | None = None,
        retry_s: int | None = None,
    ) -> None:
        self.status = status
        self.message = message
        self.field = field
        self.given = _shown(given)
        self.expected = expected
        self.retry_s = retry_s
        super().__init__(message)


def away(what: str, retry_s: int = RETRY_S) -> Problem:
    """503: `what` cannot be asked now."""
    return Problem(503, f"{what}; try again in {retry_s} s", retry_s=retry_s)


def not_found(what: str, posting_id: str) -> Problem:
    return Problem(404, f"there is no {what} with this id", field=f"{what}_id", given=posting_id)


def problem_of(error: Exception) -> Problem | None:
    """What a caller is told of an exception; None when it is nobody's business but ours."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, InvalidRecord):
        return _invalid(error.field, error.given, error.expected)
    if isinstance(error, WireError):
        return Problem(422, str(error))
    if isinstance(error, CallError):
        return _of_call(error)
    if isinstance(error, TimeoutError):
        return Problem(504, "no answer in time: give it longer (deadline_ms) or ask for less")
    return None


def _of_call(error: CallError) -> Problem:
    role = error.method.service.lower()
    if error.code is grpc.StatusCode.INVALID_ARGUMENT:
        match = _SAID.match(error.said)
        if match is None:
            return Problem(422, error.said)
        return _invalid(match["field"], match["given"].strip("'\""), match["expected"])
    if error.code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return Problem(504, f"the {role} did not answer in time: give it longer (deadline_ms) or ask for less")
    if error.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return _refused(role, error)
    return away(f"the {role} cannot be reached" if error.code is grpc.StatusCode.UNAVAILABLE else f"the {role} failed")


def _refused(role: str, error: CallError) -> Problem:
    """The role has more to do than it can: 429 where that is the tenant's own doing, else 503."""
    retry_s = RETRY_S if error.retry_after_s is None else max(RETRY_S, math.ceil(error.retry_after_s))
    if error.refused_for != "tenant":
        return away(f"the {role} is busy", retry_s)
    message = f"the {role} is busy, and your tenant asks more than its share of it; try again in {retry_s} s"
    return Problem(429, message, retry_s=retry_s)


def _invalid(field: str, given: object, expected: str) -> Problem:
    return Problem(
        422, f"{field}: got {_shown(given)!r}, expected {expected}", field=field, given=given, expected=expected
    )


def _shown(given: object) -> str | int | float | bool | None:
    """What was given as JSON can carry it, cut where it is long."""
    if given is None or (isinstance(given, bool | int | float) and given == given and abs(given) < 2**63):
        return given
    text = given if isinstance(given, str) else repr(given)
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}… ({len(text)} characters)"
