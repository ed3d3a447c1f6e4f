"""Batched writes into the pages of a device's store: rows in one launch, then who was born and who died in another.

    1. scatter  a program a segment and a few records: the segment of each record goes to its place in its row's page
    2. publish  one program: deaths, births, slots given back, and behind all of them the epoch's word

Rows are written where no reader looks, since `birth` says NEVER until they are published. Both launches are on one
stream, which orders them; readers on other streams see rows of an epoch only once they see its word. Every value is
stored whole (`segments.py`), so a reader of a zone map that is being widened sees the old bound or the new one.

Written for this store; the record with a table of segments is what a columnar loader's scatter is (Arrow's row format).
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
# Triton's language is typed when it is compiled, not before.

from __future__ import annotations

import torch
import triton
import triton.language as tl

from penstock.kernels.scatter_rows import segments as at_
from penstock.kernels.scatter_rows.tuning import LANES, PUBLISH_WARPS, ROWS, SLOTS, WARPS
from penstock.kernels.slabs.layout import BLOCK

HEADER = 4  # words before the slots of a publication: epoch, dead, born, freed
NEVER = torch.iinfo(torch.int64).max

_OFFSET, _STRIDE, _BEGIN = tl.constexpr(at_.OFFSET), tl.constexpr(at_.STRIDE), tl.constexpr(at_.BEGIN)
_LENGTH, _UNIT, _FIELDS = tl.constexpr(at_.LENGTH), tl.constexpr(at_.UNIT), tl.constexpr(at_.FIELDS)
_TILED, _BLOCK = tl.constexpr(at_.TILED), tl.constexpr(BLOCK)
_HEADER, _NEVER = tl.constexpr(HEADER), tl.constexpr(NEVER)


@triton.jit
def copied(source, target, inside, length, STEP: tl.constexpr, LANES: tl.constexpr):
    """Copies `length` values from each source to each target. source, target: pointers [ROWS]; STEP: between values
    of a target."""
    o_lane = tl.arange(0, LANES)
    for begin in range(0, length, LANES):
        at = begin + o_lane
        m_both = inside[:, None] & (at < length)[None, :]
        b_value = tl.load(source[:, None] + at[None, :], mask=m_both)
        tl.store(target[:, None] + at[None, :] * STEP, b_value, mask=m_both)


@triton.jit(do_not_specialize=["count"])
def scatter(
    pages,
    segments,
    slots,
    records,
    count,
    per_page,
    record,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Grid: (segments, cdiv(count, ROWS)).

    pages     int64 [pages]: addresses of the arenas, multiples of 16
    segments  int64 [segments, 5]: offset, stride, begin, length, unit (`segments.py`)
    slots     int64 [count]: where each record goes, page * per_page + row; below 0: nowhere. No slot twice
    records   uint8 [count, record]: `record` is a multiple of 16
    """
    segment = segments + tl.program_id(0) * _FIELDS
    o_row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    slot = tl.load(slots + o_row, mask=o_row < count, other=-1)
    m_inside = slot >= 0
    slot = tl.where(m_inside, slot, 0)
    row = slot % per_page
    length = tl.load(segment + _LENGTH).to(tl.int32)
    unit = tl.load(segment + _UNIT)
    source = records + o_row.to(tl.int64) * record + tl.load(segment + _BEGIN)
    target = tl.load(pages + slot // per_page) + tl.load(segment + _OFFSET)
    if unit == _TILED:
        line = (row // _BLOCK) * (length * _BLOCK) + row % _BLOCK
        copied(source, (target + line).to(tl.pointer_type(tl.uint8)), m_inside, length, _BLOCK, LANES)
    else:
        target += row * tl.load(segment + _STRIDE)
        if unit == 16:
            # Four words at once: both sides are multiples of 16, and so is what is copied.
            p_source = tl.multiple_of(source.to(tl.pointer_type(tl.int32)), 16)
            p_target = tl.multiple_of(target.to(tl.pointer_type(tl.int32)), 16)
            copied(p_source, p_target, m_inside, length * 4, 1, LANES)
        elif unit == 8:
            p_source, p_target = source.to(tl.pointer_type(tl.int64)), target.to(tl.pointer_type(tl.int64))
            copied(p_source, p_target, m_inside, length, 1, LANES)
        elif unit == 4:
            p_source, p_target = source.to(tl.pointer_type(tl.int32)), target.to(tl.pointer_type(tl.int32))
            copied(p_source, p_target, m_inside, length, 1, LANES)
        else:
            copied(source, target.to(tl.pointer_type(tl.uint8)), m_inside, length, 1, LANES)


@triton.jit
def publish(pages, staged, word, per_page, birth, death, SLOTS: tl.constexpr):
    """Deaths, births and freed slots of one epoch, then its word. Grid: (1,): one program, so that its barrier is
    enough for the word to be last.

    pages         int64 [pages]: addresses of the arenas
    staged        int64 [4 + n]: the epoch; how many die, are born, are given back; the slots of each, in this order
    word          int64 [1]: the newest epoch of all publications, whatever their order. Released when everything before
                  it is visible; who acquires it sees all
    birth, death  byte offsets of the two arrays in a page

    A slot that is given back has birth NEVER: what else its row holds means nothing.
    """
    epoch = tl.load(staged)
    dead = tl.load(staged + 1)
    living = dead + tl.load(staged + 2)
    count = living + tl.load(staged + 3)
    for begin in range(0, count.to(tl.int32), SLOTS):
        at = begin + tl.arange(0, SLOTS)
        m_inside = at < count
        slot = tl.load(staged + _HEADER + at, mask=m_inside, other=0)
        page = tl.load(pages + slot // per_page, mask=m_inside, other=0)
        row = slot % per_page
        p_birth = (page + birth).to(tl.pointer_type(tl.int64)) + row
        p_death = (page + death).to(tl.pointer_type(tl.int64)) + row
        tl.store(p_death, tl.where(at < dead, epoch, _NEVER), mask=m_inside & (at < living))
        tl.store(p_birth, tl.where(at < living, epoch, _NEVER), mask=m_inside & (at >= dead))
    tl.debug_barrier()
    tl.atomic_max(word, epoch, sem="release", scope="gpu")


def scatter_rows(
    pages: torch.Tensor,
    table: torch.Tensor,
    slots: torch.Tensor,
    records: torch.Tensor,
    *,
    per_page: int,
) -> None:
    """Launches `scatter` on the current stream. All tensors on the device: pages int64 [pages], table as
    `Segments.table()`, slots int64 [n], records uint8 [n, record]. Nothing waits."""
    count, record = records.shape
    if slots.shape != (count,) or record % 16 or not records.is_contiguous():
        raise ValueError(
            f"slots {tuple(slots.shape)} and records {tuple(records.shape)}: "
            "expected a slot a record, and contiguous records of a multiple of 16 bytes"
        )
    if not count or not len(table):
        return
    # The interpreter starts programs one by one: few and large ones.
    rows = ROWS if isinstance(scatter, triton.JITFunction) else triton.next_power_of_2(count)
    grid = (len(table), triton.cdiv(count, rows))
    scatter[grid](pages, table, slots, records, count, per_page, record, ROWS=rows, LANES=LANES, num_warps=WARPS)


def publish_rows(
    pages: torch.Tensor, staged: torch.Tensor, word: torch.Tensor, *, per_page: int, birth: int, death: int
) -> None:
    """Launches `publish` on the current stream; every tensor is on the device. Nothing waits."""
    publish[(1,)](pages, staged, word, per_page, birth, death, SLOTS=SLOTS, num_warps=PUBLISH_WARPS)
