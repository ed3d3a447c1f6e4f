"""Kernels that make the best k of a scan's survivors: exact scores, in the total order.

    threshold   of a seed's maxima the r-th best: what the scan compares with (r: sampling.py)
    select      of a query's survivors those whose upper bound reaches the k-th best lower bound
    rescore     their exact scores: the correctly rounded inner products of kernels/filtered_topk/reference.py
    rank        how many rows are better, for each; the best k go to their places

**K-th best without a sort.** A float32 is mapped to an integer of the same order, and the k-th largest is found a bit
at a time: 32 counts, each a reduction over values that stay in registers. No sort is needed at all, since `rank` counts
too: a row's place is how many rows come before it. That is quadratic in what is left (k and a few more), but it is
nothing but comparisons, in any order; ties fall to the row's hash and equal inputs to equal bytes.

**Exact scores.** A bfloat16 or int8 times a float32 is exact in float64. Sums are kept as s + e, both float64, by
Knuth's TwoSum; what e's own additions would lose is looked at, and it is nearly always nothing. Then s + e is the exact
sum, and one more addition rounds it correctly. A row of which e lost something is marked: its score is the caller's to
settle (`exact_dot`). After Ogita, Rump, Oishi, Accurate sum and dot product, 2005.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
# What Triton compiles has the types of its arguments, which are no Python types.
from __future__ import annotations

import triton
import triton.language as tl

from penstock.kernels.filtered_topk import sampling
from penstock.kernels.filtered_topk.scan import slack_of, stride_of
from penstock.kernels.slabs import layout

_BLOCK = tl.constexpr(layout.BLOCK)
_NORMS, _SCALES = tl.constexpr(layout.NORMS), tl.constexpr(layout.SCALES)
_VALUES = tl.constexpr(layout.VALUES)
_GROUP, _FINE = tl.constexpr(sampling.GROUP), tl.constexpr(sampling.FINE)
# A row of `status`, int32.
FOUND, KEPT, PROVEN, DOUBTFUL, STATUS = 0, 1, 2, 3, 4
_GREATEST = tl.constexpr(3.4028234663852886e38)  # of float32
_FOUND, _KEPT, _PROVEN, _DOUBTFUL, _STATUS = (tl.constexpr(n) for n in range(5))


@triton.jit
def ordered(values):
    """float32 as uint32, in the same order; none is 0."""
    raw = values.to(tl.int32, bitcast=True)
    return (raw ^ ((raw >> 31) & 0x7FFFFFFF)).to(tl.uint32, bitcast=True) ^ 0x80000000


@triton.jit
def unordered(key):
    """float32 of what `ordered` made."""
    raw = (key ^ 0x80000000).to(tl.int32, bitcast=True)
    return (raw ^ ((raw >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["width", "rank", "denser_rank", "k"])
def threshold(
    maxima,
    units,
    unit_of,
    tau,
    width,
    rank,
    denser_rank,
    k,
    SAMPLED: tl.constexpr,
    UNIT: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """The rank-th best of a query's maxima, by how many units were looked at; -inf where there are not so many.
    Grid: (queries,).

    maxima float32 [queries, width]; units int64: of the unit_of[query]-th (int32) how many there were to sample, of
    UNIT rows each; tau float32 [queries] out.
    """
    query = tl.program_id(0)
    count = tl.load(units + tl.load(unit_of + query)).to(tl.int32)
    stride = stride_of(count, rank, denser_rank, UNIT, SAMPLED)
    groups = tl.where(stride == 1, UNIT // _FINE, UNIT // _GROUP)
    rank = tl.where(stride == SAMPLED, rank, tl.where(stride == 1, k, denser_rank))
    entries = tl.minimum((count + stride - 1) // stride * groups, width)
    nothing = ordered(tl.full([], float("-inf"), tl.float32))
    key = tl.zeros([], tl.uint32)
    for bit in range(32):
        tried = key | (tl.full([], 1, tl.uint32) << (31 - bit))
        reached = tl.zeros([], tl.int32)
        for begin in range(0, entries, CHUNK):
            at = begin + tl.arange(0, CHUNK)
            value = tl.load(maxima + query.to(tl.int64) * width + at, mask=at < entries, other=float("-inf"))
            reached += tl.sum((ordered(value) >= tried).to(tl.int32), axis=0)
        key = tl.where(reached >= rank, tried, key)
    known = (key > nothing) & (entries >= rank)
    tl.store(tau + query, tl.where(known, unordered(tl.maximum(key, nothing)), float("-inf")))


@triton.jit(do_not_specialize=["k"])
def select(
    table,
    offsets,
    scores,  # float32 [queries, capacity]
    slots,  # int32 [queries, capacity]
    found,  # int32 [queries]
    tau,  # float32 [queries]
    slack,  # float32 [3, batch]
    kept,  # int32 [queries, capacity] out: slots
    reached,  # float32 [queries] out: what the k best reach at least, -inf of fewer
    status,  # int32 [queries, STATUS] out
    k,
    batch,  # queries, padded
    query_norms,  # float32 [batch]: where QUANTISED, what a row's lost part is multiplied by
    BLOCKS: tl.constexpr,
    CAPACITY: tl.constexpr,
    QUANTISED: tl.constexpr,
):
    """Grid: (queries,)."""
    query = tl.program_id(0)
    total = tl.load(found + query)
    count = tl.minimum(total, CAPACITY)
    at = tl.arange(0, CAPACITY)
    there = at < count
    mine = query * CAPACITY + at
    slot = tl.load(slots + mine, mask=there, other=0)
    score = tl.load(scores + mine, mask=there, other=0.0)
    block = slot // _BLOCK
    page = tl.load(table + block // BLOCKS, mask=there, other=0)
    norms = (page + tl.load(offsets + _NORMS)).to(tl.pointer_type(tl.float32)) + (block % BLOCKS) * 2
    nd, ns = tl.load(norms, mask=there, other=0.0), tl.load(norms + 1, mask=there, other=0.0)
    off = slack_of(slack, query, nd, ns, batch)
    if QUANTISED:
        row = (block % BLOCKS) * _BLOCK + slot % _BLOCK
        scales = (page + tl.load(offsets + _SCALES)).to(tl.pointer_type(tl.float32)) + row * 2 + 1
        off += tl.load(query_norms + query) * tl.load(scales, mask=there, other=0.0)
    key = tl.where(there, ordered(score - off), tl.zeros([CAPACITY], tl.uint32))
    best = tl.zeros([], tl.uint32)
    for bit in range(32):
        tried = best | (tl.full([], 1, tl.uint32) << (31 - bit))
        best = tl.where(tl.sum((key >= tried).to(tl.int32), axis=0) >= k, tried, best)
    enough = count >= k
    least = tl.where(enough, unordered(best), float("-inf"))
    keep = there & (score + off >= least)
    place = tl.cumsum(keep.to(tl.int32), axis=0) - 1
    tl.store(kept + query * CAPACITY + place, slot, mask=keep)
    bar = tl.load(tau + query)
    whole = total <= CAPACITY
    proven = whole & ((bar == float("-inf")) | (enough & (least >= bar)))
    tl.store(reached + query, least)
    out = status + query * _STATUS
    tl.store(out + _FOUND, total)
    tl.store(out + _KEPT, tl.sum(keep.to(tl.int32), axis=0))
    tl.store(out + _PROVEN, proven.to(tl.int32))
    tl.store(out + _DOUBTFUL, 0)


@triton.jit
def two_sum(a, b):
    """a + b without loss: the rounded sum, and what rounding took (Knuth)."""
    total = a + b
    virtual = total - a
    return total, (a - (total - virtual)) + (b - virtual)


@triton.jit
def accumulate(total, rest, lost, term):
    """Adds `term` to total + rest; `lost` becomes other than 0 when the rest could not hold it."""
    high = total + term
    virtual = high - total
    error = (total - (high - virtual)) + (term - virtual)
    low = rest + error
    virtual = low - rest
    gone = (rest - (low - virtual)) + (error - virtual)
    return high, low, lost | (gone != 0.0)


@triton.jit
def folded(total, rest, lost, ROWS: tl.constexpr, WIDTH: tl.constexpr, LEVELS: tl.constexpr):
    """The sums over axis 1 of [ROWS, 2^LEVELS]: total and rest float64 [ROWS], and whether something was lost."""
    bad = tl.max(lost.to(tl.int32), axis=1)
    for level in tl.static_range(LEVELS):
        left, right = tl.split(tl.reshape(total, [ROWS, WIDTH >> (level + 1), 2]))
        left_rest, right_rest = tl.split(tl.reshape(rest, [ROWS, WIDTH >> (level + 1), 2]))
        total, error = two_sum(left, right)
        rest, gone = two_sum(left_rest, right_rest)
        rest, more = two_sum(rest, error)
        bad = tl.maximum(bad, tl.max(((gone != 0.0) | (more != 0.0)).to(tl.int32), axis=1))
    return tl.reshape(total, [ROWS]), tl.reshape(rest, [ROWS]), bad


@triton.jit
def rescore(
    table,
    offsets,
    queries,  # float32 [queries, D]
    starts,  # int32 [queries + 1]
    terms,  # int32
    weights,  # float32
    kept,  # int32 [queries, capacity]
    status,  # int32 [queries, STATUS]
    dense,  # float64 [queries, capacity] out
    lexical,  # float64 [queries, capacity] out
    ties,  # int64 [queries, capacity] out: the rows' hashes
    near,  # float32 [queries, capacity] out: dense + lexical, rounded
    plane,  # byte offset of the dense plane
    sketch,  # byte offset of the sketch
    hashes,  # the entry of the rows' hashes in the table of offsets
    capacity,
    BLOCKS: tl.constexpr,
    D: tl.constexpr,  # padded
    L: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,  # columns at a time: a power of two that divides D
    LEVELS: tl.constexpr,  # its logarithm
    LINES: tl.constexpr,  # terms at a time: a power of two
    LINE_LEVELS: tl.constexpr,
):
    """Grid: (queries, programs): any number of programs, which share what was kept of a query."""
    query = tl.program_id(0)
    count = tl.load(status + query * _STATUS + _KEPT)
    for start in range(tl.program_id(1) * ROWS, count, tl.num_programs(1) * ROWS):
        at = start + tl.arange(0, ROWS)
        there = at < count
        slot = tl.load(kept + query.to(tl.int64) * capacity + at, mask=there, other=0)
        block = slot // _BLOCK
        page = tl.load(table + block // BLOCKS, mask=there, other=0)
        row = ((block % BLOCKS) * _BLOCK + slot % _BLOCK).to(tl.int64)
        by_dense = tl.zeros([ROWS], tl.float64)
        by_term = tl.zeros([ROWS], tl.float64)
        doubt = tl.zeros([ROWS], tl.int32)
        if D > 0:
            columns = tl.arange(0, WIDTH)
            values = (page + plane).to(tl.pointer_type(tl.bfloat16))[:, None] + row[:, None] * D + columns[None, :]
            total = tl.zeros([ROWS, WIDTH], tl.float64)
            rest = tl.zeros([ROWS, WIDTH], tl.float64)
            lost = tl.zeros([ROWS, WIDTH], tl.int1)
            for begin in range(0, D, WIDTH):
                x = tl.load(values + begin, mask=there[:, None], other=0.0).to(tl.float64)
                q = tl.load(queries + query * D + begin + columns).to(tl.float64)
                total, rest, lost = accumulate(total, rest, lost, x * q[None, :])
            row_total, row_rest, doubt = folded(total, rest, lost, ROWS, WIDTH, LEVELS)
            by_dense = row_total + row_rest
        if L > 0:
            first, end = tl.load(starts + query), tl.load(starts + query + 1)
            if first < end:
                lines = tl.arange(0, LINES)
                bytes_of = (
                    (page + sketch).to(tl.pointer_type(tl.int8))
                    + (block % BLOCKS).to(tl.int64) * (L * _BLOCK)
                    + slot % _BLOCK
                )
                sums = tl.zeros([ROWS, LINES], tl.float64)
                rests = tl.zeros([ROWS, LINES], tl.float64)
                gone = tl.zeros([ROWS, LINES], tl.int1)
                for begin in range(first, end, LINES):
                    inside = begin + lines < end
                    term = tl.load(terms + begin + lines, mask=inside, other=0)
                    w = tl.load(weights + begin + lines, mask=inside, other=0.0).to(tl.float64)
                    mask = there[:, None] & inside[None, :]
                    s = tl.load(bytes_of[:, None] + term[None, :] * _BLOCK, mask=mask, other=0).to(tl.float64)
                    sums, rests, gone = accumulate(sums, rests, gone, s * w[None, :])
                term_total, term_rest, bad = folded(sums, rests, gone, ROWS, LINES, LINE_LEVELS)
                by_term = term_total + term_rest
                doubt = tl.maximum(doubt, bad)
        hash_of = (page + tl.load(offsets + hashes + _VALUES)).to(tl.pointer_type(tl.int64)) + row
        out = query.to(tl.int64) * capacity + at
        tl.store(dense + out, by_dense, mask=there)
        tl.store(lexical + out, by_term, mask=there)
        tl.store(ties + out, tl.load(hash_of, mask=there, other=0), mask=there)
        score = tl.minimum(tl.maximum(by_dense + by_term, -_GREATEST), _GREATEST)  # so that differences are numbers
        tl.store(near + out, score.to(tl.float32), mask=there)
        unsettled = tl.sum(tl.where(there, doubt, 0), axis=0)
        if unsettled > 0:
            tl.atomic_add(status + query * _STATUS + _DOUBTFUL, unsettled, sem="relaxed")


@triton.jit(do_not_specialize=["k"])
def rank(
    kept,
    status,
    dense,
    lexical,
    ties,
    near,
    best_slots,  # int64 [queries, k] out
    best_dense,  # float64 [queries, k] out
    best_lexical,  # float64 [queries, k] out
    capacity,
    k,
    ROWS: tl.constexpr,
    OTHERS: tl.constexpr,
):
    """Grid: (queries, programs): any number of programs, which share what was kept of a query.

    Places past what was kept are not written. Rounding to float32 turns no order about, so rows that differ in it are
    compared by the sign of a difference alone, a tile of OTHERS while the next is on its way; a tile in which two do
    not differ, as every row and itself, is compared by scores and hashes instead."""
    query = tl.program_id(0)
    count = tl.load(status + query * _STATUS + _KEPT)
    base = query.to(tl.int64) * capacity
    for start in range(tl.program_id(1) * ROWS, count, tl.num_programs(1) * ROWS):
        at = start + tl.arange(0, ROWS)
        there = at < count
        mine = tl.load(near + base + at, mask=there, other=float("inf"))[:, None]
        better = tl.zeros([ROWS, OTHERS], tl.int32)
        others = tl.arange(0, OTHERS)
        ahead = tl.load(near + base + others, mask=others < count, other=float("-inf"))
        for begin in range(0, count, OTHERS):
            other, theirs = begin + others, ahead[None, :]
            upcoming = other + OTHERS
            ahead = tl.load(near + base + upcoming, mask=upcoming < count, other=float("-inf"))
            apart = mine - theirs
            if tl.min(tl.abs(apart)) > 0:
                better += (apart.to(tl.int32, bitcast=True) >> 31) & 1
            else:
                better += comes_first(dense, lexical, ties, base, at, other, count).to(tl.int32)
        before = tl.sum(better, axis=1)
        chosen = there & (before < k)
        out = query.to(tl.int64) * k + before
        slot = tl.load(kept + base + at, mask=there, other=0).to(tl.int64)
        tl.store(best_slots + out, slot, mask=chosen)
        tl.store(best_dense + out, tl.load(dense + base + at, mask=there, other=0.0), mask=chosen)
        tl.store(best_lexical + out, tl.load(lexical + base + at, mask=there, other=0.0), mask=chosen)


@triton.jit
def comes_first(dense, lexical, ties, base, at, other, count):
    """int1 [at, other]: whether the row of `other` is there and comes before that of `at` in the total order."""
    there, counts = at < count, other < count
    score = tl.load(dense + base + at, mask=there, other=0.0) + tl.load(lexical + base + at, mask=there, other=0.0)
    theirs = tl.load(dense + base + other, mask=counts, other=0.0)
    theirs += tl.load(lexical + base + other, mask=counts, other=0.0)
    tie = tl.load(ties + base + at, mask=there, other=0)
    their_tie = tl.load(ties + base + other, mask=counts, other=0)
    by_hash = (theirs[None, :] == score[:, None]) & (their_tie[None, :] < tie[:, None])
    return ((theirs[None, :] > score[:, None]) | by_hash) & counts[None, :]


@triton.jit(do_not_specialize=["count"])
def norms(table, offsets, slots, out, count, BLOCKS: tl.constexpr, QUANTISED: tl.constexpr):
    """Of slots (int32 [count]) the greatest norms of their blocks, and where QUANTISED what the row lost: float32
    [count, 3]. Grid: (ceil(count / 128),)."""
    at = tl.program_id(0) * 128 + tl.arange(0, 128)
    there = at < count
    slot = tl.load(slots + at, mask=there, other=0)
    block = slot // _BLOCK
    page = tl.load(table + block // BLOCKS, mask=there, other=0)
    of_block = (page + tl.load(offsets + _NORMS)).to(tl.pointer_type(tl.float32)) + (block % BLOCKS) * 2
    tl.store(out + at * 3, tl.load(of_block, mask=there, other=0.0), mask=there)
    tl.store(out + at * 3 + 1, tl.load(of_block + 1, mask=there, other=0.0), mask=there)
    lost = tl.zeros([128], tl.float32)
    if QUANTISED:
        row = (block % BLOCKS) * _BLOCK + slot % _BLOCK
        scales = (page + tl.load(offsets + _SCALES)).to(tl.pointer_type(tl.float32)) + row * 2 + 1
        lost = tl.load(scales, mask=there, other=0.0)
    tl.store(out + at * 3 + 2, lost, mask=there)
