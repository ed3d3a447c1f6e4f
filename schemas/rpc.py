"""What the roles say to each other over gRPC: the same records, codecs and framing as the topics.

A call is /penstock.<Service>/<Method> with one record each way, or a stream of them each way. A server must know a
caller's schema, so in a rolling upgrade servers go first. Why Avro and not protobuf here:
docs/decisions/0003-avro-over-grpc.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from penstock.schemas.events import (
    Enrichment,
    Filter,
    IndexUpdate,
    Match,
    MinVersion,
    PostingText,
    QueryVector,
    RankRequest,
    RankResult,
    StandingQuery,
    Understood,
)
from penstock.schemas.records import Millis, Symbol


@dataclass(frozen=True, slots=True)
class Method:
    """One call of a service. `streaming`: many requests and many replies, each sent as soon as its side has it."""

    service: str
    name: str
    request: type
    reply: type
    streaming: bool = False

    @property
    def path(self) -> str:
        return f"/penstock.{self.service}/{self.name}"


# --- common ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusRequest:
    """Is this role at work, and how fresh is it?"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleStatus:
    """A role's own account of itself, from real work and not from a clock."""

    role: str
    ready: bool
    reason: Annotated[str, "why it is not ready; empty when it is"] = ""
    numbers: Annotated[Mapping[str, float], "rows, lag_seconds, queue_depth, …: units in the name"]
    texts: Annotated[Mapping[str, str], "encoder_id, epoch, …"]


# --- models ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrichPostingsRequest:
    postings: tuple[PostingText, ...]
    refine: Annotated[bool, "False: the fast lane's table; True: the transformer, same space"] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrichPostingsReply:
    enrichments: Annotated[tuple[Enrichment, ...], "one a posting, in order"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnalyzeQueriesRequest:
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryAnalysis:
    vector: Annotated[QueryVector | None, "null: this text could not be encoded"] = None
    understood: tuple[Understood, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AnalyzeQueriesReply:
    analyses: Annotated[tuple[QueryAnalysis, ...], "one a text, in order"]


# --- retrieval -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRequest:
    """Exact filtered top k."""

    tenant: str = "default"
    vector: Annotated[QueryVector | None, "null: `words` decide; without those newest first, every score 0"] = None
    words: Annotated[str | None, "without a vector: the shard makes the lexical part of these words itself"] = None
    filters: Filter | None = None
    k: int = 10
    at_epoch: Annotated[int | None, "read this epoch while it is still held; null: the newest"] = None
    min_version: MinVersion | None = None
    timeout_ms: Annotated[int, "how long min_version may wait"] = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    posting_id: str
    version: int
    revision: int
    score: Annotated[float, "dense + lexical, float64 on the stored values"]
    dense: float
    lexical: float
    recency: Annotated[Millis, "posted_at, or produced_at without one: orders a search that has no vector"] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchReply:
    hits: Annotated[
        tuple[Hit, ...], "best first; without a vector newest first; ties by the id's stable hash, smallest first"
    ] = ()
    total: Annotated[int, "postings that passed the filters"] = 0
    epoch: int = 0
    shard: str = ""
    degraded: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GetRequest:
    tenant: Annotated[str | None, "whose postings; those of others are ABSENT; null: any"] = None
    posting_ids: tuple[str, ...]
    min_version: MinVersion | None = None
    timeout_ms: int = 1000


class RowState(Symbol):
    UNKNOWN = "UNKNOWN"
    ABSENT = "ABSENT"
    LIVE = "LIVE"
    DELETED = "DELETED"
    EXPIRED = "EXPIRED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What a shard holds of one posting."""

    posting_id: str
    state: RowState
    update: Annotated[IndexUpdate | None, "the newest accepted update; null when ABSENT"] = None
    searchable_at: Annotated[Millis | None, "when the epoch that made this version visible was published"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GetReply:
    rows: Annotated[tuple[Row, ...], "one an id, in order"]
    shard: str = ""
    degraded: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldsRequest:
    """Which of these clauses name a value that some live posting has?"""

    tenant: str = "default"
    clauses: tuple[Filter, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldsReply:
    held: Annotated[tuple[bool, ...], "one a clause, in order"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainRequest:
    """What does this filter do to the tenant's live postings, clause by clause?"""

    tenant: str = "default"
    filters: Filter


@dataclass(frozen=True, slots=True, kw_only=True)
class ClauseEffect:
    clause: Annotated[str, "in the text form, with the NOTs above it folded in"]
    passed: Annotated[int, "live postings that this clause alone lets through"]
    missing: Annotated[int, "live postings that lack the attribute"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainReply:
    filter: Annotated[str, "the whole tree in the text form"]
    postings: Annotated[int, "live postings of the tenant"] = 0
    passed: Annotated[int, "of them, those that the whole tree lets through"] = 0
    clauses: tuple[ClauseEffect, ...] = ()
    shard: str = ""
    degraded: tuple[str, ...] = ()
    plan: Annotated[tuple[str, ...], "what each shard would read for a search with it, and why"] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PercolateRequest:
    """Which standing queries do these postings satisfy? Only live UPSERTs can satisfy any."""

    updates: tuple[IndexUpdate, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Matches:
    matches: Annotated[tuple[Match, ...], "by subscription_id"] = ()
    queries: Annotated[
        tuple[StandingQuery, ...], "those of `matches` with a min_score, for the ranker; their order is that of matches"
    ] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PercolateReply:
    found: Annotated[
        tuple[Matches, ...], "one an update, in order; of the first ones only where a reply could not hold more"
    ]
    shard: str = ""
    epoch: Annotated[int, "of the standing queries"] = 0
    degraded: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StandingRequest:
    """Which version of these subscriptions do new postings meet?"""

    tenant: str = "default"
    subscription_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StandingReply:
    versions: Annotated[tuple[int, ...], "one an id, in order: the newest heard of, deletions included; -1: none"]
    in_force: Annotated[tuple[bool, ...], "one an id: whether it is percolated"]
    shard: str = ""


# --- the services ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Models:
    ENRICH = Method("Models", "EnrichPostings", EnrichPostingsRequest, EnrichPostingsReply)
    ANALYZE = Method("Models", "AnalyzeQueries", AnalyzeQueriesRequest, AnalyzeQueriesReply)
    STATUS = Method("Models", "Status", StatusRequest, RoleStatus)


@dataclass(frozen=True, slots=True)
class Retrieval:
    SEARCH = Method("Retrieval", "Search", SearchRequest, SearchReply)
    GET = Method("Retrieval", "Get", GetRequest, GetReply)
    HOLDS = Method("Retrieval", "Holds", HoldsRequest, HoldsReply)
    EXPLAIN = Method("Retrieval", "Explain", ExplainRequest, ExplainReply)
    PERCOLATE = Method("Retrieval", "Percolate", PercolateRequest, PercolateReply)
    STANDING = Method("Retrieval", "Standing", StandingRequest, StandingReply)
    STATUS = Method("Retrieval", "Status", StatusRequest, RoleStatus)


@dataclass(frozen=True, slots=True)
class Ranker:
    RANK = Method("Ranker", "Rank", RankRequest, RankResult)
    # A result for each request, in the order in which they are done: request_id and tenant say whose it is.
    RANK_STREAM = Method("Ranker", "RankStream", RankRequest, RankResult, streaming=True)
    STATUS = Method("Ranker", "Status", StatusRequest, RoleStatus)


@dataclass(frozen=True, slots=True)
class EnrichWorkers:
    STATUS = Method("EnrichWorkers", "Status", StatusRequest, RoleStatus)
