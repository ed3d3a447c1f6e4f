"""A batch of postings as percolation reads it: the live ones, what conditions say of them, their vectors as planes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from penstock.retrieval.percolate.blocks import Block
from penstock.retrieval.percolate.conditions import Bits, Conditions, in_words
from penstock.retrieval.percolate.entries import Condition, Tree
from penstock.retrieval.search import filters
from penstock.retrieval.store.planes import Space, vector_fault
from penstock.schemas.events import IndexOp, IndexUpdate, Vector

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Group:
    """Postings of a batch whose vectors are of one kind. `places` says which of the batch each row is."""

    space: Space | None  # None: without vectors, every score 0
    places: Rows  # int64 [m], ascending
    dense: torch.Tensor  # bfloat16 [m, D]
    whole: npt.NDArray[np.float64]  # [m, D]: `dense` once more
    sketch: torch.Tensor  # int8 [m, L]
    columns: torch.Tensor  # float32 [D, m]: `dense` the other way
    table: torch.Tensor  # float32 [L, m]: `sketch` the other way
    norms: tuple[float, float]  # the largest of each part, rounded up


class Batch:
    """`updates` as of `now_ms`; only live UPSERTs are in it. Used by one thread."""

    def __init__(self, updates: Sequence[IndexUpdate], now_ms: int) -> None:
        self.live = [place for place, update in enumerate(updates) if _lives(update, now_ms)]
        self.vectors_refused = 0
        self.conditions = Conditions([updates[place] for place in self.live])
        self._tenants: dict[str, int] = {}  # bits of the postings of each
        self._said: dict[int, str] = {}  # of a node, by its identity: nodes outlive the batch
        # By number of a condition; number 0 holds always.
        self._known = np.ones(1, np.bool_)
        self._bits = self.conditions.packed([self.conditions.every])
        kinds: dict[Space | None, list[tuple[int, Vector | None]]] = {}
        for row, place in enumerate(self.live):
            update = updates[place]
            self._tenants[update.tenant] = self._tenants.get(update.tenant, 0) | 1 << row
            vector = update.vector
            if vector is None:
                kinds.setdefault(None, []).append((row, None))
            elif vector_fault(vector) is not None:
                self.vectors_refused += 1
            else:
                kind = Space(vector.space_id, len(vector.dense) // 2, len(vector.sketch or b""))
                kinds.setdefault(kind, []).append((row, vector))
        self.groups = [_group(kind, members) for kind, members in kinds.items()]

    def __len__(self) -> int:
        return len(self.live)

    def prepare(self, blocks: Sequence[Block]) -> None:
        """Evaluates the conditions of these blocks, each once, before `passing` is asked."""
        highest = max((int(block.numbers[-1]) for block in blocks if len(block.numbers)), default=0)
        if highest >= len(self._known):
            more = highest + 1 - len(self._known)
            self._known = np.concatenate((self._known, np.zeros(more, np.bool_)))
            self._bits = np.concatenate((self._bits, np.zeros((more, self._bits.shape[1]), np.uint64)))
        wanted: list[Condition] = []
        for block in blocks:
            unknown = np.flatnonzero(~self._known[block.numbers])
            self._known[block.numbers] = True
            wanted += [block.conditions[place] for place in unknown.tolist()]
        if wanted:
            self._bits[[one.number for one in wanted]] = self.conditions.rows(wanted)

    def bits(self) -> Bits:
        """uint64 [numbers, words]: of each condition of the prepared blocks, by number, the postings it holds for."""
        return self._bits

    def of_tenants(self, tenants: Sequence[str]) -> Bits:
        """uint64 [n, words]: the postings of each tenant."""
        return self.conditions.packed([self._tenants.get(tenant, 0) for tenant in tenants])

    def passing(self, block: Block) -> Bits:
        """uint64 [n, words]: for each query of a prepared block the postings of its tenant that pass its filters."""
        out: Bits = self.of_tenants(block.tenants)[block.tenant_of]
        for demanded in block.demands:
            out &= self._bits[demanded]
        return out

    def satisfied(self, tree: Tree, row: int) -> str:
        """What of the tree a posting that passes satisfies, in words: of alternatives those that hold."""
        if tree.said is not None:
            return tree.said
        return "; ".join(dict.fromkeys(self._satisfied(tree, row)))

    def _satisfied(self, tree: Tree, row: int) -> Iterator[str]:
        node = tree.node
        for part in node.parts if isinstance(node, filters.Group) and node.every else (node,):
            either = part.parts if isinstance(part, filters.Group) and not part.every else (part,)
            for one in either:
                if len(either) == 1 or self.conditions.bits(one) >> row & 1:
                    yield self._in_words(one)

    def _in_words(self, node: filters.Node) -> str:
        words = self._said.get(id(node))
        if words is None:
            words = self._said[id(node)] = in_words(node)
        return words


def _lives(update: IndexUpdate, now_ms: int) -> bool:
    if update.op is not IndexOp.UPSERT or update.attributes is None:
        return False
    return update.expires_at is None or update.expires_at > now_ms


def _group(kind: Space | None, members: Sequence[tuple[int, Vector | None]]) -> Group:
    vectors = [vector for _, vector in members if vector is not None]
    width, length = (kind.dense, kind.sketch) if kind is not None else (0, 0)
    raw = np.frombuffer(bytearray().join(v.dense for v in vectors), "<u2").reshape(len(members), width)
    floats = (raw.astype(np.uint32) << 16).view(np.float32)
    signed = np.frombuffer(bytearray().join(v.sketch or b"" for v in vectors), np.int8).reshape(len(members), length)
    sizes = [float(np.linalg.norm(part.astype(np.float64), axis=1).max()) * (1 + 1e-12) for part in (floats, signed)]
    return Group(
        space=kind,
        places=np.asarray([row for row, _ in members], np.int64),
        dense=torch.from_numpy(raw.astype(np.int16)).view(torch.bfloat16),
        whole=floats.astype(np.float64),
        sketch=torch.from_numpy(signed),
        columns=torch.from_numpy(np.ascontiguousarray(floats.T)),
        table=torch.from_numpy(signed.T.astype(np.float32, order="C")),
        norms=(sizes[0], sizes[1]),
    )
