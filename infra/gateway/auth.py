"""Whose request this is. With keys configured the key says it; without, the header X-Tenant or nobody's: "default"."""

from __future__ import annotations

import hmac
from collections.abc import Mapping

from penstock.infra.gateway.errors import Problem
from penstock.schemas.errors import InvalidRecord
from penstock.schemas.validate import check_id

DEFAULT_TENANT = "default"


def decide_tenant(keys: Mapping[str, str], headers: Mapping[str, str]) -> str:
    """The tenant. `keys`: tenant -> key; header names in lower case. Raises Problem (401, 422).

    Every key is compared, each in constant time: how long it takes says nothing of how close a guess was.
    """
    if not keys:
        tenant = headers.get("x-tenant", DEFAULT_TENANT)
        try:
            check_id("X-Tenant", tenant)
        except InvalidRecord as error:
            raise Problem(422, str(error), field="X-Tenant", given=tenant, expected=error.expected) from error
        return tenant
    given = _given_key(headers)
    if given is None:
        raise Problem(401, "an API key is needed: header Authorization: Bearer KEY, or X-Api-Key: KEY")
    found = [
        tenant for tenant, key in keys.items() if hmac.compare_digest(given.encode(), key.encode())
    ]  # all of them, always
    if not found:
        raise Problem(401, "this API key is not known here")
    tenant = found[0]
    named = headers.get("x-tenant")
    if named is not None and named != tenant:
        raise Problem(403, "this API key is of another tenant", field="X-Tenant", given=named)
    return tenant


def _given_key(headers: Mapping[str, str]) -> str | None:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return headers.get("x-api-key") or None
