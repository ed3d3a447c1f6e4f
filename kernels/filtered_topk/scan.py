"""Kernels that find, of every row of the live blocks, those that may be among a query's best.

    plan    zone maps of all pages -> the live blocks, and a bit for each filter that may pass there
    scan    live blocks -> survivors: rows that pass and whose score, by its bound, may reach the query's threshold
    seed    the same over a sample of the live blocks (sampling.py), which leaves the best lower bound of every few
            rows instead: the r-th best of those is a threshold that the k-th best row very probably exceeds

**Layout.** Pages and their arrays: kernels/slabs/layout.py. Rows are the M axis of the tensor cores and queries the N
axis: a tile of BLOCK rows times the queries of the batch, which stay in shared memory for the whole launch.

**Scan.** Persistent programs take runs of RUN live blocks. In phase A the clause programs, epoch, expiry and tenant
are evaluated for the run's rows, GATE blocks at a time and a bit a filter, into a scratch of the program's own; in
phase B the run's tiles are loaded, multiplied and compared. A and B are loops of their own because the loop that loads
tiles must be innermost to be pipelined: its copies run a tile ahead, also while survivors are appended, and where two
programs share a multiprocessor one filters while the other multiplies. A survivor is rare (some thousand of millions),
so each takes its place with one atomic, and a program waits for none of them. The cost of a query hardly depends on k,
and no score is written but those of survivors.

**Bound.** score and exact score differ by at most slack[0] * (greatest dense norm of the block) + slack[1] * (greatest
sketch norm) + slack[2], by query: what rounding its vector to bfloat16 and its term weights to float16 takes (computed,
not estimated), the terms left out of the tile, and fp32 accumulation in any order. A threshold is compared with the
score's upper end, so no row that might belong is left out; whoever reads the survivors knows the same bound.

The scheme is that of retrieval/search/scan.py; sampling a threshold to keep k out of the scan is the idea of sample
select (Alabi, Blanchard, Gordon, Steinbach, Fast k-selection algorithms for graphics processing units, 2012).
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
# What Triton compiles has the types of its arguments, which are no Python types.
from __future__ import annotations

import triton
import triton.language as tl

from penstock.kernels.filtered_topk import sampling
from penstock.kernels.slabs import layout
from penstock.kernels.slabs.program import array, blocks_may_pass, blocks_visible, rows_pass, rows_visible

_BLOCK = tl.constexpr(layout.BLOCK)
_GROUP, _FINE, _DENSER = tl.constexpr(sampling.GROUP), tl.constexpr(sampling.FINE), tl.constexpr(sampling.DENSER)
_ROWS, _NORMS, _SCALES = tl.constexpr(layout.ROWS), tl.constexpr(layout.NORMS), tl.constexpr(layout.SCALES)
# Of `counters`, int64.
LIVE, LOOKED_AT = 0, 1
_LIVE, _LOOKED_AT = tl.constexpr(LIVE), tl.constexpr(LOOKED_AT)


@triton.jit(do_not_specialize=["filters"])
def plan(
    table,  # int64 [pages]: addresses, 0 of a page that is not there
    offsets,
    steps,
    marks,
    numbers,
    bounds,
    nows,
    owners,
    filters,  # how many
    live,  # int32 out: numbers of live blocks, counted through all pages, a page's ascending
    live_bits,  # int64 out: of each, bit f where filter f may pass
    counters,  # int64 [2], zero: how many are live, the rows they hold
    BLOCKS: tl.constexpr,  # of a page
    WIDTH: tl.constexpr,  # blocks at a time
):
    """Grid: (pages, ceil(BLOCKS / WIDTH))."""
    number = tl.program_id(0)
    page = tl.load(table + number)
    if page != 0:
        at = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
        inside = at < BLOCKS
        bits = tl.zeros([WIDTH], tl.int64)
        for one in range(filters):
            can = blocks_visible(page, at, inside, offsets, tl.load(nows + one), tl.load(owners + one))
            begin, end = tl.load(bounds + one), tl.load(bounds + one + 1)
            can = can & blocks_may_pass(page, at, inside, offsets, steps, marks, numbers, begin, end, BLOCKS)
            bits = bits | (can.to(tl.int64) << one)
        chosen = bits != 0
        count = tl.sum(chosen.to(tl.int64), axis=0)
        if count > 0:
            rows = tl.load(array(page, offsets, _ROWS, tl.int32) + at, mask=chosen, other=0)
            tl.atomic_add(counters + _LOOKED_AT, tl.sum(rows.to(tl.int64), axis=0), sem="relaxed")
            first = tl.atomic_add(counters + _LIVE, count, sem="relaxed")
            place = first + tl.cumsum(chosen.to(tl.int64), axis=0) - 1
            tl.store(live + place, number * BLOCKS + at, mask=chosen)
            tl.store(live_bits + place, bits, mask=chosen)


@triton.jit
def stride_of(units, rank, denser_rank, UNIT: tl.constexpr, SAMPLED: tl.constexpr):
    """One in how many units of UNIT rows a seed looks at, where there are so many: int32. The ranks are those of
    `Sampling`."""
    DENSE: tl.constexpr = SAMPLED // _DENSER if SAMPLED >= _DENSER else 1
    groups = units * (UNIT // _GROUP)
    fewer = tl.where(groups >= 2 * denser_rank * DENSE, DENSE, 1)
    return tl.where(groups >= 2 * rank * SAMPLED, SAMPLED, fewer).to(tl.int32)


@triton.jit
def sampled_entry(number, stride):
    """Which of the units is the `number`-th of a sample of one in `stride`: at no regular distance."""
    mixed = ((tl.full([], 0, tl.int32) + number).to(tl.uint32) * 2654435761) >> 8
    return number * stride + (mixed % stride.to(tl.uint32)).to(tl.int32)


@triton.jit
def slack_of(slack, queries, nd, ns, batch):
    """How far a score can be from the exact one. slack float32 [3, batch]; nd, ns: the block's greatest norms."""
    return tl.load(slack + queries) * nd + tl.load(slack + batch + queries) * ns + tl.load(slack + 2 * batch + queries)


