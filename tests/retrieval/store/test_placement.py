"""Placement: no slot twice, a block for one partition while that is affordable, empty blocks back, spare bounded."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.retrieval.store.page import BLOCK
from penstock.retrieval.store.placement import Placement

partitions = st.tuples(st.integers(-1, 3), st.integers(2_900, 2_904))
histories = st.lists(st.tuples(partitions, st.integers(1, 300), st.floats(0, 1)), max_size=12)


class Model:
    """What placement must be true to: who sits where."""

    def __init__(self, share, floor):
        self.placement = Placement(share, floor)
        self.share, self.floor = share, floor
        self.rows = {}  # slot -> partition
        self.may_share = False

    def spare(self):
        used = {slot // BLOCK for slot in self.rows}
        return len(used) * BLOCK - len(self.rows)

    def put(self, partition):
        used = {slot // BLOCK for slot in self.rows}
        slot = self.placement.take(partition)
        if slot is None:
            assert len(used) == self.placement.blocks, "a block was wanted while one was empty"
            self.placement.add(2)
            slot = self.placement.take(partition)
        assert slot not in self.rows
        assert 0 <= slot < self.placement.blocks * BLOCK
        block = slot // BLOCK
        if block not in used:
            assert block == min(set(range(self.placement.blocks)) - used)
            opened = self.spare() + BLOCK - 1
            assert opened == BLOCK - 1 or opened <= max(self.floor, self.share * len(self.rows))
        elif self.placement.owner(block) != partition:  # it shares: nothing of its own had room, and none was to be had
            assert self.spare() + BLOCK - 1 > max(self.floor, self.share * len(self.rows))
            roomy = {self.placement.owner(b)[1] for b in used if self.taken(b) < BLOCK}
            week = self.placement.owner(block)[1]
            assert abs(week - partition[1]) == min(abs(other - partition[1]) for other in roomy)
            assert not any(self.placement.owner(b) == partition and self.taken(b) < BLOCK for b in used)
        self.rows[slot] = partition
        self.agree()

    def taken(self, block):
        return sum(slot // BLOCK == block for slot in self.rows)

    def drop(self, slot):
        self.placement.give_back(slot)
        del self.rows[slot]
        self.agree()

    def agree(self):
        assert self.placement.taken == len(self.rows)
        assert self.placement.spare == self.spare()


@given(history=histories, share=st.sampled_from([0.0, 1 / 12, 0.5]), floor=st.sampled_from([0, 200, 100 * BLOCK]))
def test_any_history(history, share, floor):
    model = Model(share, floor)
    for partition, count, dropped in history:
        for _ in range(min(count, 40)):
            model.put(partition)
        for slot in sorted(model.rows)[: int(dropped * len(model.rows))]:
            model.drop(slot)
    if floor == 100 * BLOCK:  # affordable all along: nobody shares
        for slot, partition in model.rows.items():
            assert model.placement.owner(slot // BLOCK) == partition
    for slot in list(model.rows):
        model.drop(slot)
    assert [model.placement.owner(block) for block in range(model.placement.blocks)] == [None] * model.placement.blocks


def test_what_expires_together_frees_whole_blocks():
    placement = Placement()
    placement.add(64)
    slots = {week: [] for week in range(8)}
    for _ in range(3 * BLOCK):
        for week, taken in slots.items():
            taken.append(placement.take((7, week)))
    for slot in slots[2]:
        placement.give_back(slot)
    assert placement.spare == 0
    assert sum(placement.owner(block) is None for block in range(64)) == 64 - 7 * 3


def test_many_partitions_do_not_cost_a_block_each():
    placement = Placement()
    for n in range(20_000):
        partition = (n % 500, n % 7)
        if placement.take(partition) is None:
            placement.add(512)
            placement.take(partition)
    assert placement.spare <= placement.taken / 12


def test_holes_are_filled_before_they_are_too_many():
    placement = Placement()
    placement.add(1_000)
    old = [placement.take((1, 1)) for _ in range(20_000)]
    for slot in old[::2]:
        placement.give_back(slot)
    for _ in range(15_000):
        placement.take((1, 2))
    assert placement.spare <= placement.taken / 12


def test_without_growth_a_row_goes_wherever_there_is_room():
    placement = Placement()
    placement.add(1)
    taken = [placement.take((1, 1))]
    assert placement.take((2, 9)) is None
    taken += [placement.take((2, 9), growing=False) for _ in range(BLOCK - 1)]
    assert sorted(taken) == list(range(BLOCK))
    assert placement.take((2, 9), growing=False) is None
    assert placement.take((1, 1), growing=False) is None


def test_a_slot_is_given_back_once():
    placement = Placement()
    placement.add(1)
    slot = placement.take((1, 1))
    placement.take((1, 1))
    placement.give_back(slot)
    with pytest.raises(ValueError, match="twice"):
        placement.give_back(slot)
