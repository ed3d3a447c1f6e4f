"""Clause programs as a device runs them: which rows of a block pass, and which blocks can hold one that does.

A program is a filter in postfix order over a stack of bits: a clause pushes what it says of a row, ALL and ANY join the
two results before them. Every row has its stack in one int64, so a step is a few instructions for 128 rows at once.
What a clause says is what docs/retrieval.md, "Clause program", says, with one difference: a place passes by the chord
between two points of the unit sphere, not by the haversine formula, so within a micrometre of a circle's edge (a few
centimetres, of circles that hold nearly half the globe or more) a device may decide otherwise.

Steps, int32 [steps, STEP]:

    0 op   1 the column's entry in the table of offsets   2 flags: 1 negated, 2 passes when lacking, 4 every longitude
    3 where the operands begin   4 how many   5 the greatest power of two not above that (0 of none)   6 mask of symbols
    7 to 9 the same of a second list of operands in `longs`: of MANY, slots whose row has one of the codes past INLINE

Operands, by op: CODES and MANY ascending int32 in `codes`; HASHES ascending int64 in `longs`; RANGE low, high and PLACE
x, y, z, the greatest chord squared, south, north, west, east (degrees) in `numbers`, float64.
`marks` int64 [steps]: what a block's zone map must have a bit of for the step to pass there; for HASHES 0 or 1.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
# What Triton compiles has the types of its arguments, which are no Python types.
from __future__ import annotations

import triton
import triton.language as tl

from penstock.kernels.slabs import layout

STEP = 10
DEPTH = 63  # results that a stack holds

ALL, ANY, HASHES, SYMBOLS, CODES, RANGE, PLACE, MANY = range(8)
NEGATED, LACKING, EVERYWHERE = 1, 2, 4

_STEP = tl.constexpr(STEP)
_ALL, _ANY, _HASHES, _SYMBOLS, _CODES, _RANGE, _PLACE, _MANY = (tl.constexpr(op) for op in range(8))
_NEGATED, _LACKING, _EVERYWHERE = tl.constexpr(NEGATED), tl.constexpr(LACKING), tl.constexpr(EVERYWHERE)
_INLINE = tl.constexpr(layout.INLINE)
_BIRTH, _DEATH = tl.constexpr(layout.BIRTH), tl.constexpr(layout.DEATH)
_EXPIRES, _TENANT = tl.constexpr(layout.EXPIRES), tl.constexpr(layout.TENANT)
_ROWS, _EXPIRES_MAX = tl.constexpr(layout.ROWS), tl.constexpr(layout.EXPIRES_MAX)
_TENANTS, _NORMS = tl.constexpr(layout.TENANTS), tl.constexpr(layout.NORMS)
_VALUES, _COUNTS = tl.constexpr(layout.VALUES), tl.constexpr(layout.COUNTS)
_ZONE, _ZONE_HIGH, _ZONE_LACKS = (
    tl.constexpr(layout.ZONE),
    tl.constexpr(layout.ZONE_HIGH),
    tl.constexpr(layout.ZONE_LACKS),
)


@triton.jit
def array(page, offsets, place, kind):
    """The pointer to an array of a page. page: address, int64; kind: a constexpr dtype."""
    return (page + tl.load(offsets + place)).to(tl.pointer_type(kind))


@triton.jit
def is_among(values, operands, begin, count, jump):
    """int1, the shape of `values`: whether each is among operands[begin : begin + count], ascending."""
    found = tl.zeros_like(values).to(tl.int32)  # how many operands are below the value
    step = jump
    while step > 0:
        probe = found + step
        inside = probe <= count
        below = tl.load(operands + begin + probe - 1, mask=inside, other=0) < values
        found = tl.where(inside & below, probe, found)
        step = step // 2
    inside = found < count
    return inside & (tl.load(operands + begin + found, mask=inside, other=0) == values)


@triton.jit
def rows_pass(page, first, at, offsets, steps, codes, numbers, longs, begin, end):
    """int1 [n]: which rows pass the program steps[begin:end]; all of them where it is empty.

    page: address, int64; first: the slot of its first row; at int32 [n]: rows of it.
    """
    stack = tl.full(at.shape, 1, tl.int64)
    for number in range(begin, end):
        step = steps + number * _STEP
        op = tl.load(step)
        if op == _ALL:
            stack = (stack >> 1) & (stack | ~1)
        elif op == _ANY:
            stack = (stack >> 1) | (stack & 1)
        else:
            entry = tl.load(step + 1)
            flags = tl.load(step + 2)
            where = tl.load(step + 3)
            count = tl.load(step + 4)
            jump = tl.load(step + 5)
            hit = tl.zeros(at.shape, tl.int1)
            lacks = tl.zeros(at.shape, tl.int1)
            if op == _CODES:
                code = tl.load(array(page, offsets, entry + _VALUES, tl.int32) + at)
                hit = is_among(code, codes, where, count, jump)
                lacks = code == -1
            elif op == _SYMBOLS:
                symbol = tl.load(array(page, offsets, entry + _VALUES, tl.int8) + at).to(tl.int32)
                hit = ((tl.load(step + 6) >> symbol) & 1) != 0
                lacks = symbol == 0
            elif op == _RANGE:
                value = tl.load(array(page, offsets, entry + _VALUES, tl.float64) + at)
                hit = (value >= tl.load(numbers + where)) & (value <= tl.load(numbers + where + 1))
                lacks = value != value
            elif op == _PLACE:
                sphere = array(page, offsets, entry + _VALUES, tl.float64) + at
                rows = count  # of a page, so far from one axis to the next
                x = tl.load(sphere) - tl.load(numbers + where)
                y = tl.load(sphere + rows) - tl.load(numbers + where + 1)
                z = tl.load(sphere + 2 * rows) - tl.load(numbers + where + 2)
                hit = x * x + y * y + z * z <= tl.load(numbers + where + 3)
                lacks = x != x
            elif op == _HASHES:
                value = tl.load(array(page, offsets, entry + _VALUES, tl.int64) + at)
                hit = is_among(value, longs, where, count, jump)
            else:
                has = tl.load(array(page, offsets, entry + _COUNTS, tl.int32) + at)
                values = array(page, offsets, entry + _VALUES, tl.int32) + at * _INLINE
                for place in tl.static_range(_INLINE):
                    hit = hit | is_among(tl.load(values + place), codes, where, count, jump)
                slots = first + at.to(tl.int64)
                hit = hit | is_among(slots, longs, tl.load(step + 7), tl.load(step + 8), tl.load(step + 9))
                lacks = has == 0
            negated = (flags & _NEGATED) != 0
            lacking = (flags & _LACKING) != 0
            says = tl.where(lacks, lacking, hit != negated)
            stack = (stack << 1) | says.to(tl.int64)
    return (stack & 1) != 0


@triton.jit
def rows_visible(page, at, offsets, epoch, now, tenant):
    """int1 [n]: which rows an epoch, a moment (epoch ms) and a tenant can see."""
    seen = tl.load(array(page, offsets, _BIRTH, tl.int64) + at) <= epoch
    seen = seen & (tl.load(array(page, offsets, _DEATH, tl.int64) + at) > epoch)
    seen = seen & (tl.load(array(page, offsets, _EXPIRES, tl.int64) + at) > now)
    return seen & (tl.load(array(page, offsets, _TENANT, tl.int32) + at) == tenant)


@triton.jit
def blocks_may_pass(page, at, inside, offsets, steps, marks, numbers, begin, end, blocks):
    """int1 [n]: which blocks can hold a row that passes, by their zone maps. at int32 [n]: of the page's `blocks`."""
    stack = tl.full(at.shape, 1, tl.int64)
    for number in range(begin, end):
        step = steps + number * _STEP
        op = tl.load(step)
        if op == _ALL:
            stack = (stack >> 1) & (stack | ~1)
        elif op == _ANY:
            stack = (stack >> 1) | (stack & 1)
        else:
            entry = tl.load(step + 1)
            flags = tl.load(step + 2)
            where = tl.load(step + 3)
            mark = tl.load(marks + number)
            negated = (flags & _NEGATED) != 0
            can = tl.zeros(at.shape, tl.int1)
            if (op == _CODES) | (op == _MANY):
                can = (tl.load(array(page, offsets, entry + _ZONE, tl.int64) + at, mask=inside, other=0) & mark) != 0
            elif op == _SYMBOLS:
                bits = tl.load(array(page, offsets, entry + _ZONE, tl.int32) + at, mask=inside, other=0)
                can = (bits.to(tl.int64) & mark) != 0
            elif op == _HASHES:
                can = tl.full(at.shape, 1, tl.int1) & (mark != 0)
            else:
                low = array(page, offsets, entry + _ZONE, tl.float64) + at
                high = array(page, offsets, entry + _ZONE_HIGH, tl.float64) + at
                least = tl.load(low, mask=inside, other=1.0)
                most = tl.load(high, mask=inside, other=0.0)
                has = least <= most
                if op == _RANGE:
                    floor, ceiling = tl.load(numbers + where), tl.load(numbers + where + 1)
                    can = has & tl.where(
                        negated, (least < floor) | (most > ceiling), (least <= ceiling) & (most >= floor)
                    )
                else:
                    south, north = tl.load(numbers + where + 4), tl.load(numbers + where + 5)
                    west, east = tl.load(numbers + where + 6), tl.load(numbers + where + 7)
                    from_west = tl.load(low + blocks, mask=inside, other=1.0)
                    to_east = tl.load(high + blocks, mask=inside, other=0.0)
                    touches = (from_west <= east) & (to_east >= west)
                    touches = touches | ((from_west <= east - 360.0) & (to_east >= west - 360.0))
                    touches = touches | ((from_west <= east + 360.0) & (to_east >= west + 360.0))
                    touches = touches | ((flags & _EVERYWHERE) != 0)
                    can = has & (negated | (touches & (least <= north) & (most >= south)))
                if (flags & _LACKING) != 0:
                    gaps = tl.load(array(page, offsets, entry + _ZONE_LACKS, tl.int32) + at, mask=inside, other=0)
                    can = can | (gaps != 0)
            stack = (stack << 1) | can.to(tl.int64)
    return (stack & 1) != 0


@triton.jit
def blocks_visible(page, at, inside, offsets, now, tenant):
    """int1 [n]: which blocks hold a row that has not expired, of the tenant. tenant int64: the bit of its code."""
    rows = tl.load(array(page, offsets, _ROWS, tl.int32) + at, mask=inside, other=0)
    expires = tl.load(array(page, offsets, _EXPIRES_MAX, tl.int64) + at, mask=inside, other=0)
    tenants = tl.load(array(page, offsets, _TENANTS, tl.int64) + at, mask=inside, other=0)
    return inside & (rows > 0) & (expires > now) & ((tenants & tenant) != 0)
