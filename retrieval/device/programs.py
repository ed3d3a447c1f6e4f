"""A clause program of retrieval/search/program.py as kernels/slabs/program.py takes it.

Joins of n results become chains of joins of two, each right after its second result, so that the stack of results,
whose bits are one int64 a row, stays as shallow as the tree is nested: at most schemas.filters.MAX_DEPTH.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from penstock.kernels.slabs import program as device
from penstock.kernels.slabs.layout import Layout
from penstock.retrieval.device.values import on_sphere, signed
from penstock.retrieval.search.geometry import EARTH_RADIUS_KM, reach
from penstock.retrieval.search.program import Instruction, Op, Overflow, Program
from penstock.retrieval.store.page import Codes, Doubles, Longs
from penstock.retrieval.store.zones import EVERY_CODE, LACKING, signature

EVERY_PLACE = 5.0  # more than any chord of the unit sphere squared: 4

_OPS = {
    Op.ALL: device.ALL,
    Op.ANY: device.ANY,
    Op.IN_HASHES: device.HASHES,
    Op.IN_SYMBOLS: device.SYMBOLS,
    Op.IN_CODES: device.CODES,
    Op.RANGE: device.RANGE,
    Op.WITHIN: device.PLACE,
    Op.ANY_CODE: device.MANY,
}


@dataclass(frozen=True, slots=True)
class Operands:
    """What clauses name: codes ascending in each clause, numbers, hashes and slots likewise."""

    codes: Codes
    numbers: Doubles
    longs: Longs


@dataclass(frozen=True, slots=True)
class Compiled:
    """One or several programs: steps int32 [S, STEP] and marks int64 [S], as kernels/slabs/program.py has them."""

    steps: npt.NDArray[np.int32]
    marks: Longs
    operands: Operands


NOTHING = Compiled(
    np.zeros((0, device.STEP), np.int32),
    np.zeros(0, np.int64),
    Operands(np.zeros(0, np.int32), np.zeros(0), np.zeros(0, np.int64)),
)


def compiled(program: Program | None, layout: Layout, overflow: Overflow) -> Compiled:
    """None: everything passes."""
    if program is None:
        return NOTHING
    writer = _Writer(layout, overflow)
    results: list[list[int]] = []  # on the stack: the clauses of each, by number, and joins as ~op
    for one in program.instructions:
        if one.count:
            parts, results[-one.count :] = results[-one.count :], []
            joined = list(parts[0])
            for part in parts[1:]:
                joined += [*part, ~_OPS[one.op]]
            results.append(joined)
        else:
            results.append([writer.clause(one)])
    (order,) = results
    return writer.finished(order)


def joined(programs: Sequence[Compiled]) -> tuple[Compiled, npt.NDArray[np.int32]]:
    """All of them as one, and where each begins and the last ends: int32 [programs + 1]."""
    steps, at = [], np.zeros(3, np.int64)
    for one in programs:
        moved = one.steps.copy()
        op = moved[:, 0]
        for place, ops in enumerate(((device.CODES, device.MANY), (device.RANGE, device.PLACE), (device.HASHES,))):
            moved[np.isin(op, ops), 3] += at[place]
        moved[op == device.MANY, 7] += at[2]
        steps.append(moved)
        at += [len(one.operands.codes), len(one.operands.numbers), len(one.operands.longs)]
    bounds = np.cumsum([0, *(len(one.steps) for one in programs)]).astype(np.int32)
    every = (NOTHING, *programs)
    return Compiled(
        np.concatenate((NOTHING.steps, *steps)),
        np.concatenate([one.marks for one in every]),
        Operands(
            np.concatenate([one.operands.codes for one in every]),
            np.concatenate([one.operands.numbers for one in every]),
            np.concatenate([one.operands.longs for one in every]),
        ),
    ), bounds


class _Writer:
    """The clauses of one program, and what they name."""

    def __init__(self, layout: Layout, overflow: Overflow) -> None:
        self._layout = layout
        self._overflow = overflow
        self._clauses: list[list[int]] = []
        self._marks: list[int] = []
        self._codes: list[Codes] = []
        self._numbers: list[float] = []
        self._longs: list[Longs] = []
        self._count = [0, 0]  # of codes and longs

    def clause(self, one: Instruction) -> int:
        """Its number."""
        flags = device.NEGATED * one.negated | device.LACKING * one.lacking
        where, count, mask, more = 0, 0, 0, (0, 0, 0)
        if one.op in (Op.IN_CODES, Op.ANY_CODE):
            where, count = self._take(self._codes, one.codes, 0)
        if one.op is Op.IN_HASHES:
            where, count = self._take(self._longs, signed(one.hashes), 1)
        elif one.op is Op.ANY_CODE and len(one.codes):
            begin, length = self._take(self._longs, np.unique(self._overflow.rows_with(one.field, one.codes)), 1)
            more = (begin, length, _jump(length))
        elif one.op is Op.IN_SYMBOLS:
            mask = one.mask
        elif one.op is Op.RANGE:
            where, count = len(self._numbers), 2
            self._numbers += one.numbers
        elif one.op is Op.WITHIN:
            where, count = len(self._numbers), self._layout.rows  # a place's axes lie so far apart
            everywhere, numbers = _circle(*one.numbers)
            flags |= device.EVERYWHERE * everywhere
            self._numbers += numbers
        signed_mask = int(np.uint32(mask).view(np.int32))
        entry = self._layout.entry(one.field)
        self._clauses.append([_OPS[one.op], entry, flags, where, count, _jump(count), signed_mask, *more])
        self._marks.append(_mark(one))
        return len(self._clauses) - 1

    def _take(
        self, kept: list[npt.NDArray[np.int32]] | list[Longs], values: Codes | Longs, which: int
    ) -> tuple[int, int]:
        begin = self._count[which]
        kept.append(values)  # type: ignore[arg-type]  # a list holds one kind, and so does every caller
        self._count[which] += len(values)
        return begin, len(values)

    def finished(self, order: Sequence[int]) -> Compiled:
        joins = [0] * (device.STEP - 1)
        steps = [self._clauses[step] if step >= 0 else [~step, *joins] for step in order]
        marks = [self._marks[step] if step >= 0 else 0 for step in order]
        return Compiled(
            np.asarray(steps, np.int32),
            np.asarray(marks, np.uint64).view(np.int64),
            Operands(
                np.concatenate([NOTHING.operands.codes, *self._codes]),
                np.asarray(self._numbers, np.float64),
                np.concatenate([NOTHING.operands.longs, *self._longs]),
            ),
        )


def _jump(count: int) -> int:
    """The greatest power of two not above it; 0 of none."""
    return 1 << (count.bit_length() - 1) if count else 0


def _mark(one: Instruction) -> int:
    """What a block's zone map must have a bit of, as `possible` has it; of ranges and places 0."""
    if one.op is Op.IN_HASHES:
        return int(one.negated or len(one.hashes) > 0)
    if one.op is Op.IN_SYMBOLS:
        return (one.mask ^ 0xFFFFFFFE if one.negated else one.mask) | one.lacking
    if one.op in (Op.IN_CODES, Op.ANY_CODE):
        return int(EVERY_CODE if one.negated else signature(one.codes)) | int(LACKING) * one.lacking
    return 0


def _circle(lat: float, lon: float, km: float) -> tuple[bool, list[float]]:
    """Whether it reaches every longitude; x, y, z, the greatest chord squared, south, north, west, east."""
    (point,) = on_sphere(np.asarray([lat], np.float64), np.asarray([lon], np.float64)).tolist()
    angle = km / EARTH_RADIUS_KM
    chord = 4 * math.sin(angle / 2) ** 2 if angle < math.pi else EVERY_PLACE
    north, east = reach(lat, km)
    return east >= 180, [*point, chord, lat - north, lat + north, lon - east, lon + east]
