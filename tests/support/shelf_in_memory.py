"""Retrieval in memory for unit tests of its callers: a list of rows, exact search, epochs that can be given up.

Understands ALL, IN on posting_id, region and remote, with `missing`; anything else is refused loudly.
"""

from dataclasses import dataclass, field

import grpc
import numpy as np

from penstock.schemas.events import FilterKind, Missing
from penstock.schemas.grpc_avro import CallError
from penstock.schemas.rpc import GetReply, Hit, HoldsReply, Retrieval, Row, RowState, SearchReply
from penstock.schemas.text import stable_hash


@dataclass
class Shelf:
    """`rows` maps an id to (update, dense vector or None). Scores are inner products."""

    rows: dict = field(default_factory=dict)
    epoch: int = 1
    lost_epochs: set = field(default_factory=set)
    down: bool = False
    calls: list = field(default_factory=list)

    def put(self, update, dense=None):
        self.rows[update.posting_id] = (update, dense)

    def search(self, request, timeout):
        self._called("search", request, timeout)
        if request.at_epoch in self.lost_epochs:
            raise CallError(
                Retrieval.SEARCH, "shelf", grpc.StatusCode.INVALID_ARGUMENT, f"at_epoch: got {request.at_epoch}"
            )
        hits = []
        for update, dense in self.rows.values():
            if request.filters is not None and not passes(request.filters, update):
                continue
            score = 0.0
            if request.vector is not None:
                if dense is None:
                    continue
                score = float(np.frombuffer(request.vector.dense, "<f4") @ dense)
            elif request.words is not None:
                score = float(request.words in update.attributes.title)
            recency = update.attributes.posted_at or update.produced_at
            hits.append(Hit(
                posting_id=update.posting_id, version=update.version, revision=update.revision, score=score,
                dense=score if request.vector is not None else 0.0,
                lexical=score if request.vector is None else 0.0, recency=recency,
            ))  # fmt: skip
        by = (lambda h: -h.score) if request.vector is not None or request.words is not None else (lambda h: -h.recency)
        hits.sort(key=lambda h: (by(h), stable_hash(h.posting_id)))
        return SearchReply(hits=tuple(hits[: request.k]), total=len(hits), epoch=self.epoch, shard="shelf")

    def get(self, request, timeout):
        self._called("get", request, timeout)
        rows = []
        for posting_id in request.posting_ids:
            held = self.rows.get(posting_id)
            state = RowState.LIVE if held else RowState.ABSENT
            rows.append(Row(posting_id=posting_id, state=state, update=held[0] if held else None))
        return GetReply(rows=tuple(rows), shard="shelf")

    def holds(self, request, timeout):
        self._called("holds", request, timeout)
        return HoldsReply(held=tuple(
            any(set(clause.values) & _values(clause, update) for update, _ in self.rows.values())
            for clause in request.clauses
        ))  # fmt: skip

    def _called(self, name, request, timeout):
        assert timeout > 0
        self.calls.append((name, request))
        if self.down:
            raise CallError(Retrieval.SEARCH, "shelf", grpc.StatusCode.UNAVAILABLE, "shelf is down")


def _values(clause, update):
    place = update.attributes.location
    found = {
        "posting_id": update.posting_id,
        "location.region": place.region if place else None,
        "remote": None if update.attributes.remote == "UNKNOWN" else update.attributes.remote.value,
    }[clause.field]
    return set() if found is None else {found}


def passes(tree, update):
    if tree.kind is FilterKind.ALL:
        return all(passes(child, update) for child in tree.children)
    assert tree.kind is FilterKind.IN, tree
    held = _values(tree, update)
    if not held:
        return tree.missing is Missing.INCLUDE
    wanted = set(tree.values)
    if tree.field == "posting_id":  # compared without case, as the real one does
        return {value.lower() for value in wanted} >= {value.lower() for value in held}
    return bool(wanted & held)
