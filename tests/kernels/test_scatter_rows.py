"""Rows, zone maps and epochs are written where the layout has them, and nothing beside them is."""

from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.kernels.scatter_rows import check
from penstock.kernels.scatter_rows.check import COLUMNS, Pages
from penstock.kernels.scatter_rows.segments import Segment, Segments, of_blocks, of_rows
from penstock.kernels.scatter_rows.staging import Publication, Staging
from penstock.kernels.scatter_rows.triton import NEVER, scatter_rows
from penstock.kernels.scatter_rows.tuning import ROWS, SLOTS
from penstock.kernels.slabs.layout import BLOCK, Kind, Layout

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def test_the_check_of_the_benchmark_finds_nothing_wrong():
    assert check.mismatches() == 0


layouts = st.builds(
    Layout,
    rows=st.sampled_from([BLOCK, 3 * BLOCK]),
    dense=st.sampled_from([0, 1, 16, 100, 384]),
    sketch=st.sampled_from([0, 1, 16, 129]),
    columns=st.lists(st.sampled_from(COLUMNS), max_size=4, unique=True).map(tuple),
    quantised=st.booleans(),
)


@settings(max_examples=30)
@given(
    layout=layouts,
    pages=st.integers(1, 3),
    counts=st.lists(st.integers(1, 3 * ROWS + 1), min_size=1, max_size=3),
    published=st.tuples(*(st.integers(0, 20) for _ in range(3))),
    seed=st.integers(0, 1_000),
)
def test_against_the_oracle_byte_for_byte(layout, pages, counts, published, seed):
    held = Pages(layout, pages, seed, DEVICE)
    for count in counts:
        held.scatter(of_rows(layout), count)
        held.scatter(of_blocks(layout), min(count, layout.blocks * pages))
    held.publish(seed, *published)
    assert held.wrong() == 0 and int(held.word.item()) == seed


def test_what_is_staged_by_name_is_read_by_name():
    """Against the layout's own views: not the segments' arithmetic once more."""
    layout = Layout(2 * BLOCK, 20, 5, (("pay", Kind.NUMBER), ("where", Kind.PLACE), ("skills", Kind.MANY)))
    held = Pages(layout, 2, 1, DEVICE)
    staging = Staging(of_rows(layout), 4, DEVICE)
    slots = [3, 2 * BLOCK - 1, 2 * BLOCK, 4 * BLOCK - 2]
    staging.slots[:] = torch.tensor(slots)
    values = {name: torch.randint(-99, 99, staging.field(name).shape) for name in staging.segments.dtypes}
    for name, value in values.items():
        staging.field(name)[:] = value.to(staging.segments.dtypes[name])
    staging.send(held.table, 4)
    for number, slot in enumerate(slots):
        page, row = divmod(slot, layout.rows)
        for name, value in values.items():
            array = layout.view(held.arenas[page], name).cpu()
            if name == "sketch":
                array = array.transpose(1, 2).reshape(layout.rows, -1)
            elif layout.arrays[name].parts > 1:
                array = array.T
            assert array[row].flatten().tolist() == value[number].tolist(), name
    zones = Staging(of_blocks(layout), 1, DEVICE)
    zones.slots[0] = 3  # the second page's second block
    zones.field("zone.where.low")[0] = torch.tensor([48.0, -11.5])
    zones.field("zone.tenants")[0] = -1
    zones.send(held.table, 1)
    assert layout.view(held.arenas[1], "zone.where.low")[:, 1].tolist() == [48.0, -11.5]
    assert layout.view(held.arenas[1], "zone.tenants")[1].item() == -1


def test_publication_is_more_slots_than_one_step_has():
    layout = Layout(12 * BLOCK, 0, 0, ())
    held = Pages(layout, 2, 3, DEVICE)
    held.publish(41, SLOTS + 100, 400, 300)
    assert held.wrong() == 0 and held.word.item() == 41
    held.publish(42, 0, 0, 0)
    assert held.wrong() == 0 and held.word.item() == 42


