"""Kernels that do nothing but run a clause program: over rows, and over blocks."""

import triton
import triton.language as tl

from penstock.kernels.slabs.program import blocks_may_pass, rows_pass


@triton.jit
def pass_rows(table, offsets, steps, codes, numbers, longs, begin, end, number, first, at, out, N: tl.constexpr):
    """out int8 [N]: which rows `at` int32 [N] of a page pass steps[begin:end]; `first`: the slot of its first."""
    lanes = tl.arange(0, N)
    page = tl.load(table + number)
    found = rows_pass(page, first, tl.load(at + lanes), offsets, steps, codes, numbers, longs, begin, end)
    tl.store(out + lanes, found.to(tl.int8))


@triton.jit
def pass_blocks(table, offsets, steps, marks, numbers, begin, end, number, out, BLOCKS: tl.constexpr, N: tl.constexpr):
    """out int8 [N]: which of a page's BLOCKS blocks may hold a row that passes."""
    lanes = tl.arange(0, N)
    page = tl.load(table + number)
    found = blocks_may_pass(page, lanes, lanes < BLOCKS, offsets, steps, marks, numbers, begin, end, BLOCKS)
    tl.store(out + lanes, found.to(tl.int8))
