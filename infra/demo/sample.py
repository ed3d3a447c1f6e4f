"""What the demo replays: the shipped sample with its dates moved to now, or anyone's JSON Lines.

A line that is no record is told with its number and left out; a record that breaks a rule stays in, since refusing it
is the pipeline's job and the accounting's business.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from penstock.schemas import filters, jsonl
from penstock.schemas.errors import InvalidRecord, MalformedRecord, OversizedRecord
from penstock.schemas.events import Filter, Posting
from penstock.schemas.validate import MAX_QUERY_BYTES, check_id, check_text
from penstock.schemas.wire import codec

T = TypeVar("T")

REFERENCE_MS = 1_767_225_600_000  # 2026-01-01T00:00:00Z: the "now" of the shipped sample's dates

# A place, remote and pay: what the example searches show being understood. The first is one of the sample's queries.
EXAMPLES = (
    "psychologist managing a mental health program in Florida, GS-14",
    "remote accountant or budget analyst",
    "registered nurse paying at least $80,000 a year, not part-time",
)


class BadInput(Exception):
    """A file cannot be replayed: says which, why and what to do."""


@dataclass(frozen=True, slots=True)
class Query:
    """One line of a queries file."""

    query_id: str
    text: str
    filters: Filter | None = None


@dataclass(frozen=True, slots=True)
class Lines:
    """Records of a file, and what was wrong with the other lines (`FILE:12: title: got …`)."""

    postings: tuple[Posting, ...]
    refused: tuple[str, ...] = ()


def shipped_postings(now_ms: int) -> Lines:
    """The sample, posted and expiring around `now_ms` as it was around REFERENCE_MS.

    Versions are the producer's clock, so that a second replay into the same stack supersedes the first.
    """
    shift = now_ms - REFERENCE_MS
    data = resources.files("penstock.infra.demo") / "data" / "postings.jsonl.gz"
    lines = gzip.decompress(data.read_bytes()).splitlines()
    return Lines(tuple(_moved(jsonl.loads(Posting, line), now_ms, shift) for line in lines))


def _moved(posting: Posting, version: int, shift: int) -> Posting:
    return replace(
        posting,
        version=version,
        posted_at=None if posting.posted_at is None else posting.posted_at + shift,
        expires_at=None if posting.expires_at is None else posting.expires_at + shift,
    )


def shipped_queries() -> tuple[Query, ...]:
    data = resources.files("penstock.infra.demo") / "data" / "queries.jsonl"
    return tuple(_query(json.loads(line)) for line in data.read_text(encoding="utf-8").splitlines())


def read_postings(path: Path) -> Lines:
    """Anyone's postings, as they stand. Raises BadInput when the file cannot be read or holds none."""
    postings, refused = [], []
    for number, item in _opened(path, jsonl.read_file(Posting, path)):
        if isinstance(item, Posting):
            try:
                codec(Posting).encode(item)
                postings.append(item)
                continue
            except (InvalidRecord, OversizedRecord) as error:
                item = MalformedRecord(str(error))
        refused.append(f"{path}:{number}: {item}")
    if not postings:
        why = refused[0] if refused else f"{path} is empty"
        raise BadInput(f"no posting to replay: {why}")
    return Lines(tuple(postings), tuple(refused))


def read_queries(path: Path) -> tuple[Query, ...]:
    """Anyone's queries: query_id (or request_id), text (or query), filters? a line. Raises BadInput naming the line."""
    out: dict[str, Query] = {}
    for number, line in enumerate(_opened(path, _lines(path)), 1):
        if not line.strip():
            continue
        try:
            query = _query(json.loads(line))
        except (ValueError, InvalidRecord) as error:
            raise BadInput(f"{path}:{number}: {error}") from error
        if query.query_id in out:
            raise BadInput(f"{path}:{number}: query_id {query.query_id!r} is there twice; each must be its own")
        out[query.query_id] = query
    if not out:
        raise BadInput(f"{path} holds no query; a line is like {{'query_id': 'q1', 'text': 'night nurse in Ohio'}}")
    return tuple(out.values())


def _query(given: Any) -> Query:
    if not isinstance(given, dict):
        raise InvalidRecord("query", given, "an object with query_id, text and perhaps filters")
    query_id = given.get("query_id", given.get("request_id"))
    text = given.get("text", given.get("query"))
    if not isinstance(query_id, str):
        raise InvalidRecord("query_id", query_id, "text")
    if not isinstance(text, str):
        raise InvalidRecord("text", text, "the query's words")
    # Room for the run's mark in front of it: the request id on the wire is bounded.
    check_id("query_id", query_id.rjust(32))
    check_text("text", text, MAX_QUERY_BYTES)
    tree = _filters(given.get("filters"))
    if not text.strip() and tree is None:
        raise InvalidRecord("text", text, "words, filters or both")
    return Query(query_id, text, tree)


def _filters(given: Any) -> Filter | None:
    """A tree as on the wire, or a list of clauses in the text form."""
    if given is None:
        return None
    if isinstance(given, list) and all(isinstance(clause, str) for clause in given):
        return filters.all_of(*(filters.parse(clause) for clause in given))
    tree = jsonl.from_json(Filter, given, path="filters")
    filters.check(tree)
    return tree


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as lines:
        yield from lines


def _opened(path: Path, items: Iterator[T]) -> Iterator[T]:
    """`items`, an unreadable file being a BadInput."""
    try:
        yield from items
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not UTF-8 text: {error}") from error