def test_the_newest_epoch_stays_when_rows_are_given_back_or_filled_in_any_order():
    held = Pages(Layout(2 * BLOCK, 0, 0, ()), 2, 5, DEVICE)
    for epoch, dead, born, freed in ((7, 10, 20, 0), (0, 0, 0, 30), (3, 0, 9, 0)):
        held.publish(epoch, dead, born, freed)
        assert held.wrong() == 0 and held.word.item() == 7


def test_a_slot_that_died_is_born_again_in_a_later_epoch():
    layout = Layout(BLOCK, 0, 0, ())
    held = Pages(layout, 1, 3, DEVICE)
    arrays = layout.arrays
    where = {"per_page": BLOCK, "birth": arrays["birth"].offset, "death": arrays["death"].offset}
    seen = []
    for epoch, change in enumerate([{"born": [7]}, {"dead": [7]}, {"freed": [7]}, {"born": [7]}], 1):
        Publication(4, DEVICE).send(held.table, held.word, epoch=epoch, **change, **where)
        seen.append(tuple(layout.view(held.arenas[0], name)[7].item() for name in ("birth", "death")))
    assert seen == [(1, NEVER), (1, 2), (NEVER, 2), (4, NEVER)]


def test_every_value_is_stored_whole():
    """A zone map is read while it is written: a double in two halves would be a third value."""
    layout = Layout(4 * BLOCK, 384, 1_024, COLUMNS, quantised=True)
    for segments in (of_rows(layout), of_blocks(layout)):
        for segment, begin in zip(segments.segments, segments.begins, strict=True):
            size = segments.dtypes[segment.field].itemsize
            if segment.unit:
                assert segment.unit % size == 0 == segment.offset % segment.unit == begin % segment.unit
            else:
                assert segment.field == "sketch"
    wide = [segment.field for segment in of_rows(layout).segments if segment.unit == 16]
    assert wide == ["dense", "quantised", *(f"column.{name}" for name, kind in COLUMNS if kind is Kind.MANY)]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: Staging(of_rows(Layout(BLOCK, 16, 0, ())), 2, DEVICE).field("pay"), "no field 'pay' in a record"),
        (lambda: Staging(of_rows(Layout(BLOCK, 16, 0, ())), 2, DEVICE).send(None, 3), "3 records of a staging for 2"),
        (
            lambda: scatter_rows(
                None, torch.zeros(1, 5), torch.zeros(2), torch.zeros(2, 24, dtype=torch.uint8), per_page=1
            ),
            "multiple of 16 bytes",
        ),
        (
            lambda: Segments((Segment("a", 0, 1, 1, 1), Segment("b", 0, 8, 1, 8)), 1, {}).begins,
            "b begins at 1 of a record: put wider units before narrower ones",
        ),
        (
            lambda: Publication(1, DEVICE).send(None, None, epoch=1, dead=[1], born=[2], per_page=1, birth=0, death=8),
            "2 slots in a publication for 1",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_words(wrong, said):
    with pytest.raises(ValueError, match=said):
        wrong()


@pytest.mark.parametrize("own_stream", [False, pytest.param(True, marks=pytest.mark.cuda)])
def test_staging_is_filled_again_while_the_device_writes(own_stream):
    """Batch upon batch by two pieces that take turns: every byte of every array against the oracle."""
    with torch.cuda.stream(torch.cuda.Stream()) if own_stream else nullcontext():
        layout = Layout((64 if own_stream else 4) * BLOCK, 384, 1_024, COLUMNS, quantised=True)
        held = Pages(layout, 2, 9, DEVICE)
        kinds = [(of_rows(layout), 500 if own_stream else 50), (of_blocks(layout), 8)]
        turns = [[Staging(segments, most, DEVICE) for _ in range(2)] for segments, most in kinds]
        for step in range(20 if own_stream else 4):
            for (segments, most), pieces in zip(kinds, turns, strict=True):
                held.scatter(segments, most - step % 3, pieces[step % 2])
            held.publish(step, 3, 4, 2)
        assert held.wrong() == 0 and int(held.word.item()) == step
