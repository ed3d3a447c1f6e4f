"""The retrieval role's service without Kafka: on a store given, or in a process of its own that is fed over a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any

import grpc
import torch

from benchmarks.processes import beside, free_port, leave
from penstock.infra.local.config import ROLE_ENVIRONMENT
from penstock.infra.settings import RetrievalSettings
from penstock.retrieval.batching import Limits
from penstock.retrieval.percolate.store import StandingQueries
from penstock.retrieval.server import SWITCH_S, WORKERS, RetrievalService, limits_of, now_ms
from penstock.retrieval.store.store import Store
from penstock.schemas import grpc_avro
from penstock.schemas.events import IndexUpdate
from penstock.schemas.grpc_avro import Handler
from penstock.schemas.rpc import Method, Retrieval


def listen(store: Store, name: str, limits: Limits) -> tuple[str, grpc.Server]:
    """The address at which `store` is searched and read, and the listener, which ends when nobody holds it."""
    shard: Any = SimpleNamespace(
        store=store, not_ready=lambda: "", may_answer=lambda: True, view=SimpleNamespace(counts=store.counts())
    )
    standing: Any = SimpleNamespace(store=StandingQueries(), not_ready=lambda: "", may_answer=lambda: True)
    service = RetrievalService(shard, standing, name, 1, limits=limits)
    address = f"127.0.0.1:{free_port()}"
    handlers: dict[Method, Handler] = {
        Retrieval.SEARCH: service.search,
        Retrieval.GET: service.get,
        Retrieval.HOLDS: service.holds,
    }
    return address, grpc_avro.serve(address, handlers, workers=WORKERS + limits.max_waiting + limits.max_batch)


class Index:
    """A retrieval service in another process, empty at first."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self.address: str = pipe.recv()

    def apply(self, updates: Sequence[IndexUpdate]) -> None:
        """Returns when searches find them. Raises RuntimeError where one was refused."""
        self._pipe.send(updates)
        if refused := self._pipe.recv():
            raise RuntimeError(f"{len(refused)} of {len(updates)} updates were refused, the first with {refused[0]}")


@contextmanager
def index_beside(rows: int) -> Iterator[Index]:
    with beside(_follow, rows, environment=ROLE_ENVIRONMENT) as (pipe, _):
        yield Index(pipe)


def _follow(rows: int, pipe: Connection) -> None:
    """The process: sends its address, then applies what comes and sends what was refused of it."""
    torch.set_num_threads(1)
    sys.setswitchinterval(SWITCH_S)  # as the role does
    settings = RetrievalSettings()
    store = Store(capacity=rows, hold_ms=settings.hold_epochs_ms)
    address, _listener = listen(store, settings.shard, limits_of(settings))
    pipe.send(address)
    try:
        while True:
            applied = store.apply(pipe.recv(), now_ms=now_ms())
            pipe.send([str(refusal.error) for refusal in applied.refused])
    except EOFError:
        leave(pipe)
