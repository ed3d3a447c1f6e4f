"""What the demo replays: the shipped sample with its dates moved to now, or anyone's JSON Lines.

A line that is no record is told with its number and left out; a record that breaks a rule stays in, since refusing it
is the pipeline's job and the accounting's business.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from penstock.infra.settings import SettingsError
from penstock.schemas import filters, jsonl
from penstock.schemas.errors import InvalidRecord, MalformedRecord, OversizedRecord
from penstock.schemas.events import Filter, Posting, SearchQuery
from penstock.schemas.validate import MAX_ID_BYTES, check_query
from penstock.schemas.wire import codec

T = TypeVar("T")

DEFAULT_TENANT = "default"
QUERY_DEADLINE_MS = 10_000  # of a query that names none
REFERENCE_MS = 1_767_225_600_000  # 2026-01-01T00:00:00Z: the "now" of the shipped sample's dates

# A place, remote and pay: what the example searches show being understood. The first is one of the sample's queries.
EXAMPLES = (
    "psychologist managing a mental health program in Florida, GS-14",
    "remote accountant or budget analyst",
    "registered nurse paying at least $80,000 a year, not part-time",
)


class BadInput(Exception):
    """A file cannot be replayed: says which, why and what to do."""


class SeveralTenants(SettingsError):
    """Nobody can tell whose postings the queries are about."""


@dataclass(frozen=True, slots=True)
class Query:
    """One line of a queries file. `event` is the whole of it; the request id on the wire gets the run's mark before."""

    query_id: str
    event: SearchQuery


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


def query(query_id: str, text: str, tenant: str = DEFAULT_TENANT) -> Query:
    """A query of words alone."""
    return Query(query_id, SearchQuery(request_id=query_id, tenant=tenant, text=text, deadline_ms=QUERY_DEADLINE_MS))


def tenant_of(postings: Sequence[Posting], named: str | None) -> str:
    """The tenant whose postings the queries are about: `named`, else the one that all postings have.

    Raises SeveralTenants.
    """
    if named is not None:
        return named
    tenants = sorted({posting.tenant for posting in postings})
    if len(tenants) > 1:
        shown = ", ".join(tenants[:5]) + (", …" if len(tenants) > 5 else "")
        raise SeveralTenants(
            f"the postings are of {len(tenants)} tenants ({shown}): say with --tenant whose the queries are"
        )
    return tenants[0] if tenants else DEFAULT_TENANT


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


def read_queries(path: Path, tenant: str = DEFAULT_TENANT) -> tuple[Query, ...]:
    """Anyone's queries, a SearchQuery a line; query_id (or request_id) and text (or query) must be there.

    A query that names no tenant is `tenant`'s. Raises BadInput naming the line and the field.
    """
    out: dict[str, Query] = {}
    for number, line in enumerate(_opened(path, _lines(path)), 1):
        if not line.strip():
            continue
        try:
            read = _query(json.loads(line), tenant)
        except (ValueError, RecursionError, InvalidRecord) as error:
            raise BadInput(f"{path}:{number}: {error}") from error
        if read.query_id in out:
            raise BadInput(f"{path}:{number}: query_id {read.query_id!r} is there twice; each must be its own")
        out[read.query_id] = read
    if not out:
        raise BadInput(f"{path} holds no query; a line is like {{'query_id': 'q1', 'text': 'night nurse in Ohio'}}")
    return tuple(out.values())


ALIASES = (("query_id", "request_id"), ("query", "text"))  # (as evaluations call it, as the record does)
RUN_MARK_BYTES = 64  # room for the run's mark around an id: the request id on the wire is bounded


def _query(given: Any, tenant: str = DEFAULT_TENANT) -> Query:
    """The query of a line's JSON. Nothing is left out silently: a field that is not known is an InvalidRecord."""
    if not isinstance(given, dict):
        raise InvalidRecord("query", given, "an object with query_id, text and perhaps filters")
    plain = {"tenant": tenant, "deadline_ms": QUERY_DEADLINE_MS} | given
    for alias, name in ALIASES:
        if alias in plain and name in plain:
            raise InvalidRecord(alias, given[alias], f"either {alias} or {name}: they are the same field")
        if alias in plain:
            plain[name] = plain.pop(alias)
    for names, name in (("query_id", "request_id"), ("text", "text")):
        if not isinstance(plain.get(name), str):
            raise InvalidRecord(names, plain.get(name), "text")
    tree = _filters(plain.pop("filters", None))
    event = replace(jsonl.from_json(SearchQuery, plain, path="", on_unknown=_refuse_symbol), filters=tree)
    check_query(event)
    size, most = len(event.request_id.encode()), MAX_ID_BYTES - RUN_MARK_BYTES
    if size > most:
        raise InvalidRecord("query_id", event.request_id, f"at most {most} bytes (this one has {size})")
    return Query(event.request_id, event)


def _refuse_symbol(name: str, symbol: str) -> None:
    raise InvalidRecord(name, symbol, "a symbol that is known here")


def _filters(given: Any) -> Filter | None:
    """A tree as on the wire, or a list of clauses in the text form."""
    if given is None:
        return None
    if isinstance(given, list) and all(isinstance(clause, str) for clause in given):
        return filters.all_of(*(filters.parse(clause) for clause in given))
    tree = jsonl.from_json(Filter, given, path="filters", on_unknown=_refuse_symbol)
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
