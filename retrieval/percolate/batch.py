"""A batch of postings as percolation reads it: the live ones, their attributes as columns, their vectors as planes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from penstock.retrieval.percolate.entries import Tree
from penstock.retrieval.search import filters
from penstock.retrieval.search.evaluate import evaluate
from penstock.retrieval.store.columns import Columns
from penstock.retrieval.store.planes import Space, vector_fault
from penstock.schemas.events import IndexOp, IndexUpdate, Vector

Mask = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Group:
    """Postings of a batch whose vectors are of one kind. `places` says which of the batch each row is."""

    space: Space | None  # None: without vectors, every score 0
    places: Rows  # int64 [m]
    dense: torch.Tensor  # bfloat16 [m, D]
    sketch: torch.Tensor  # int8 [m, L]
    columns: torch.Tensor  # float32 [D, m]: `dense` the other way
    table: torch.Tensor  # float32 [L, m]: `sketch` the other way
    norms: tuple[float, float]  # the largest of each part, rounded up


class _Clauses(dict[filters.Clause, int]):
    """What each clause says of the first `count` rows, a bit a row: evaluated when first asked for."""

    def __init__(self, columns: Columns, count: int) -> None:
        super().__init__()
        self._columns = columns
        self._count = count

    def __missing__(self, clause: filters.Clause) -> int:
        mask = evaluate(clause, self._columns, self._count)
        bits = self[clause] = int.from_bytes(np.packbits(mask, bitorder="little").tobytes(), "little")
        return bits


class Batch:
    """`updates` as of `now_ms`; only live UPSERTs are in it. Used by one thread."""

    def __init__(self, updates: Sequence[IndexUpdate], now_ms: int) -> None:
        self.live = [place for place, update in enumerate(updates) if _lives(update, now_ms)]
        self.tenants = [updates[place].tenant for place in self.live]
        self.vectors_refused = 0
        self._columns = Columns(max(len(self.live), 1))
        self._clause = _Clauses(self._columns, len(self.live)).__getitem__
        self._words: dict[int, str] = {}  # by the identity of a node, which outlives the batch
        self._trees: dict[Tree | None, int] = {None: (1 << len(self.live)) - 1}
        kinds: dict[Space | None, list[tuple[int, Vector | None]]] = {}
        for row, place in enumerate(self.live):
            self._columns.write(row, updates[place])
            vector = updates[place].vector
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

    def passes(self, trees: Sequence[Tree | None]) -> Mask:
        """bool [trees, n]: which postings pass each. Every distinct tree and clause is evaluated once."""
        size = -(-len(self) // 8)
        raw = b"".join(self._bits(tree).to_bytes(size, "little") for tree in trees)
        packed = np.frombuffer(raw, np.uint8).reshape(len(trees), size)
        return np.unpackbits(packed, axis=1, count=len(self), bitorder="little").view(np.bool_)

    def satisfied(self, tree: Tree, row: int) -> Iterator[str]:
        """What of the tree a posting that passes satisfies, in words: of alternatives those that hold."""
        node = tree.node
        together = node.parts if isinstance(node, filters.Group) and node.every else (node,)
        for part in together:
            either = part.parts if isinstance(part, filters.Group) and not part.every else (part,)
            for one in either:
                if len(either) == 1 or filters.fold(one, self._clause) >> row & 1:
                    yield self._said(one)

    def of_tenants(self, tenants: Sequence[str]) -> Mask:
        """bool [tenants, n]: whose each posting is."""
        return np.asarray([[own == tenant for own in self.tenants] for tenant in tenants], np.bool_).reshape(
            len(tenants), len(self)
        )

    def _bits(self, tree: Tree | None) -> int:
        bits = self._trees.get(tree)
        if bits is None:
            assert tree is not None
            bits = self._trees[tree] = filters.fold(tree.node, self._clause)
        return bits

    def _said(self, node: filters.Node) -> str:
        words = self._words.get(id(node))
        if words is None:
            words = self._words[id(node)] = _in_words(node)
        return words


def _in_words(node: filters.Node) -> str:
    if isinstance(node, filters.Clause):
        return filters.said(node)
    inner = (f"({_in_words(part)})" if isinstance(part, filters.Group) else _in_words(part) for part in node.parts)
    return (" AND " if node.every else " OR ").join(inner)


def _lives(update: IndexUpdate, now_ms: int) -> bool:
    if update.op is not IndexOp.UPSERT or update.attributes is None:
        return False
    return update.expires_at is None or update.expires_at > now_ms


def _group(kind: Space | None, members: Sequence[tuple[int, Vector | None]]) -> Group:
    vectors = [vector for _, vector in members if vector is not None]
    width, length = (kind.dense, kind.sketch) if kind is not None else (0, 0)
    raw = np.frombuffer(bytearray().join(v.dense for v in vectors), "<i2").astype(np.int16, copy=False)
    dense = torch.from_numpy(raw.reshape(len(members), width)).view(torch.bfloat16)
    signed = np.frombuffer(bytearray().join(v.sketch or b"" for v in vectors), np.int8)
    sketch = torch.from_numpy(signed.reshape(len(members), length))
    sizes = [float(np.linalg.norm(part.double().numpy(), axis=1).max()) * (1 + 1e-12) for part in (dense, sketch)]
    return Group(
        space=kind,
        places=np.asarray([row for row, _ in members], np.int64),
        dense=dense,
        sketch=sketch,
        columns=dense.float().T.contiguous(),
        table=sketch.float().T.contiguous(),
        norms=(sizes[0], sizes[1]),
    )
