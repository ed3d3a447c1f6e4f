"""The arena of item tokens against a dictionary that forgets nothing, and its limits."""

import threading
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from qwen3_directory import make_directory

from penstock.ranker.engine.arena import BLOCK, Arena, Filler, ItemKey, key_of
from penstock.ranker.engine.device_arena import DeviceArena
from penstock.ranker.engine.tokens import SLICE, Encoded, Tokenizer
from penstock.schemas.events import Attributes, IndexOp, IndexUpdate

BLOCK_BYTES = 4 * BLOCK


def key(name, version=1, revision=0, text=0):
    return ItemKey("default", name, (version, revision), text)


def item(*tokens, **flags):
    return Encoded(np.array(tokens, dtype=np.int32), **flags)


def of_blocks(number, token=7):
    return Encoded(np.full(number * BLOCK, token, dtype=np.int32))


class Clock:
    now = 0

    def __call__(self):
        return self.now


def test_what_was_written_is_read_with_what_is_known_of_it():
    arena = Arena(1 << 16, Clock())
    long = Encoded(np.arange(3 * BLOCK + 5, dtype=np.int32), cut=True, unknown=True)
    assert arena.write(key("a"), long, None)
    assert arena.write(key("b"), item(empty=True), None)
    found_b, found_a, found_c = arena.read([key("b"), key("a"), key("c")])
    assert found_a.tokens.tolist() == long.tokens.tolist()
    assert (found_a.cut, found_a.unknown, found_a.empty) == (True, True, False)
    assert (found_b.tokens.tolist(), found_b.empty) == ([], True)
    assert found_c is None


def test_what_was_read_stays_as_it_was_when_its_place_is_given_away():
    arena = Arena(BLOCK_BYTES, Clock())
    arena.write(key("a"), item(1, 2, 3), None)
    [read] = arena.read([key("a")])
    arena.write(key("b"), item(9, 9, 9), None)
    assert read.tokens.tolist() == [1, 2, 3]


def test_the_newest_version_is_held_and_no_other_is_given_for_it():
    arena = Arena(1 << 12, Clock())
    assert arena.write(key("a", 2), item(2), None)
    assert not arena.write(key("a", 1), item(1), None)
    assert not arena.lacks(key("a", 2))
    assert arena.lacks(key("a", 2, revision=1))
    assert arena.read([key("a", 1), key("a", 3)]) == [None, None]
    assert arena.write(key("a", 2, revision=1), item(3), None)
    assert arena.read([key("a", 2)]) == [None]
    assert len(arena) == 1


def test_another_text_of_the_same_version_is_another_item_and_the_last_written_is_held():
    arena = Arena(1 << 12, Clock())
    arena.write(key("a", text=1), item(1), None)
    assert arena.lacks(key("a", text=2)) and not arena.lacks(key("a", text=1))
    assert arena.read([key("a", text=2)]) == [None]
    assert arena.write(key("a", text=2), item(2), None)
    [one, other] = arena.read([key("a", text=1), key("a", text=2)])
    assert one is None
    assert other.tokens.tolist() == [2]
    assert not arena.lacks(key("a", version=0, text=3))
    assert len(arena) == 1


def test_another_tenants_posting_is_another_item():
    arena = Arena(1 << 12, Clock())
    arena.write(key("a"), item(1), None)
    assert arena.read([ItemKey("other", "a", (1, 0), 0)]) == [None]


def test_the_expired_go_first_then_what_was_used_longest_ago():
    clock = Clock()
    arena = Arena(3 * BLOCK_BYTES, clock)
    arena.write(key("old"), item(1), None)
    arena.write(key("used"), item(2), None)
    arena.write(key("expires"), item(3), 1_000)
    arena.read([key("old"), key("expires")])
    clock.now = 1_000
    arena.write(key("x"), item(4), None)
    assert arena.read([key("expires"), key("old"), key("used"), key("x")]).count(None) == 1
    arena.read([key("used")])
    arena.write(key("y"), item(5), None)
    assert arena.read([key("old")]) == [None]
    assert arena.read([key("used")])[0].tokens.tolist() == [2]


def test_an_expiry_of_an_older_version_does_not_drop_the_newer():
    clock = Clock()
    arena = Arena(2 * BLOCK_BYTES, clock)
    arena.write(key("a", 1), item(1), 500)
    arena.write(key("a", 2), item(2), None)
    clock.now = 600
    arena.write(key("b"), item(3), None)
    assert arena.read([key("a", 2)])[0].tokens.tolist() == [2]


def test_what_is_too_large_or_expired_already_is_not_kept_and_replaces_nothing_wrongly():
    clock = Clock()
    arena = Arena(2 * BLOCK_BYTES, clock)
    arena.write(key("a", 1), item(1), None)
    assert not arena.write(key("a", 2), of_blocks(3), None)
    assert arena.read([key("a", 1), key("a", 2)]) == [None, None]
    clock.now = 10
    assert not arena.write(key("b"), item(1), 10)
    assert (len(arena), arena.bytes_used) == (0, 0)


def test_an_arena_without_room_for_a_block():
    with pytest.raises(ValueError, match="expected at least 128"):
        Arena(100, Clock())


