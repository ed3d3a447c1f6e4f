"""Pages of a device store made by hand: random rows of every kind of column, their zone maps, filters over them, and
what a filter says of a row in plain Python. The kernels' tests hold themselves to it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch

from penstock.kernels.filtered_topk.reference import filtered_topk as oracle
from penstock.kernels.int8_topk.reference import plane
from penstock.kernels.slabs import program
from penstock.kernels.slabs.batch import Filters, Queries, Slabs
from penstock.kernels.slabs.layout import BLOCK, INLINE, Kind, Layout, empty_arena, page_table

COLUMNS = (
    ("id", Kind.HASH),
    ("company", Kind.CODE),
    ("remote", Kind.SYMBOL),
    ("salary", Kind.NUMBER),
    ("place", Kind.PLACE),
    ("skills", Kind.MANY),
)
NEVER = torch.iinfo(torch.int64).max


@dataclass(frozen=True)
class Clause:
    """One clause: what it asks of a column. `operands`: codes, hashes, a mask, a range, or (north, east, km)."""

    op: int
    operands: tuple = ()
    negated: bool = False
    lacking: bool = False


@dataclass(frozen=True)
class Tree:
    """ALL or ANY of its parts."""

    every: bool
    parts: tuple


@dataclass(frozen=True)
class Seen:
    """A filter and who looks: `tree` None lets everything through."""

    tree: Clause | Tree | None = None
    epoch: int = 10
    now: int = 1_000
    tenant: int = 0


@dataclass
class World:
    """`pages` of `rows` rows; every array by row, as the oracle reads it."""

    pages: int = 2
    rows: int = 256
    dense: int = 20
    sketch: int = 12
    seed: int = 0
    alike: bool = False  # few distinct values: rows tie
    free: float = 0.1  # share of rows that nobody has
    layout: Layout = field(init=False)

    def __post_init__(self) -> None:
        rng = self.rng = np.random.default_rng(self.seed)
        count = self.count = self.pages * self.rows
        self.layout = Layout(self.rows, self.dense, self.sketch, COLUMNS, quantised=True)
        values = rng.integers(-2, 3, (count, self.dense)) if self.alike else rng.standard_normal((count, self.dense))
        self.planes = torch.tensor(values, dtype=torch.float32).bfloat16()
        low, high = (0, 2) if self.alike else (-5, 6)
        self.sketches = torch.tensor(rng.integers(low, high, (count, self.sketch)), dtype=torch.int8)
        self.hashes = torch.tensor(rng.permutation(count) * 7_919 - count * 3_000, dtype=torch.int64)
        taken = rng.random(count) >= self.free
        self.birth = torch.tensor(np.where(taken, rng.choice([1, 5, 10, 11], count), NEVER))
        self.death = torch.tensor(np.where(rng.random(count) < 0.2, rng.choice([8, 10, 12], count), NEVER))
        self.expires = torch.tensor(np.where(rng.random(count) < 0.2, rng.choice([900, 1_000, 1_001], count), NEVER))
        self.tenant = torch.tensor(rng.choice([0, 0, 0, 1], count), dtype=torch.int32)
        self.company = rng.integers(-1, 6, count).astype(np.int32)
        self.remote = rng.integers(0, 4, count).astype(np.int8)
        self.salary = np.where(rng.random(count) < 0.3, np.nan, rng.integers(0, 20, count) * 1_000.0)
        self.degrees = np.where(
            rng.random(count) < 0.3, np.nan, rng.uniform([[-60.0], [-179.0]], [[60.0], [179.0]], (2, count))
        )
        self.skills = [tuple(rng.choice(12, rng.integers(0, 4), replace=False).tolist()) for _ in range(count)]
        self.overflow: dict[int, tuple[int, ...]] = {}  # codes of a row past those in its page
        for row in rng.choice(count, 3, replace=False).tolist():
            self.skills[row] = tuple(range(20, 20 + INLINE))
            self.overflow[row] = (50, 51)
        self.taken = taken
        self.arenas = [self._arena(number) for number in range(self.pages)]

    def slabs(self) -> Slabs:
        return Slabs(self.layout, page_table(self.arenas), self.layout.offsets())

    def _arena(self, number: int) -> torch.Tensor:
        layout, arena = self.layout, empty_arena(self.layout, "cpu")
        some = slice(number * self.rows, (number + 1) * self.rows)

        def put(name: str, values: torch.Tensor | np.ndarray) -> None:
            layout.view(arena, name).copy_(torch.as_tensor(values))

        layout.view(arena, "dense")[:, : self.dense] = self.planes[some]
        values, scales = plane(self.planes[some])
        layout.view(arena, "quantised")[:, : self.dense] = values
        put("scales", scales)
        put("sketch", self.sketches[some].reshape(self.rows // BLOCK, BLOCK, self.sketch).transpose(1, 2))
        for name in ("birth", "death", "expires", "tenant"):
            put(name, getattr(self, name)[some])
        put("column.id", self.hashes[some])
        put("column.company", self.company[some])
        put("column.remote", self.remote[some])
        put("column.salary", self.salary[some])
        put("column.place", sphere(self.degrees[0, some], self.degrees[1, some]))
        many = np.full((self.rows, INLINE), -1, np.int32)
        for row, codes in enumerate(self.skills[some]):
            many[row, : len(codes)] = codes
        put("column.skills", many)
        put("column.skills.counts", np.asarray([len(codes) for codes in self.skills[some]], np.int32))
        norms = torch.stack([one[some].double().norm(dim=1) for one in (self.planes, self.sketches)], 1)
        put("zone.norms", (norms.view(-1, BLOCK, 2).amax(1) * (1 + 1e-6)).float())
        for block in range(self.rows // BLOCK):
            self._zone(arena, number, block)
        return arena

    def _zone(self, arena: torch.Tensor, number: int, block: int) -> None:
        first = number * self.rows + block * BLOCK
        rows = [row for row in range(first, first + BLOCK) if self.taken[row]]

        def put(name: str, value: object, *place: int) -> None:
            self.layout.view(arena, f"zone.{name}")[(*place, block)] = value

        put("rows", len(rows))
        put("expires_max", max((int(self.expires[row]) for row in rows), default=torch.iinfo(torch.int64).min))
        put("tenants", bits({int(self.tenant[row]) for row in rows}))
        put("company.signature", bits({int(self.company[row]) for row in rows}))
        put("remote.bits", bits({int(self.remote[row]) for row in rows}))
        marks = set().union(*(self._marks(row) for row in rows)) if rows else set()
        put("skills.signature", bits(marks))
        for name, axes in (("salary", (self.salary,)), ("place", tuple(self.degrees))):
            for axis, values in enumerate(axes):
                there = [values[row] for row in rows if not np.isnan(values[row])]
                place = (axis,) if len(axes) > 1 else ()
                put(f"{name}.low", min(there, default=math.inf), *place)
                put(f"{name}.high", max(there, default=-math.inf), *place)
            put(f"{name}.lacks", any(np.isnan(axes[0][row]) for row in rows))

    def _marks(self, row: int) -> set[int]:
        if row in self.overflow:
            return set(range(63))
        return {code % 63 for code in self.skills[row]} or {-1}

    # --- filters ---------------------------------------------------------------------------------------------------

    def filters(self, seen: list[Seen]) -> Filters:
        packed = _Packed(self)
        bounds = [0]
        for one in seen:
            if one.tree is not None:
                packed.add(one.tree)
            bounds.append(len(packed.steps))
        steps = packed.steps or [[0] * program.STEP]
        return Filters(
            steps=torch.tensor(steps, dtype=torch.int32),
            marks=torch.tensor(packed.marks or [0], dtype=torch.int64),
            codes=torch.tensor(packed.codes or [0], dtype=torch.int32),
            numbers=torch.tensor(packed.numbers or [0.0], dtype=torch.float64),
            longs=torch.tensor(packed.longs or [0], dtype=torch.int64),
            bounds=torch.tensor(bounds, dtype=torch.int32),
            epochs=torch.tensor([one.epoch for one in seen]),
            nows=torch.tensor([one.now for one in seen]),
            tenants=torch.tensor([one.tenant for one in seen], dtype=torch.int32),
            owners=torch.tensor([bits({one.tenant}) for one in seen]),
        )

    def passes(self, seen: Seen) -> torch.Tensor:
        """bool [count]: by plain Python."""
        out = (self.birth <= seen.epoch) & (self.death > seen.epoch)
        out &= (self.expires > seen.now) & (self.tenant == seen.tenant)
        if seen.tree is not None:
            out &= torch.tensor([self._says(seen.tree, row) for row in range(self.count)])
        return out

    def _says(self, node: Clause | Tree, row: int) -> bool:
        if isinstance(node, Tree):
            return (all if node.every else any)(self._says(part, row) for part in node.parts)
        lacks, hit = False, False
        if node.op == program.CODES:
            lacks, hit = self.company[row] == -1, int(self.company[row]) in node.operands
        elif node.op == program.SYMBOLS:
            lacks, hit = self.remote[row] == 0, bool(node.operands[0] >> int(self.remote[row]) & 1)
        elif node.op == program.RANGE:
            lacks = bool(np.isnan(self.salary[row]))
            hit = bool(node.operands[0] <= self.salary[row] <= node.operands[1])
        elif node.op == program.HASHES:
            hit = int(self.hashes[row]) in node.operands
        elif node.op == program.MANY:
            lacks = not self.skills[row]
            hit = bool({*self.skills[row], *self.overflow.get(row, ())} & set(node.operands))
        else:
            lacks = bool(np.isnan(self.degrees[0, row]))
            north, east, km = node.operands
            hit = not lacks and kilometres(north, east, *self.degrees[:, row]) <= km
        return bool(node.lacking if lacks else hit != node.negated)

    # --- queries ---------------------------------------------------------------------------------------------------

    def queries(self, filter_of: list[int], *, terms: int = 3, alike: bool | None = None) -> Queries:
        count, rng = len(filter_of), self.rng
        if self.alike if alike is None else alike:
            dense = torch.tensor(rng.integers(-2, 3, (count, self.dense)), dtype=torch.float32)
        else:
            dense = torch.tensor(rng.standard_normal((count, self.dense)), dtype=torch.float32)
        chosen = [np.sort(rng.choice(self.sketch, min(terms, self.sketch), replace=False)) for _ in range(count)]
        starts = np.cumsum([0, *(len(one) for one in chosen)])
        weights = np.ones(starts[-1]) if self.alike else rng.random(starts[-1]) + 0.01
        return Queries(
            dense,
            torch.tensor(starts, dtype=torch.int32),
            torch.tensor(np.concatenate(chosen), dtype=torch.int32),
            torch.tensor(weights, dtype=torch.float32),
            torch.tensor(filter_of, dtype=torch.int32),
        )

    def oracle(self, queries: Queries, seen: list[Seen], k: int) -> list[tuple[list[int], list[float]]]:
        """Of each query the best rows and their scores, by the specification."""
        lexical = torch.zeros(queries.count, self.sketch)
        for query in range(queries.count):
            begin, end = queries.starts[query : query + 2].tolist()
            lexical[query, queries.terms[begin:end].long()] = queries.weights[begin:end]
        passes = torch.stack([self.passes(seen[one]) for one in queries.filter_of.tolist()])
        scores, rows = oracle(self.planes, self.sketches, queries.dense, lexical, passes, self.hashes, k)
        return [
            ([row for row in mine.tolist() if row >= 0], [score for score in one.tolist() if score > -math.inf])
            for mine, one in zip(rows, scores, strict=True)
        ]


class _Packed:
    """Trees as a device takes them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.steps: list[list[int]] = []
        self.marks: list[int] = []
        self.codes: list[int] = []
        self.numbers: list[float] = []
        self.longs: list[int] = []

    def add(self, node: Clause | Tree) -> None:
        if isinstance(node, Tree):
            self.add(node.parts[0])
            for part in node.parts[1:]:
                self.add(part)
                self.steps.append([program.ALL if node.every else program.ANY] + [0] * (program.STEP - 1))
                self.marks.append(0)
            return
        column = {
            program.CODES: "company",
            program.SYMBOLS: "remote",
            program.RANGE: "salary",
            program.PLACE: "place",
            program.HASHES: "id",
            program.MANY: "skills",
        }[node.op]
        flags = node.negated * program.NEGATED + node.lacking * program.LACKING
        begin, count, mask, more, mark = 0, 0, 0, (0, 0, 0), 0
        if node.op in (program.CODES, program.MANY):
            wanted = sorted(node.operands)
            begin, count = len(self.codes), len(wanted)
            self.codes += wanted
            several = node.op == program.MANY
            mark = bits({code % 63 for code in wanted} if several else set(wanted))
            if node.negated:
                mark = (1 << 63) - 1
            if node.lacking:
                mark = signed(mark | 1 << 63)
            if several:
                rows = sorted(row for row, codes in self.world.overflow.items() if set(codes) & set(wanted))
                more = (len(self.longs), len(rows), jump(len(rows)))
                self.longs += rows
        elif node.op == program.SYMBOLS:
            mask = node.operands[0]
            mark = (mask ^ 0xFFFFFFFE if node.negated else mask) | node.lacking
        elif node.op == program.HASHES:
            wanted = sorted(node.operands)
            begin, count = len(self.longs), len(wanted)
            self.longs += wanted
            mark = int(node.negated or count > 0)
        elif node.op == program.RANGE:
            begin, count = len(self.numbers), 2
            self.numbers += node.operands
        else:
            begin, count = len(self.numbers), self.world.rows
            north, east, km = node.operands
            x, y, z = (float(one[0]) for one in sphere(np.asarray([north]), np.asarray([east])))
            angle = km / 6371.0088
            away = math.degrees(angle) * 1.01 + 1e-3
            flags += program.EVERYWHERE  # a box of every longitude is never too narrow
            self.numbers += [
                x,
                y,
                z,
                (2 * math.sin(min(angle, math.pi) / 2)) ** 2,
                north - away,
                north + away,
                0.0,
                0.0,
            ]
        entry = self.world.layout.entry(column)
        self.steps.append([node.op, entry, flags, begin, count, jump(count), mask, *more])
        self.marks.append(mark)


def jump(count: int) -> int:
    return 1 << (count.bit_length() - 1) if count else 0


def bits(codes: set[int]) -> int:
    """A bit a code, the highest of an absent one (-1), as a signed number."""
    return signed(sum(1 << (63 if code == -1 else code) for code in codes))


def signed(mask: int) -> int:
    return mask - (1 << 64) if mask >= 1 << 63 else mask


def sphere(north: np.ndarray, east: np.ndarray) -> np.ndarray:
    """float64 [3, n]: points of the unit sphere."""
    lat, lon = np.radians(north), np.radians(east)
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)])


def kilometres(north: float, east: float, norths: float, easts: float) -> float:
    a, b = np.radians(north), np.radians(norths)
    half = np.sin((b - a) / 2) ** 2 + np.cos(a) * np.cos(b) * np.sin(np.radians(easts - east) / 2) ** 2
    return float(2 * 6371.0088 * np.arcsin(np.sqrt(min(half, 1.0))))
