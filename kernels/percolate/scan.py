"""The two kernels of percolation: which queries pass for some posting, and which of their pairs score enough.

The list between them does what a compacted scan does on a host (retrieval/percolate/scan.py): a query that no posting
passes is never read, so selective filters cost 20 bytes a query and not 860, and the loop of `match` has nothing but
full tiles to load, which is what lets Triton pipeline it. The order of either output is that of the atomics.

Source: tiled products with a threshold in the epilogue are the range search of Faiss and cuVS without their score
matrix; the appended survivors are those of shared/research/retrieval.md, "Design".
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
# Triton's language is typed when it is compiled, not before.

from __future__ import annotations

import triton
import triton.language as tl

_UNSAFE = tl.constexpr(1e34)  # slack from which on a product may leave float32's range: 2^-9 of 1e37, and a little
_USUAL = tl.constexpr(8)  # terms of a query: most have no more
_SECTOR = tl.constexpr(32)  # bytes: what L2 reads of device memory at least
_TABLES = tl.constexpr(3)  # addresses a slab


@triton.jit
def select(
    slabs,
    places,
    bits,
    tenants,
    rows,
    slots,
    masks,
    counters,
    STRIDE: tl.constexpr,
    SLAB: tl.constexpr,
    PLACE: tl.constexpr,
    DEMANDS: tl.constexpr,
):
    """Appends the queries of places[program] that some posting passes. Grid: (places,).

    slabs     int64 [slabs, 3]: addresses of a slab's records uint8 [SLAB * PLACE, STRIDE], its tenants
              int32 [SLAB, PLACE] (-1: no query there) and its demands int32 [SLAB, DEMANDS, PLACE]
    places    int32 [n]: which to read
    bits      int64 [conditions]: of each condition the postings that it holds for; number 0 holds for all
    tenants   int64 [tenants]: of each tenant its postings
    rows      int64 [room]: out, the address of the query's record
    slots     int32 [room]: out, place * PLACE + row
    masks     int64 [room]: out, the postings that pass; never 0
    counters  int64 [2]: the first is how many were appended

    Invariant: room >= n * PLACE, so nothing is cut. The rows of a place stand together and in order.
    """
    place = tl.load(places + tl.program_id(0))
    slab = slabs + (place // SLAB) * _TABLES
    inside = place % SLAB
    o_row = tl.arange(0, PLACE)
    tenant = tl.load((tl.load(slab + 1)).to(tl.pointer_type(tl.int32)) + inside * PLACE + o_row)
    b_mask = tl.load(tenants + tenant, mask=tenant >= 0, other=0)
    demands = (tl.load(slab + 2)).to(tl.pointer_type(tl.int32)) + inside * (DEMANDS * PLACE) + o_row
    for place_of in tl.static_range(DEMANDS):
        demand = tl.load(demands + place_of * PLACE, mask=b_mask != 0, other=0)
        b_mask = b_mask & tl.load(bits + demand, mask=b_mask != 0, other=0)
    m_passes = b_mask != 0
    b_one = m_passes.to(tl.int32)
    total = tl.sum(b_one, axis=0)
    if total > 0:
        at = tl.atomic_add(counters, total.to(tl.int64), sem="relaxed") + (tl.cumsum(b_one, axis=0) - b_one)
        row = tl.load(slab) + (inside * PLACE + o_row).to(tl.int64) * STRIDE
        tl.store(rows + at, row, mask=m_passes)
        tl.store(slots + at, place * PLACE + o_row, mask=m_passes)
        tl.store(masks + at, b_mask, mask=m_passes)


@triton.jit
def product(b_rows, b_postings, b_score, INTERPRET: tl.constexpr):
    """b_score + b_rows @ b_postings, in float32. Triton's interpreter has no right product of bfloat16."""
    if INTERPRET:
        return tl.dot(b_rows.to(tl.float32), b_postings.to(tl.float32), b_score)
    return tl.dot(b_rows, b_postings, b_score)


