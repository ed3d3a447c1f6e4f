"""Kernels that list the rows which pass a filter, and score only those.

    collect   live blocks -> a list of slots for each filter: positions by prefix sum, one atomic a block and filter
    gather    a filter's list -> survivors of its queries, or the maxima of a seed, as kernels/filtered_topk/scan.py has
              them: the same bounds, the same appends, the same finish

Of a row that does not pass nothing but its filter columns is read. A list's rows lie anywhere, so a tile is TILE rows
of D values each from its own address: whole lines of 128 bytes, copied asynchronously, in no order. What a row has of a
term is a byte of its own, since sketches are term-major for scans: only the terms of the tile's own queries are read.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
# What Triton compiles has the types of its arguments, which are no Python types.
from __future__ import annotations

import triton
import triton.language as tl

from penstock.kernels.filtered_topk.scan import LIVE, append, keep_best, resident_queries, sampled_entry, stride_of
from penstock.kernels.slabs import layout
from penstock.kernels.slabs.program import rows_pass, rows_visible

_BLOCK = tl.constexpr(layout.BLOCK)
_LIVE = tl.constexpr(LIVE)
_NORMS = tl.constexpr(layout.NORMS)


@triton.jit(do_not_specialize=["filters"])
def collect(
    table,
    offsets,
    live,  # int32: numbers of live blocks
    live_bits,  # int64: which filters may pass there
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
    lists,  # int32 [filters, room] out: slots
    lengths,  # int64 [filters], zero: how many rows pass, also past `room`
    room,
    BLOCKS: tl.constexpr,
):
    """Grid: any number of programs. The order within a list is not determined."""
    count = tl.load(counters + _LIVE).to(tl.int32)
    rows = tl.arange(0, _BLOCK)
    for entry in range(tl.program_id(0), count, tl.num_programs(0)):
        block = tl.load(live + entry)
        may = tl.load(live_bits + entry)
        page_number = block // BLOCKS
        page = tl.load(table + page_number)
        at = (block % BLOCKS) * _BLOCK + rows
        first = page_number.to(tl.int64) * (BLOCKS * _BLOCK)
        for one in range(filters):
            if ((may >> one) & 1) != 0:
                ok = rows_visible(page, at, offsets, tl.load(epochs + one), tl.load(nows + one), tl.load(tenants + one))
                begin, end = tl.load(bounds + one), tl.load(bounds + one + 1)
                ok = ok & rows_pass(page, first, at, offsets, steps, codes, numbers, longs, begin, end)
                passing = tl.sum(ok.to(tl.int64), axis=0)
                if passing > 0:
                    taken = tl.atomic_add(lengths + one, passing, sem="relaxed")
                    place = taken + tl.cumsum(ok.to(tl.int64), axis=0) - 1
                    p_out = lists + tl.full([], 1, tl.int64) * one * room + place
                    tl.store(p_out, block * _BLOCK + rows, mask=ok & (place < room))


@triton.jit(do_not_specialize=["width", "rank", "denser_rank"])
def gather(
    table,
    offsets,
    lists,
    lengths,
    room,
    vectors,  # bfloat16 [batch, D]; the queries of a tile of BN share a filter
    weights,  # float16 [batch, T]
    terms,  # int32 [batch / BN, T]: of each tile of queries
    slack,  # float32 [3, batch]
    filter_of,  # int32 [batch]
    tau,  # float32 [batch]: thresholds; not read by a seed
    found,  # int32 [batch] out
    scores,  # float32 [batch, capacity] out
    slots,  # int32 [batch, capacity] out
    maxima,  # float32 [batch, width] out, of a seed
    dense,  # byte offset of the dense plane in a page
    sketch,  # byte offset of the sketch
    capacity,
    width,
    rank,  # of a seed: see stride_of
    denser_rank,
    batch,
    BLOCKS: tl.constexpr,
    D: tl.constexpr,
    PIECE: tl.constexpr,
    L: tl.constexpr,
    T: tl.constexpr,
    BN: tl.constexpr,
    TILE: tl.constexpr,  # rows at a time
    PARTS: tl.constexpr,  # of a tile's columns, as in a scan
    SEED: tl.constexpr,
    SAMPLED: tl.constexpr,
    STAGES: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Grid: (programs, batch / BN)."""
    queries = tl.program_id(1) * BN + tl.arange(0, BN)
    one = tl.load(filter_of + tl.program_id(1) * BN)
    asked = tl.load(filter_of + queries) == one
    rows = tl.arange(0, TILE)
    piece = tl.arange(0, PIECE)
    length = tl.minimum(tl.load(lengths + one), room).to(tl.int32)
    tiles = (length + TILE - 1) // TILE
    units = tiles
    if SEED:
        stride = stride_of(tiles, rank, denser_rank, TILE, SAMPLED)
        units = (tiles + stride - 1) // stride
    if PARTS == 1:
        resident = resident_queries(vectors, queries, D, PIECE, INTERPRET)
    else:
        score = tl.zeros([TILE, BN], tl.float32)
    if T > 0:
        lines = tl.arange(0, T)
        line = tl.load(terms + tl.program_id(1) * T + lines) * _BLOCK
        w = tl.load(weights + queries[None, :] * T + lines[:, None])
        if INTERPRET:
            w = w.to(tl.float32)
    slack_dense, slack_sketch = tl.load(slack + queries), tl.load(slack + batch + queries)
    slack_least = tl.load(slack + 2 * batch + queries)
    norms_at = tl.load(offsets + _NORMS)
    if not SEED:
        threshold = tl.load(tau + queries)
    mine = lists + tl.full([], 1, tl.int64) * one * room

    turns = tl.cdiv(units - tl.program_id(0), tl.num_programs(0)) * PARTS
    for turn in tl.range(turns, num_stages=STAGES):
        part = turn % PARTS
        i = tl.program_id(0) + (turn // PARTS) * tl.num_programs(0)
        number = tl.minimum(sampled_entry(i, stride), tiles - 1) if SEED else i
        at = number * TILE + rows
        there = at < length
        slot = tl.load(mine + at, mask=there, other=0)
        block = slot // _BLOCK
        page = tl.load(table + block // BLOCKS)
        within = block % BLOCKS
        row = within.to(tl.int64) * _BLOCK + slot % _BLOCK
        plane = tl.multiple_of((page + dense + row * (2 * D)).to(tl.pointer_type(tl.bfloat16)), [16])
        plane = plane[:, None] + part * (D // PARTS) + piece[None, :]
        if PARTS == 1:
            score = tl.zeros([TILE, BN], tl.float32)
        for p in tl.static_range(D // PARTS // PIECE):
            x = tl.load(plane + p * PIECE)
            if PARTS == 1:
                q = resident[p]
            else:
                q = tl.load(vectors + part * (D // PARTS) + queries[None, :] * D + p * PIECE + piece[:, None])
            if INTERPRET:
                x, q = x.to(tl.float32), q.to(tl.float32)
            score = tl.dot(x, q, score)
        if T > 0:
            lexical = (page + sketch + within.to(tl.int64) * (L * _BLOCK) + slot % _BLOCK).to(tl.pointer_type(tl.int8))
            named = lexical[:, None] + line[None, :]
            if PARTS > 1:
                due = tl.full([TILE, T], part, tl.int32) == PARTS - 1  # once a tile
            s = tl.load(named) if PARTS == 1 else tl.load(named, mask=due, other=0)
            score = tl.dot(s.to(tl.float32) if INTERPRET else s.to(tl.float16), w, score)
        norms = (page + norms_at).to(tl.pointer_type(tl.float32)) + within * 2
        nd, ns = tl.load(norms), tl.load(norms + 1)
        off = slack_dense[None, :] * nd[:, None] + slack_sketch[None, :] * ns[:, None] + slack_least[None, :]
        if part == PARTS - 1:
            passes = there[:, None] & asked[None, :]
            if SEED:
                keep_best(score, off, passes, queries, i, stride, maxima, width)
            else:
                append(score, off, passes, queries, threshold, slot, found, scores, slots, capacity)
            if PARTS > 1:
                score = tl.zeros([TILE, BN], tl.float32)
