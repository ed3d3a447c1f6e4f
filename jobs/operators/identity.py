"""Names made of content, never of processing order: replays give the same ones."""

from __future__ import annotations

import hashlib


def content_id(kind: str, *parts: str) -> str:
    """32 hex digits. Lengths are hashed too, so that no two lists of parts run together. `kind`: at most 16 bytes."""
    digest = hashlib.blake2b(digest_size=16, person=kind.encode())
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def person_key(tenant: str, person_id: str) -> str:
    """A person's key, which no other tenant's person has, whatever is in the names."""
    return f"{len(tenant)}/{tenant}/{person_id}"
