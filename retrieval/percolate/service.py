"""Percolation behind gRPC: which standing queries do postings satisfy, and which subscriptions are in force."""

from __future__ import annotations

import threading
import time

import grpc
import torch

from penstock.infra.telemetry import DEGRADED, STAGE_SECONDS
from penstock.retrieval.percolate.store import StandingCounts, StandingQueries
from penstock.retrieval.shard import Shard, answering
from penstock.schemas.errors import InvalidRecord
from penstock.schemas.events import StandingQuery
from penstock.schemas.rpc import PercolateReply, PercolateRequest, StandingReply, StandingRequest

MAX_UPDATES = 256
MAX_IDS = 10_000

StandingShard = Shard[StandingQuery, StandingQueries, StandingCounts]

OTHER_SPACE = "some standing queries have a vector of another space than these postings and could not match"
NO_VECTOR = "some postings have a vector that cannot be used and met standing queries without one only"
BARE_QUERIES = "too many matches of one posting: their queries come without vectors"


class PercolationService:
    """The calls. Called from gRPC's threads; `scans` are the places that it shares with searches."""

    def __init__(self, shard: StandingShard, name: str, scans: threading.BoundedSemaphore, threads: int) -> None:
        self._shard = shard
        self._name = name
        self._scans = scans
        self._threads = threads

    def percolate(self, request: PercolateRequest, _context: grpc.ServicerContext) -> PercolateReply:
        if len(request.updates) > MAX_UPDATES:
            raise InvalidRecord("updates", f"{len(request.updates)} updates", f"at most {MAX_UPDATES} a call")
        store, degraded = answering(self._shard, self._name)
        began = time.perf_counter()
        with self._scans:
            torch.set_num_threads(self._threads)  # a thread begun beside a scan has that scan's: one
            result, epoch = store.percolate(request.updates, now_ms=time.time_ns() // 1_000_000)
        STAGE_SECONDS.labels("retrieval", "percolate").observe(time.perf_counter() - began)
        for count, what in (
            (result.other_space, OTHER_SPACE),
            (result.vectors_refused, NO_VECTOR),
            (result.without_vector, BARE_QUERIES),
        ):
            if count:
                DEGRADED.labels("retrieval", what).inc(count)
                degraded.append(what)
        for why, count in result.on_host.items():
            DEGRADED.labels("retrieval", why).inc(count)  # nothing is missing: whoever asked need not know
        return PercolateReply(found=result.found, shard=self._name, epoch=epoch, degraded=tuple(degraded))

    def standing(self, request: StandingRequest, _context: grpc.ServicerContext) -> StandingReply:
        if len(request.subscription_ids) > MAX_IDS:
            raise InvalidRecord("subscription_ids", f"{len(request.subscription_ids)} ids", f"at most {MAX_IDS} a call")
        store, _ = answering(self._shard, self._name)
        told = store.standing(request.subscription_ids, tenant=request.tenant)
        return StandingReply(
            versions=tuple(version for version, _ in told),
            in_force=tuple(in_force for _, in_force in told),
            shard=self._name,
        )

    def numbers(self) -> dict[str, float]:
        """For the role's status."""
        view = self._shard.view
        return {
            "standing_queries": view.counts.live,
            "standing_tombstones": view.counts.tombstones,
            "standing_without_vector": view.counts.without_vector,
            "standing_trees": view.counts.trees,
            "standing_stale_records": view.counts.stale,
            "standing_refused": view.refused,
            "standing_lag_offsets": view.lag.offsets,
            "standing_lag_seconds": view.lag.seconds,
            "standing_memory_bytes": view.counts.nbytes,
            "standing_device_bytes": view.counts.bytes_device,
        }

    def texts(self) -> dict[str, str]:
        """Likewise."""
        view = self._shard.view
        return {
            "standing_epoch": str(self._shard.store.epoch),
            "standing_snapshot": view.snapshot,
            "standing_last_refusal": view.last_refusal,
            "standing_problems": "; ".join(view.problems),
        }