@triton.jit
def resident_queries(vectors, queries, D: tl.constexpr, PIECE: tl.constexpr, AS_FLOAT: tl.constexpr):
    """The batch's vectors [D, queries] in pieces of PIECE values: a tuple, which stays in shared memory."""
    piece = tl.arange(0, PIECE)
    resident = ()
    for p in tl.static_range(D // PIECE):
        q = tl.load(vectors + queries[None, :] * D + p * PIECE + piece[:, None])
        if AS_FLOAT:
            q = q.to(tl.float32)
        resident = resident + (q,)  # type: ignore[assignment]  # noqa: RUF005  # Triton's tuples are joined so
    return resident


@triton.jit
def keep_best(score, off, passes, queries, tile, stride, maxima, width):
    """Of each GROUP rows of the `tile`-th tile of a sample, the best lower bound of every query; of each FINE rows
    where all are looked at."""
    TILE: tl.constexpr = score.shape[0]
    lower = tl.where(passes, score - off, float("-inf"))
    fine = tl.max(tl.reshape(lower, [TILE // _FINE, _FINE, score.shape[1]]), axis=1)
    best = tl.max(tl.reshape(fine, [TILE // _GROUP, _GROUP // _FINE, score.shape[1]]), axis=1)
    p_out = maxima + queries[None, :] * width
    groups = tile * (TILE // _FINE) + tl.arange(0, TILE // _FINE)
    tl.store(p_out + groups[:, None], fine, mask=(groups < tl.where(stride == 1, width, 0))[:, None])
    groups = tile * (TILE // _GROUP) + tl.arange(0, TILE // _GROUP)
    tl.store(p_out + groups[:, None], best, mask=(groups < tl.where(stride == 1, 0, width))[:, None])


@triton.jit
def append(score, off, passes, queries, threshold, slot, found, scores, slots, capacity):
    """Survivors of a tile: rows that pass and whose upper bound reaches the threshold. slot int32 [TILE]."""
    hit = passes & (score >= threshold[None, :] - off)
    counter = tl.broadcast_to((found + queries)[None, :], score.shape)
    taken = tl.atomic_add(counter, 1, mask=hit, sem="relaxed")
    stored = hit & (taken < capacity)
    out = queries[None, :] * capacity + taken
    tl.store(scores + out, score, mask=stored)
    tl.store(slots + out, tl.broadcast_to(slot[:, None], score.shape), mask=stored)


@triton.jit(do_not_specialize=["filters", "width", "rank", "denser_rank"])
def scan(
    table,
    offsets,
    live,
    live_bits,
    counters,
    steps,
    codes,
    numbers,
    longs,
    bounds,
    epochs,
    nows,
    tenants,
    filters,
    vectors,  # [batch, D]: bfloat16, or int8 where QUANTISED
    weights,  # float16 [batch, T]
    terms,  # int32 [T]
    slack,  # float32 [3, batch]
    steps_of,  # float32 [2, batch]: where QUANTISED, a query's step, and its norm for what rows lost
    filter_of,  # int32 [batch]; of a query that is not there a bit that no row has
    tau,  # float32 [batch]: thresholds; not read by a seed
    found,  # int32 [batch] out: how many survivors each query has, also past `capacity`
    scores,  # float32 [batch, capacity] out, of survivors
    slots,  # int32 [batch, capacity] out
    totals,  # int64 [filters] out: rows that pass
    maxima,  # float32 [batch, width] out, of a seed
    scratch_bits,  # int32 or int64 [programs, RUN, BLOCK]: bits for 31 or 63 filters
    scratch_at,  # int64 [programs, RUN, 2]: a block's page and number
    dense,  # byte offset of the dense (or quantised) plane in a page
    sketch,  # byte offset of the sketch
    capacity,
    width,
    rank,  # of a seed: see stride_of
    denser_rank,
    batch,  # queries, padded
    BLOCKS: tl.constexpr,
    D: tl.constexpr,  # padded
    PIECE: tl.constexpr,  # values of a row loaded together: a power of two that divides D
    L: tl.constexpr,  # lines of the sketch
    T: tl.constexpr,  # terms of the batch, padded; 0: none
    BN: tl.constexpr,
    TILE: tl.constexpr,  # rows at a time: BLOCK, or 64 where whole blocks would not fit
    PARTS: tl.constexpr,  # of a tile's columns that are multiplied after one another; queries stay only where it is 1
    RUN: tl.constexpr,  # blocks whose rows are filtered before they are scored
    GATE: tl.constexpr,  # of them, how many at a time
    SINGLE: tl.constexpr,  # one filter: a row passes for every query or for none
    SEED: tl.constexpr,
    SAMPLED: tl.constexpr,
    QUANTISED: tl.constexpr,
    STAGES: tl.constexpr,
    INTERPRET: tl.constexpr,  # on a CPU: products in float32, which the interpreter multiplies rightly
):
    """Grid: (programs, batch / BN): any number of programs, best as many as the device holds at once."""
    program = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    count = tl.load(counters + _LIVE).to(tl.int32)
    entries = count
    if SEED:
        stride = stride_of(count, rank, denser_rank, _BLOCK, SAMPLED)
        entries = (count + stride - 1) // stride
    gated = tl.arange(0, GATE * _BLOCK)
    gate, gate_rows = gated // _BLOCK, gated % _BLOCK  # which block of a step, and the row in it
    queries = tl.program_id(1) * BN + tl.arange(0, BN)
    bits_of = scratch_bits + program * RUN * _BLOCK
    places = scratch_at + program * RUN * 2
    WORD: tl.constexpr = scratch_bits.dtype.element_ty  # a bit a filter
    filter_bits = tl.minimum(tl.load(filter_of + queries), WORD.primitive_bitwidth - 1).to(WORD)
    VALUE: tl.constexpr = vectors.dtype.element_ty
    WIDE: tl.constexpr = VALUE.primitive_bitwidth // 8
    SUM: tl.constexpr = tl.int32 if QUANTISED else tl.float32
    piece = tl.arange(0, PIECE)
    as_float: tl.constexpr = INTERPRET and not QUANTISED
    if PARTS == 1:
        resident = resident_queries(vectors, queries, D, PIECE, as_float)
    if T > 0:
        lines = tl.arange(0, T)
        line = tl.load(terms + lines) * _BLOCK
        w = tl.load(weights + queries[None, :] * T + lines[:, None])
        if INTERPRET:
            w = w.to(tl.float32)
    norms_at, scales_at = tl.load(offsets + _NORMS), tl.load(offsets + _SCALES)
    tile_rows = tl.arange(0, TILE)
    if not SEED:  # which nobody's queries never reach
        somebody = tl.load(filter_of + queries) < filters
        threshold = tl.where(somebody, tl.load(tau + queries), float("inf"))
    if QUANTISED:
        query_step, query_norm = tl.load(steps_of + queries), tl.load(steps_of + batch + queries)

    for run in range(tl.program_id(0), tl.cdiv(entries, RUN), tl.num_programs(0)):
        length = tl.minimum(entries - run * RUN, RUN)
        # A: which rows of the run pass, GATE blocks at a time: each waits for memory a few times, so together.
        for done in range(0, length, GATE):
            there = done + gate < length
            number = run * RUN + tl.minimum(done + gate, length - 1)
            entry = tl.minimum(sampled_entry(number, stride), count - 1) if SEED else number
            block = tl.load(live + entry)
            page_number = block // BLOCKS
            page = tl.load(table + page_number)
            at = (block % BLOCKS) * _BLOCK + gate_rows
            first = page_number.to(tl.int64) * (BLOCKS * _BLOCK)
            may = tl.load(live_bits + entry)
            bits = tl.zeros([GATE * _BLOCK], WORD)
            for one in range(filters):
                if tl.max(((may >> one) & 1).to(tl.int32), axis=0) != 0:
                    ok = there & rows_visible(
                        page, at, offsets, tl.load(epochs + one), tl.load(nows + one), tl.load(tenants + one)
                    )
                    clause, end = tl.load(bounds + one), tl.load(bounds + one + 1)
                    ok = ok & rows_pass(page, first, at, offsets, steps, codes, numbers, longs, clause, end)
                    bits = bits | (ok.to(WORD) << one)
                    if not SEED and tl.program_id(1) == 0:
                        tl.atomic_add(totals + one, tl.sum(ok.to(tl.int64), axis=0), sem="relaxed")
            tl.store(bits_of + done * _BLOCK + gate * _BLOCK + gate_rows, bits, mask=there)
            tl.store(places + 2 * (done + gate), page, mask=there & (gate_rows == 0))
            tl.store(places + 2 * (done + gate) + 1, block.to(tl.int64), mask=there & (gate_rows == 0))
        tl.debug_barrier()

        # B: their scores, a part of a tile's columns a turn.
        if PARTS > 1:
            sums = tl.zeros([TILE, BN], SUM)
        for i in tl.range(length * (_BLOCK // TILE) * PARTS, num_stages=STAGES):
            turn = i // PARTS
            part = i % PARTS
            place = turn // (_BLOCK // TILE)
            page = tl.load(places + 2 * place)
            block = tl.load(places + 2 * place + 1)
            begin = (turn - place * (_BLOCK // TILE)) * TILE  # of the tile in its block
            at = (block % BLOCKS) * _BLOCK + begin
            tile = tl.multiple_of((page + dense + at * (D * WIDE)).to(tl.pointer_type(VALUE)), 16)
            plane = tile + part * (D // PARTS) + tile_rows[:, None] * D + piece[None, :]
            if PARTS == 1:
                sums = tl.zeros([TILE, BN], SUM)
            for p in tl.static_range(D // PARTS // PIECE):
                x = tl.load(plane + p * PIECE)
                if PARTS == 1:
                    q = resident[p]
                else:
                    q = tl.load(vectors + part * (D // PARTS) + queries[None, :] * D + p * PIECE + piece[:, None])
                if as_float:
                    x, q = x.to(tl.float32), q.to(tl.float32)
                sums = tl.dot(x, q, sums, out_dtype=SUM)
            if T > 0:
                lexical = (page + sketch + (block % BLOCKS) * (L * _BLOCK) + begin).to(tl.pointer_type(tl.int8))
                named = tl.multiple_of(lexical, 16) + line[:, None] + tile_rows[None, :]
                # Once a tile, but not under the condition below: what is loaded there is not loaded ahead.
                if PARTS > 1:
                    due = tl.full([T, TILE], part, tl.int32) == PARTS - 1
                s = tl.load(named) if PARTS == 1 else tl.load(named, mask=due, other=0)
                s = tl.trans(s.to(tl.float32) if INTERPRET else s.to(tl.float16))
                if not QUANTISED:
                    sums = tl.dot(s, w, sums)
            norms = (page + norms_at).to(tl.pointer_type(tl.float32)) + (block % BLOCKS) * 2
            off = tl.load(slack + queries) * tl.load(norms) + tl.load(slack + 2 * batch + queries)
            if T > 0:
                off += tl.load(slack + batch + queries) * tl.load(norms + 1)
            off = off[None, :]
            bits = tl.load(bits_of + place * _BLOCK + begin + tile_rows)
            if QUANTISED:
                scales = (page + scales_at).to(tl.pointer_type(tl.float32)) + (at + tile_rows) * 2
                row_step, row_lost = tl.load(scales), tl.load(scales + 1)
            if part == PARTS - 1:
                score, bound = sums, off
                if QUANTISED:
                    score = sums.to(tl.float32) * (row_step[:, None] * query_step[None, :])
                    bound = off + row_lost[:, None] * query_norm[None, :]
                    if T > 0:
                        score = tl.dot(s, w, score)
                if SINGLE:
                    passes = tl.broadcast_to((bits != 0)[:, None], [TILE, BN])
                else:
                    passes = ((bits[:, None] >> filter_bits[None, :]) & 1) != 0
                if SEED:
                    keep_best(score, bound, passes, queries, run * RUN * (_BLOCK // TILE) + turn, stride, maxima, width)
                else:
                    slot = (block * _BLOCK).to(tl.int32) + begin + tile_rows
                    append(score, bound, passes, queries, threshold, slot, found, scores, slots, capacity)
                if PARTS > 1:
                    sums = tl.zeros([TILE, BN], SUM)
        tl.debug_barrier()