@triton.jit
def fetch(addresses):
    """Has L2 read what lies there. addresses int64 [n]."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [addresses], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def of_term(words, sketches, o_n, BN: tl.constexpr):
    """float32 [BM, BN]: what one word of each record adds to its scores. words: pointers int32 [BM]."""
    word = tl.load(words)
    weight = (word & -65536).to(tl.float32, bitcast=True)
    b_sketch = tl.load(sketches + (word & 65535)[:, None] * BN + o_n[None, :])
    return weight[:, None] * b_sketch.to(tl.float32)


@triton.jit(do_not_specialize=["capacity"])
def match(
    rows,
    slots,
    masks,
    counters,
    postings,
    sketches,
    dense_norm,
    lexical_norm,
    floor,
    out_slots,
    out_postings,
    out_scores,
    capacity,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    TERMS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    RESIDENT: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Appends the pairs of the list that pass and may reach their query's threshold. Grid: any; programs share tiles.

    rows, slots, masks, counters    as `select` left them; counters[1] is how many pairs were found
    postings      bfloat16 [BN, WIDTH]: the batch; zeros behind its last posting and its last value
    sketches      int8 [L, BN]: the batch's sketches, a line a term
    dense_norm, lexical_norm, floor   float32: the batch's greatest norms rounded up, and what underflow can take
    out_slots int32, out_postings int32, out_scores float32 [capacity]: out; what does not fit is counted, not written

    A pair is left out only where score + slack < least, slack being the query's errors times the batch's norms
    (`rows.py` proves it); where a product may leave float32's range it is never left out.

    The first BN bits of a mask are the postings. The tile's records come straight from the slabs by their addresses,
    which the loop's pipeline loads a tile ahead. Where RESIDENT the batch is in shared memory for the whole loop, which
    then is the innermost one; else the loop over chunks is, and loads both sides.
    """
    count = tl.load(counters).to(tl.int32)
    o_m = tl.arange(0, BM)
    o_n = tl.arange(0, BN)
    if CHUNKS > 0:
        o_k = tl.arange(0, CHUNK)
        p_postings = postings + o_n[:, None] * WIDTH + o_k[None, :]
    if RESIDENT:
        if CHUNKS > 0:
            b_postings_0 = tl.trans(tl.load(p_postings))
        if CHUNKS > 1:
            b_postings_1 = tl.trans(tl.load(p_postings + CHUNK))
        if CHUNKS > 2:
            b_postings_2 = tl.trans(tl.load(p_postings + 2 * CHUNK))
        if CHUNKS > 3:
            b_postings_3 = tl.trans(tl.load(p_postings + 3 * CHUNK))
    for tile in range(tl.program_id(0), tl.cdiv(count, BM), tl.num_programs(0)):
        at = tile * BM + o_m
        m_inside = at < count
        at = tl.where(m_inside, at, count - 1)
        row = tl.load(rows + at)
        behind = tl.load(rows + tl.minimum(at + tl.num_programs(0) * BM, count - 1))
        b_score = tl.zeros([BM, BN], tl.float32)
        if CHUNKS > 0:
            p_dense = tl.multiple_of(row.to(tl.pointer_type(tl.bfloat16)), 16)[:, None] + o_k[None, :]
            if RESIDENT:
                # Sums, each from `floor` and not from a zero that Triton knows: of a chain of products, which it would
                # make of them, all warps lie along M, and half of them multiply what the other half does.
                b_floor = tl.zeros([BM, BN], tl.float32) + floor
                b_score = product(tl.load(p_dense), b_postings_0, b_floor, INTERPRET)
                if CHUNKS > 1:
                    b_score += product(tl.load(p_dense + CHUNK), b_postings_1, b_floor, INTERPRET)
                if CHUNKS > 2:
                    b_score += product(tl.load(p_dense + 2 * CHUNK), b_postings_2, b_floor, INTERPRET)
                if CHUNKS > 3:
                    b_score += product(tl.load(p_dense + 3 * CHUNK), b_postings_3, b_floor, INTERPRET)
            else:
                for chunk in range(CHUNKS):
                    b_postings = tl.trans(tl.load(p_postings + chunk * CHUNK))
                    b_score = product(tl.load(p_dense + chunk * CHUNK), b_postings, b_score, INTERPRET)
        if TERMS > 0:
            b_lexical = tl.zeros([BM, BN], tl.float32)
            words = row.to(tl.pointer_type(tl.int32)) + WIDTH // 2
            for place in tl.static_range(TERMS if TERMS < _USUAL else _USUAL):
                b_lexical += of_term(words + place, sketches, o_n, BN)
            if TERMS > _USUAL:  # noqa: SIM102 (this one is decided when it is compiled, the next when it runs)
                # The greatest weights come first: a query without this word has none behind it.
                if tl.max((tl.load(words + _USUAL) != 0).to(tl.int32), axis=0) != 0:
                    for place in tl.static_range(_USUAL, TERMS):
                        b_lexical += of_term(words + place, sketches, o_n, BN)
            b_score += b_lexical
        if not INTERPRET:
            # The pipeline brings dense values ahead of time; what stands behind them is at least in L2 then.
            for sector in tl.static_range((4 * TERMS + 11 + _SECTOR) // _SECTOR):
                fetch(behind + (2 * WIDTH + sector * _SECTOR))
        bounds = row.to(tl.pointer_type(tl.float32)) + (WIDTH // 2 + TERMS)
        slack = tl.load(bounds + 1) * dense_norm + tl.load(bounds + 2) * lexical_norm + floor
        least = tl.where(slack < _UNSAFE, tl.load(bounds) - slack, float("-inf"))
        b_mask = tl.load(masks + at)
        m_keep = ((b_mask[:, None] >> o_n[None, :].to(tl.int64)) & 1) != 0
        # Not below, rather than at least: a score that is no number says nothing, and is kept.
        m_keep = m_keep & m_inside[:, None] & (not_below(b_score, least[:, None]))
        # Along one axis and then the other: for both at once Triton brings it to another layout first.
        total = tl.sum(tl.sum(m_keep.to(tl.int32), axis=1), axis=0)
        if total > 0:
            begin = tl.atomic_add(counters + 1, total.to(tl.int64), sem="relaxed")
            room = tl.minimum(tl.maximum(capacity - begin, 0), BM * BN).to(tl.int32)
            # Where there is no room nobody needs a rank. That also keeps what ranking costs within this branch.
            b_ranked = tl.where(m_keep, tl.minimum(room, 1), 0)
            b_found = tl.sum(b_ranked, axis=1)
            to = (tl.cumsum(b_found, axis=0) - b_found)[:, None] + (tl.cumsum(b_ranked, axis=1) - b_ranked)
            m_fits = m_keep & (to < room)
            slot = tl.load(slots + at)
            tl.store(out_slots + begin + to, tl.broadcast_to(slot[:, None], [BM, BN]), mask=m_fits)
            tl.store(out_postings + begin + to, tl.broadcast_to(o_n[None, :], [BM, BN]), mask=m_fits)
            tl.store(out_scores + begin + to, b_score, mask=m_fits)


@triton.jit
def not_below(a, b):
    """int1: a >= b, or one of them is no number."""
    return (a < b) == 0
