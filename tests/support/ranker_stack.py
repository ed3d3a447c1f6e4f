"""The ranker's role on a thread: real listener, real Redis, the shipped scorer; models and retrieval on listeners of
their own, over a shelf in memory. Kafka is away.
"""

import threading
import time

import numpy as np
from shelf_in_memory import Shelf

from penstock.infra.settings import KafkaSettings, ModelsSettings, RankerSettings, RedisSettings, RetrievalSettings
from penstock.infra.settings import Settings as AllSettings
from penstock.ranker import server
from penstock.ranker.client import RankerClient
from penstock.schemas import grpc_avro
from penstock.schemas.events import Attributes, IndexOp, IndexUpdate, QueryVector, RankQuery, RankRequest
from penstock.schemas.grpc_avro import CallError
from penstock.schemas.rpc import AnalyzeQueriesReply, Models, QueryAnalysis, Retrieval, RoleStatus

VECTOR = QueryVector(space_id="s", encoder_id="e", dense=np.array([1, 0], "<f4").tobytes())


def posting(name, title):
    return IndexUpdate(posting_id=name, version=1, op=IndexOp.UPSERT, attributes=Attributes(title=title), produced_at=1)


def ready(role):
    return lambda request, context: RoleStatus(role=role, ready=True, numbers={}, texts={})


class Stack:
    """The role on a thread, with what it needs around it. While `hold` is clear, searches for the `held` words wait."""

    def __init__(self, redis_url, free_port, held=None, **ranker):
        self.shelf, self.hold, self._held = Shelf(), threading.Event(), held
        self.hold.set()
        self.entered = threading.Semaphore(0)
        for number, title in enumerate(["Registered Nurse", "Nurse Manager", "Welder"]):
            self.shelf.put(posting(f"p{number}", title), np.array([0.6 - number / 5, 0.0]))
        addresses = [f"127.0.0.1:{free_port()}" for _ in range(3)]
        self.models = grpc_avro.serve(addresses[0], {Models.ANALYZE: self._analyze, Models.STATUS: ready("models")})
        self.retrieval = grpc_avro.serve(
            addresses[1],
            {
                Retrieval.SEARCH: lambda request, context: self.shelf.search(request, 1),
                Retrieval.GET: lambda request, context: self.shelf.get(request, 1),
                Retrieval.HOLDS: lambda request, context: self.shelf.holds(request, 1),
                Retrieval.STATUS: ready("retrieval"),
            },
        )
        self.settings = AllSettings(
            kafka=KafkaSettings(bootstrap_servers=f"127.0.0.1:{free_port()}"),
            redis=RedisSettings(url=redis_url),
            models=ModelsSettings(listen=addresses[0]),
            retrieval=RetrievalSettings(listen=addresses[1]),
            ranker=RankerSettings(listen=addresses[2], **ranker),
        )
        self.client = RankerClient(addresses[2])
        self.stop = threading.Event()
        self.thread = threading.Thread(target=server.serve, args=(self.settings, self.stop))

    def _analyze(self, request, context):
        self.entered.release()
        assert self._held not in (None, *request.texts) or self.hold.wait(30)
        return AnalyzeQueriesReply(analyses=tuple(QueryAnalysis(vector=VECTOR) for _ in request.texts))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.hold.set()
        self.stop.set()
        self.thread.join(30)
        self.client.close()
        for listener in (self.models, self.retrieval):
            listener.stop(0).wait(10)
        assert not self.thread.is_alive()


def ask(name="r", text="registered nurse", **changes):
    changes = {"deadline": time.time_ns() // 1_000_000 + 20_000, **changes}
    return RankRequest(request_id=name, query=RankQuery(text=text), **changes)


def status(stack):
    """What the role says of itself; None while nobody answers."""
    try:
        return stack.client.status(5)
    except CallError:
        return None
