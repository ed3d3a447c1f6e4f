"""Who caused this: a request's W3C traceparent, the caller's own or a new one."""

from __future__ import annotations

import re
import secrets

_FORM = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
MAX_LENGTH = 512
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


def traceparent(given: str | None) -> str:
    """What was given if it is well-formed; otherwise the root of a new trace, as the standard wants it."""
    if given is not None and len(given) <= MAX_LENGTH and _FORM.fullmatch(given):
        return given
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"


def request_id(given: str | None) -> str:
    """The caller's X-Request-Id if it is printable and short; otherwise a new one."""
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given
    return f"http-{secrets.token_hex(12)}"