_operations = st.lists(
    st.one_of(
        st.tuples(
            st.just("write"),
            st.integers(0, 5),
            st.integers(1, 3),
            st.integers(0, 1),
            st.integers(0, 3 * BLOCK),
            st.none() | st.integers(0, 40),
        ),
        st.tuples(st.just("read"), st.integers(0, 5), st.integers(1, 3), st.integers(0, 1)),
        st.tuples(st.just("remove"), st.integers(0, 5), st.integers(1, 3)),
        st.tuples(st.just("pass"), st.integers(1, 10)),
    ),
    max_size=60,
)


@given(_operations, st.integers(1, 8))
def test_whatever_happens_it_gives_the_right_tokens_or_none_within_its_bytes(operations, blocks):
    clock = Clock()
    arena = Arena(blocks * BLOCK_BYTES, clock)
    written, serial = {}, 0
    for operation, *values in operations:
        if operation == "write":
            name, version, text, length, expires = values
            serial += 1
            tokens = np.full(length, serial, dtype=np.int32)
            if arena.write(key(str(name), version, text=text), Encoded(tokens), expires):
                written[name, version, text] = tokens.tolist()
        elif operation == "read":
            name, version, text = values
            [found] = arena.read([key(str(name), version, text=text)])
            assert found is None or found.tokens.tolist() == written[name, version, text]
        elif operation == "remove":
            arena.remove(key(str(values[0]), values[1]))
            assert arena.lacks(key(str(values[0]), 4))
        else:
            clock.now += values[0]
        assert arena.bytes_used <= arena.capacity_bytes == blocks * BLOCK_BYTES
        assert len(arena) * BLOCK_BYTES <= arena.bytes_used
    for name in range(6):
        arena.remove(key(str(name), 99))
    assert arena.bytes_used == 0


def test_readers_and_writers_at_once_see_whole_items():
    arena = Arena(6 * BLOCK_BYTES, Clock())
    wrong = []

    def write(name):
        for version in range(1, 300):
            arena.write(key(name, version), of_blocks(2, version), None)

    def read(name):
        for version in range(1, 300):
            [found] = arena.read([key(name, version)])
            if found is not None and set(found.tokens.tolist()) != {version}:
                wrong.append(found)

    threads = [threading.Thread(target=what, args=(name,)) for what in (write, read) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong


# --- filling it from index updates ---------------------------------------------------------------------------------


def update(name, text, **changes):
    made = IndexUpdate(
        posting_id=name, version=1, op=IndexOp.UPSERT, attributes=Attributes(title="x"), item_text=text, produced_at=0
    )
    return replace(made, **changes)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    made = Tokenizer(make_directory(tmp_path_factory.mktemp("arena")), threads=1)
    yield made
    made.close()


def test_updates_fill_it_with_what_a_request_would_tokenise(tokenizer):
    arena = Arena(1 << 16, Clock())
    filler = Filler(arena, tokenizer)
    updates = [update(str(number), f"nurse shift {number}") for number in range(40)]
    assert filler.fill(updates) == 40
    for one, found in zip(updates, arena.read([key_of(one) for one in updates]), strict=True):
        assert found.tokens.tolist() == tokenizer.items([one.item_text])[0].tokens.tolist()
    assert filler.fill(updates) == 0


def test_of_several_versions_in_a_batch_the_newest_is_kept_and_the_deleted_go(tokenizer):
    arena = Arena(1 << 16, Clock())
    filler = Filler(arena, tokenizer)
    newer, older = update("a", "nurse", version=3), update("a", "clerk", version=2)
    filler.fill([newer, older, update("b", "welder"), update("c", "clerk")])
    assert arena.read([key_of(newer)])[0] is not None
    gone = update("b", None, version=2, op=IndexOp.DELETE, attributes=None)
    expired = update("c", None, revision=1000, op=IndexOp.EXPIRE, attributes=None)
    stale = update("a", None, version=1, op=IndexOp.DELETE, attributes=None)
    assert filler.fill([gone, expired, stale]) == 0
    assert len(arena) == 1


def test_an_update_that_expires_leaves_when_it_does(tokenizer):
    clock = Clock()
    arena = Arena(2 * BLOCK_BYTES, clock)
    filler = Filler(arena, tokenizer)
    updates = [update("a", "nurse", expires_at=5), update("b", "clerk"), update("c", "welder")]
    filler.fill(updates[:2])
    clock.now = 5
    filler.fill(updates[2:])
    assert [found is None for found in arena.read(list(map(key_of, updates)))] == [True, False, False]


def test_a_device_arena_goes_with_its_backend_while_updates_are_tokenised(tokenizer):
    def made():
        return DeviceArena(torch.zeros(128, BLOCK, dtype=torch.int32), torch.zeros(0, 4), Clock())

    class Slices:
        """The backend is made anew before the second slice is tokenised."""

        asked = 0

        def items(self, texts):
            self.asked += 1
            if self.asked == 2:
                there[0] = made()
                assert before() is None
            return tokenizer.items(texts)

    there = [made()]
    before = weakref.ref(there[0])
    updates = [update(str(number), f"nurse shift {number}") for number in range(SLICE + 8)]
    gone = update("gone", None, op=IndexOp.DELETE, attributes=None)
    filler = Filler(Arena(1 << 16, Clock()), Slices(), lambda: there[0])
    assert filler.fill([gone, *updates]) == SLICE + 8
    held = there[0].find_tokens([key_of(one) for one in updates])
    assert [one is None for one in held] == [True] * SLICE + [False] * 8
