"""Clause programs on a device against the host's: the same rows pass, the same blocks may."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_pages import SmallPages
from store_inputs import attributes, trees, upsert

from penstock.kernels.slabs import program as device
from penstock.retrieval.device.arenas import layout_of
from penstock.retrieval.device.mirror import Mirror
from penstock.retrieval.device.programs import NOTHING, compiled, joined
from penstock.retrieval.search.program import compile_tree, passing, possible
from penstock.retrieval.store.page import BLOCK
from penstock.retrieval.store.pages import Table
from penstock.retrieval.store.zones import signature_bits
from penstock.schemas.events import Filter, FilterKind, Location, Missing
from penstock.schemas.filters import MAX_DEPTH, all_of, any_of, in_range, is_in, near, negate

SLOTS = 6 * BLOCK
LANES = 16

rows = st.lists(
    st.tuples(
        st.builds("{}{}".format, st.sampled_from("pP"), st.integers(0, 5)),
        st.integers(0, SLOTS - 1),
        attributes,
        st.none() | st.integers(0, 60),
    ),
    max_size=12,
    unique_by=(lambda row: row[0], lambda row: row[1]),
)
SAME_BIT = [
    code for code in range(9_000) if signature_bits(np.asarray([code], np.int32)) == signature_bits(np.int32([5]))
]


def pages_of(drawn, **more):
    updates = [upsert(id_, expires_at=expires, **row) for id_, _, row, expires in drawn]
    return SmallPages(updates, [slot for _, slot, _, _ in drawn], **more)


class OnDevice:
    """Small pages as a device holds them, and programs over them."""

    def __init__(self, backend, pages):
        self.pages, self.mirror = pages, Mirror(backend, pages.page_rows)
        for _ in pages.pages:
            self.mirror.grow(0, 0)
        table = Table(pages.page_rows, pages.pages, pages.zones, arenas=self.mirror.arenas)
        self.mirror.live(table, np.asarray(sorted(pages.updates), np.int64), np.zeros(0, np.int64), 1)

    def run(self, trees):
        """Of each tree: the slots that pass and hold a row, and by page the blocks that may hold one."""
        from program_kernels import pass_blocks, pass_rows

        arenas, pages = self.mirror.arenas, self.pages
        programs = [compile_tree(tree, pages) for tree in trees]
        whole, bounds = joined([compiled(program, arenas.layout, pages) for program in programs])
        parts = (whole.steps, whole.marks, whole.operands.codes, whole.operands.numbers, whole.operands.longs)
        steps, marks, codes, numbers, longs = (torch.from_numpy(part).to(self.mirror.backend.device) for part in parts)
        table, offsets, blocks = arenas.slabs.table, arenas.slabs.offsets, arenas.layout.blocks
        out = []
        for begin, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            passed, may = set(), []
            for number, page in enumerate(pages.pages):
                mine = [slot - page.first for slot in pages.slots_of(page)]
                at = torch.tensor((mine + [0] * LANES)[:LANES], dtype=torch.int32, device=table.device)
                found = torch.full((LANES,), 9, dtype=torch.int8, device=table.device)
                if mine:
                    args = (steps, codes, numbers, longs, begin, end, number, page.first, at, found)
                    pass_rows[(1,)](table, offsets, *args, N=LANES)
                    passed |= {page.first + row for row, one in zip(mine, found.tolist(), strict=False) if one}
                    assert set(found.tolist()) <= {0, 1}
                pass_blocks[(1,)](
                    table, offsets, steps, marks, numbers, begin, end, number, found, BLOCKS=blocks, N=LANES
                )
                may.append([bool(one) for one in found.tolist()[:blocks]])
            out.append((passed, may))
        return out

    def check(self, *trees):
        pages = self.pages
        for tree, (passed, may) in zip(trees, self.run(trees), strict=True):
            program = compile_tree(tree, pages)
            wanted = set()
            for page, zones, told in zip(pages.pages, pages.zones, may, strict=True):
                mine = np.asarray([slot - page.first for slot in pages.slots_of(page)], np.int64)
                wanted |= set((mine[passing(program, page, pages, mine)] + page.first).tolist())
                held = zones.rows > 0
                assert (possible(program, zones)[held] == np.asarray(told)[held]).all(), tree
            assert passed == wanted, tree


@settings(max_examples=15)  # the interpreter is slow
@given(drawn=rows, some=st.lists(trees, min_size=1, max_size=3), codes=st.sampled_from([None, SAME_BIT]))
def test_any_programs_say_of_rows_and_blocks_what_the_host_says(device_backend, drawn, some, codes):
    OnDevice(device_backend, pages_of(drawn, codes=codes)).check(*some)


def test_lists_of_every_length_and_values_past_the_eighth(device_backend):
    skills = tuple(f"s{i}" for i in range(100))
    updates = [upsert(f"p{i}", company=f"c{i}", skills=skills[: i * 9]) for i in range(12)]
    pages = SmallPages(updates, [i * 67 for i in range(12)])
    trees = [
        is_in(field, *(f"{letter}{i}" for i in range(first, first + count)))
        for field, letter in (("company", "c"), ("skills", "s"), ("posting_id", "P"))
        for first, count in ((0, 1), (3, 2), (5, 3), (2, 9), (11, 1), (99, 1), (200, 4))
    ]
    OnDevice(device_backend, pages).check(*trees, *map(negate, trees))


def test_circles_across_the_date_line_over_a_pole_and_all_around(device_backend):
    places = [(39.96, -82.99), (0.0, 179.9), (0.0, -179.9), (89.9, 10.0), (52.5, 13.4), (-90.0, 0.0)]
    updates = [upsert(f"p{i}", location=Location(lat=lat, lon=lon)) for i, (lat, lon) in enumerate(places)]
    pages = SmallPages([*updates, upsert("nowhere")], [i * BLOCK for i in range(6)] + [5 * BLOCK + 1])
    trees = [
        near(lat, lon, km, missing=missing)
        for lat, lon in ((40.0, -83.1), (0.0, 179.95), (0.0, -179.95), (89.95, -170.0), (90.0, 180.0), (-89.0, 3.0))
        for km in (0.001, 50, 6_000, 19_000, 20_015.0, 20_016.0, 20_038.0)
        for missing in Missing
        if missing in (Missing.EXCLUDE, Missing.INCLUDE)
    ]
    OnDevice(device_backend, pages).check(*trees, *map(negate, trees))


def chain(depth):
    """A tree that keeps a result of each of its groups until its innermost clause is known."""
    tree = in_range("posted_at", minimum=depth % 7)
    for number in range(1, depth):
        kind = FilterKind.ALL if number % 2 else FilterKind.ANY
        tree = Filter(kind=kind, children=(in_range("posted_at", minimum=number % 9), tree))
    return tree


def test_wide_trees_keep_the_stack_shallow_and_no_tree_is_deeper_than_it(device_backend):
    pages = SmallPages([upsert(f"p{i}", posted_at=i) for i in range(10)])
    layout = layout_of(pages.page_rows, 0, 0)
    wide = all_of(*(in_range("posted_at", minimum=i / 100) for i in range(200)))
    assert compiled(compile_tree(wide, pages), layout, pages).steps.shape == (399, device.STEP)
    assert MAX_DEPTH < device.DEPTH  # a group waits with at most one result while a deeper one is worked out
    OnDevice(device_backend, pages).check(chain(MAX_DEPTH), chain(MAX_DEPTH - 1), wide)


def test_programs_of_a_batch_name_their_own_operands_and_none_lets_everything_pass():
    pages = SmallPages([upsert("p", company="a", skills=("s",) * 1, posted_at=3), upsert("q", company="b")])
    layout = layout_of(pages.page_rows, 0, 0)
    tree = any_of(
        is_in("company", "a", "b"), is_in("posting_id", "q", "p"), in_range("posted_at", 1, 2), is_in("skills", "s")
    )
    one = compiled(compile_tree(tree, pages), layout, pages)
    whole, bounds = joined([NOTHING, one, NOTHING, one])
    assert bounds.tolist() == [0, 0, 7, 7, 14]
    first, second = whole.steps[:7], whole.steps[7:]
    moved = {device.CODES: 3, device.MANY: 3, device.RANGE: 2, device.HASHES: 2}  # codes, numbers, hashes of the first
    for mine, theirs in zip(first.tolist(), second.tolist(), strict=True):
        assert theirs[3] - mine[3] == moved.get(mine[0], 0)
        assert theirs[7] - mine[7] == (2 if mine[0] == device.MANY else 0)
        assert mine[:3] + mine[4:7] + mine[8:] == theirs[:3] + theirs[4:7] + theirs[8:]
    operands = whole.operands
    assert [len(part) for part in (operands.codes, operands.numbers, operands.longs)] == [6, 4, 4]
