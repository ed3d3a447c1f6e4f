"""What a device keeps of items: what a forward reads of it is what the request holds, or it is sent and counted."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_qwen3 import random_qwen3
from structlog.testing import capture_logs

from penstock.infra.telemetry import DEGRADED
from penstock.ranker.engine import device as device_module
from penstock.ranker.engine import device_arena, devices
from penstock.ranker.engine.blocks import BLOCK, ItemKey
from penstock.ranker.engine.device import DeviceBackend
from penstock.ranker.engine.device_arena import DROPPED, ITEMS, DeviceArena, Room
from penstock.ranker.engine.forward import TorchBackend
from penstock.ranker.engine.plan import Request, Text, Vectors, plan
from penstock.ranker.engine.weights import Weights

HIDDEN = 4
FOUND = ("yes", "no", "gone", "late")


def key(name, version=1, text=0):
    return ItemKey("default", name, (version, 0), text)


def tokens_of(length, value=7):
    return np.full(length, value, np.int32)


class Clock:
    now = 0

    def __call__(self):
        return self.now


def arena_of(blocks=8, rows=4, clock=None):
    tables = torch.full((blocks, BLOCK), -1, dtype=torch.int32), torch.full((rows, HIDDEN), torch.nan)
    return DeviceArena(*tables, clock or Clock()), *tables


def forward_of(*items, prefix=3):
    (forward,) = plan([Request(np.ones(prefix, np.int32), items)], 10_000, 10_000)
    return forward


def text(arena, name, tokens, version=1, number=0):
    [held] = arena.find_tokens([key(name, version, number)])
    return Text(tokens, held)


@pytest.fixture
def counted():
    """How many items of forwards there were since, by how they were found."""

    def now():
        return {found: ITEMS.labels(found)._value.get() for found in FOUND}

    before = now()
    return lambda: {found: int(value - before[found]) for found, value in now().items() if value != before[found]}


# --- what lies where -----------------------------------------------------------------------------------------------


def test_what_is_kept_is_read_where_it_lies(counted):
    arena, tokens, vectors = arena_of()
    long, short = np.arange(2 * BLOCK + 5, dtype=np.int32), tokens_of(3)
    rows = np.arange(8, dtype=np.float32).reshape(2, HIDDEN)
    arena.keep_tokens([(key("a"), long, None), (key("b"), short, None)])
    arena.keep_vectors([(key("a"), rows, None)])
    [held] = arena.find_vectors([key("a")])
    forward = forward_of(text(arena, "a", long), Text(short), Vectors(rows, tokens_of(1), held))
    place = dict(zip(forward.scores_of[:, 1].tolist(), places_in(arena, forward), strict=True))
    assert tokens[place[0]].reshape(-1)[: len(long)].tolist() == long.tolist()
    assert place[1] is None
    assert vectors[place[2]].tolist() == rows.tolist()
    assert counted() == {"yes": 2, "no": 1}
    assert (len(arena), arena.bytes_used) == (3, 4 * (4 * BLOCK + 2 * HIDDEN))


def places_in(arena, forward):
    with arena.reading(forward) as places:
        return list(places)


def test_what_was_dropped_overwritten_or_is_not_the_same_is_sent(counted):
    clock = Clock()
    arena, *_ = arena_of(blocks=3, clock=clock)
    items = [tokens_of(length) for length in (5, 6, 7)]
    arena.keep_tokens([(key(name), item, None) for name, item in zip("abc", items, strict=True)])
    forward = forward_of(*(text(arena, name, item) for name, item in zip("abc", items, strict=True)))
    other = forward_of(replace(text(arena, "c", items[2]), tokens=tokens_of(8)))
    assert [place is None for place in places_in(arena, forward)] == [False] * 3
    arena.keep_tokens([(key("a", version=2), tokens_of(5, 9), None)])  # overwritten
    arena.keep_tokens([(key("d"), tokens_of(5, 9), None)])  # b had rested longest
    assert [place is None for place in places_in(arena, forward)] == [True, True, False]
    assert places_in(arena, other) == [None]
    arena.remove(key("c"))
    assert places_in(arena, forward) == [None] * 3
    assert counted() == {"yes": 4, "gone": 6}


def test_a_place_of_another_arena_or_of_the_other_table_is_none_of_this(counted):
    arena, *_ = arena_of()
    before, *_ = arena_of()
    item, rows = tokens_of(1), np.ones((1, HIDDEN), np.float32)
    for one in (arena, before):
        one.keep_tokens([(key("a"), item, None)])
    [held] = arena.find_tokens([key("a")])
    assert places_in(arena, forward_of(text(before, "a", item))) == [None]
    assert places_in(arena, forward_of(Vectors(rows, tokens_of(1), held))) == [None]
    assert counted() == {"gone": 2}


def test_the_expired_go_first_then_what_was_used_longest_ago():
    clock = Clock()
    arena, *_ = arena_of(blocks=3, clock=clock)
    arena.keep_tokens(
        [(key("old"), tokens_of(1), None), (key("used"), tokens_of(1), None), (key("x"), tokens_of(1), 5)]
    )
    clock.now = 5
    arena.keep_tokens([(key("y"), tokens_of(1), None)])
    assert [one is None for one in arena.find_tokens([key(name) for name in ("x", "old", "used", "y")])] == [
        True,
        *[False] * 3,
    ]
    arena.find_tokens([key("old")])
    arena.keep_tokens([(key("z"), tokens_of(1), None)])
    assert [one is None for one in arena.find_tokens([key(name) for name in ("old", "used", "y", "z")])] == [
        False,
        True,
        False,
        False,
    ]


def test_a_block_that_a_forward_may_read_is_given_to_nobody_until_it_has_ended():
    arena, tokens, _ = arena_of(blocks=2)
    item = tokens_of(2 * BLOCK)
    arena.keep_tokens([(key("a"), item, None)])
    busy = DROPPED.labels("busy")._value.get()
    with arena.reading(forward_of(text(arena, "a", item))) as [place]:
        arena.keep_tokens([(key("b"), tokens_of(5, 9), None)])
        assert arena.find_tokens([key("a"), key("b")]) == [None, None]
        assert tokens[place].reshape(-1).tolist() == item.tolist()
    assert DROPPED.labels("busy")._value.get() == busy + 1
    arena.keep_tokens([(key("b"), tokens_of(5, 9), None)])
    assert arena.find_tokens([key("b")])[0] is not None


def test_some_blocks_are_kept_free_for_what_comes_while_forwards_read():
    arena, *_ = arena_of(blocks=64)
    names = [str(number) for number in range(64)]
    arena.keep_tokens([(key(name), tokens_of(1), None) for name in names])
    assert len(arena) == 64 - 64 // device_arena.SPARE
    with arena.reading(forward_of(Text(tokens_of(1)))):
        arena.keep_tokens([(key(f"new {number}"), tokens_of(1), None) for number in range(4)])
    assert all(arena.find_tokens([key(f"new {number}") for number in range(4)]))


class Later:
    """The end of a copy that has not come."""

    over = False

    def query(self):
        return self.over

    def synchronize(self):
        raise AssertionError("waited for without end")


def test_what_is_still_on_its_way_is_sent_and_waited_for_by_nobody(monkeypatch, counted):
    event, send = Later(), device_arena._Staging.send
    monkeypatch.setattr(device_arena._Staging, "send", lambda *given: send(*given) or event)
    arena, *_ = arena_of()
    arena.keep_tokens([(key("a"), tokens_of(5), None)])
    forward = forward_of(text(arena, "a", tokens_of(5)))
    assert places_in(arena, forward) == [None]
    event.over = True
    assert places_in(arena, forward) != [None]
    assert counted() == {"late": 1, "yes": 1}


def busy():
    return DROPPED.labels("busy")._value.get()


@pytest.mark.parametrize("patience_s", [0.0, 0.02])
def test_a_device_that_copies_no_more_keeps_nobody_waiting(monkeypatch, patience_s):
    event, send = Later(), device_arena._Staging.send

    def hanging(staging, *given):
        send(staging, *given)
        staging._copied = event
        return event

    monkeypatch.setattr(device_arena._Staging, "send", hanging)
    arena, *_ = arena_of()
    before = busy()
    for name in "abc":  # two are staged, the third finds the first in its way
        arena.keep_tokens([(key(name), tokens_of(5), None)], patience_s)
    assert [one is None for one in arena.find_tokens([key(name) for name in "abc"])] == [False, False, True]
    assert busy() == before + 1
    event.over = True
    arena.keep_tokens([(key("c"), tokens_of(5), None)], patience_s)
    assert arena.find_tokens([key("c")]) != [None]


def test_a_request_waits_for_nobody_who_keeps(monkeypatch):
    """The feed's thread stands in the middle of a copy."""
    sending, on, send = threading.Event(), threading.Event(), device_arena._Staging.send

    def standing(*given):
        sending.set()
        on.wait(60)
        return send(*given)

    arena, *_ = arena_of()
    before = busy()
    with monkeypatch.context() as patched:
        patched.setattr(device_arena._Staging, "send", standing)
        feed = threading.Thread(target=arena.keep_tokens, args=([(key("a"), tokens_of(5), None)],))
        feed.start()
        try:
            assert sending.wait(60)
            request = threading.Thread(
                target=arena.keep_tokens, args=([(key(name), tokens_of(5), None) for name in "bc"],), daemon=True
            )
            request.start()
            request.join(20)
            assert not request.is_alive()
        finally:
            on.set()
            feed.join(60)
    assert busy() == before + 2
    assert [one is None for one in arena.find_tokens([key(name) for name in "abc"])] == [False, True, True]


def test_more_than_staging_takes_goes_in_turns_and_what_is_larger_not_at_all(monkeypatch):
    monkeypatch.setattr(device_arena, "STAGED_BYTES", 4 * 4 * BLOCK)
    arena, tokens, _ = arena_of(blocks=32)
    items = [
        (key(str(number)), tokens_of(length, number), None) for number, length in enumerate([33, 65, 1, 129, 97, 32])
    ]
    arena.keep_tokens(items)
    held = arena.find_tokens([one for one, _, _ in items])
    assert [one is None for one in held] == [False, False, False, True, False, False]
    for (_, item, _), one in zip(items, held, strict=True):
        if one is not None:
            assert tokens[one.blocks].reshape(-1)[: len(item)].tolist() == item.tolist()


class Ticking(Clock):
    """A millisecond passes whenever it is asked."""

    def __call__(self):
        self.now += 1
        return self.now


@pytest.mark.parametrize("blocks", [7, 40, 512])
def test_one_copy_writes_a_block_once_whatever_is_dropped_while_it_is_filled(monkeypatch, blocks):
    """A device lays rows in any order: here from the last to the first."""
    send, copies = device_arena._Staging.send, []

    def backwards(staging, count, stream):
        copies.append(staging.at[:count].tolist())
        for each in (staging.at, staging.rows):
            each[:count] = each[:count][::-1].copy()
        return send(staging, count, stream)

    monkeypatch.setattr(device_arena._Staging, "send", backwards)
    monkeypatch.setattr(device_arena, "STAGED_BYTES", 4 * BLOCK * 512)
    clock, chance = Ticking(), np.random.default_rng(blocks)
    arena, tokens, _ = arena_of(blocks, clock=clock)
    items, rounds, serial = {}, 6, 0
    for _ in range(rounds):
        batch = []
        for _ in range(200):  # some twice in a batch, as another text or version
            serial += 1
            name, version, expires = str(chance.integers(100)), int(chance.integers(1, 4)), int(chance.integers(1, 300))
            one = key(name, version, serial)
            items[one] = tokens_of(int(chance.integers(1, 5 * BLOCK)), serial)
            batch.append((one, items[one], clock.now + expires if expires < 100 else None))
        arena.keep_tokens(batch)
        live = dict(zip(items, arena.find_tokens(list(items)), strict=True))
        for one, held in live.items():
            if held is not None:
                assert tokens[held.blocks].reshape(-1)[: held.length].tolist() == items[one].tolist()
        assert sum(held is not None for held in live.values()) == len(arena) > 0
    assert len(copies) >= rounds
    assert all(len(set(at)) == len(at) for at in copies)


def test_what_cannot_be_copied_is_not_kept_and_nobody_fails_by_it(monkeypatch):
    def broken(*_):
        raise RuntimeError("the device is gone")

    arena, *_ = arena_of()
    before = DEGRADED.labels("ranker", "device arena")._value.get()
    with monkeypatch.context() as patched, capture_logs() as logs:
        patched.setattr(device_arena._Staging, "send", broken)
        arena.keep_tokens([(key("a"), tokens_of(5), None)])
    assert logs[0]["error"] == "the device is gone"
    assert DEGRADED.labels("ranker", "device arena")._value.get() == before + 1
    assert (arena.find_tokens([key("a")]), arena.bytes_used) == ([None], 0)
    arena.keep_tokens([(key("a"), tokens_of(5), None)])
    assert places_in(arena, forward_of(text(arena, "a", tokens_of(5)))) != [None]


def test_a_device_that_fails_is_told_of_once_for_all_items(monkeypatch):
    def broken(*_):
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(device_arena._Staging, "ready", broken)
    arena, *_ = arena_of()
    before = DEGRADED.labels("ranker", "device arena")._value.get()
    with capture_logs() as logs:
        arena.keep_tokens([(key(str(number)), tokens_of(5), None) for number in range(100)])
    assert [one["count"] for one in logs] == [100]
    assert DEGRADED.labels("ranker", "device arena")._value.get() == before + 1
    assert len(arena) == 0


_keeps = st.tuples(
    st.just("keep"),
    st.integers(0, 2),
    st.integers(1, 2),
    st.integers(0, 1),
    st.integers(1, 2 * BLOCK),
    st.none() | st.integers(0, 40),
)
_operations = st.lists(
    st.one_of(
        _keeps,
        _keeps,
        st.tuples(st.just("ask")),
        st.tuples(st.sampled_from(["pack", "pack", "end"])),
        st.tuples(st.just("remove"), st.integers(0, 2), st.integers(1, 2)),
        st.tuples(st.just("pass"), st.integers(1, 10)),
    ),
    min_size=8,
    max_size=60,
)


@given(_operations, st.integers(1, 5))
def test_whatever_happens_forwards_read_the_tokens_of_their_requests(operations, blocks):
    """Forwards go on reading until they end, and requests wait with what they found, while items come and go."""
    clock = Clock()
    arena, tokens, _ = arena_of(blocks, clock=clock)
    last, asked, packed = None, [], []
    for serial, (operation, *values) in enumerate(operations):
        if operation == "keep":
            name, version, number, length, expires = values
            one, item = key(str(name), version, number), tokens_of(length, serial)
            if arena.find_tokens([one]) == [None]:
                arena.keep_tokens([(one, item, expires)])
                last = text(arena, str(name), item, version, number)
        elif operation == "ask" and last is not None:
            asked.append(last)
        elif operation == "remove":
            arena.remove(key(str(values[0]), values[1]))
        elif operation == "pack" and asked and len(packed) < 2:
            forward = forward_of(*asked)
            in_order = [asked[item] for _, item in forward.scores_of.tolist()]
            reading = arena.reading(forward)
            packed.append((reading, in_order, reading.__enter__()))
        elif operation == "end" and packed:
            packed.pop(0)[0].__exit__(None, None, None)
        elif operation == "pass":
            clock.now += values[0]
        assert arena.bytes_used <= tokens.nbytes
        for _, items, places in packed:
            for item, place in zip(items, places, strict=True):
                assert place is None or tokens[place].reshape(-1)[: len(item)].tolist() == item.tokens.tolist()


# --- room ----------------------------------------------------------------------------------------------------------


def test_a_device_with_less_room_has_a_smaller_arena_which_is_said_and_counted():
    asked, before = Room(3 << 20, 1 << 20), DEGRADED.labels("ranker", "device arena")._value.get()
    assert asked.within(4 << 20) == asked.within(None) == asked
    with capture_logs() as logs:
        assert asked.within(1 << 20) == Room(768 << 10, 256 << 10)
        assert asked.within(-5) == Room()
    assert [(one["asked_mib"], one["made_mib"]) for one in logs] == [(4, 1), (4, 0)]
    assert DEGRADED.labels("ranker", "device arena")._value.get() == before + 2
    assert (Room(4 * BLOCK * 3 + 5).blocks(), Room(0, 4 * 1_024 * 2 + 7).rows(1_024)) == (3, 2)


# --- forwards ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[pytest.param("interpreter"), pytest.param("cuda", marks=pytest.mark.cuda)])
def place(request):
    return devices.checked(request.param)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return Weights.load(random_qwen3(tmp_path_factory.mktemp("qwen3"), head_dim=16, num_hidden_layers=1))


class World:
    """A backend with an arena and one without, and items that are asked of both."""

    def __init__(self, weights, place, capture=None):
        room = Room(4 * BLOCK * 12, 4 * 32 * 3)
        self.backend = DeviceBackend(weights, place, 256, room=room, now_ms=lambda: 0, capture=capture)
        self.plain = DeviceBackend(weights, place, 256, capture=capture)
        chance = np.random.default_rng(5)
        self.texts = {
            name: chance.integers(0, 64, length, dtype=np.int32)
            for name, length in zip("abcd", (5, 33, 64, 70), strict=True)
        }
        self.rows = {
            name: chance.standard_normal((count, 32), dtype=np.float32) for name, count in (("v", 2), ("w", 1))
        }
        self.keep("abcd")

    def keep(self, names, version=1):
        self.backend.arena.keep_tokens([(key(name, version), self.texts[name], None) for name in names])
        self.backend.arena.keep_vectors([(key(name, version), rows, None) for name, rows in self.rows.items()])
        if self.backend.device.type == "cuda":
            torch.cuda.synchronize()

    def forward(self, held=True):
        arena, names = self.backend.arena, list(self.texts)
        there = arena.find_tokens([key(name) for name in names])
        rows = arena.find_vectors([key(name) for name in self.rows])
        items = [Text(self.texts[name], one if held else None) for name, one in zip(names, there, strict=True)]
        items += [
            Vectors(value, np.ones(2, np.int32), one if held else None)
            for value, one in zip(self.rows.values(), rows, strict=True)
        ]
        (forward,) = plan([Request(np.arange(9, dtype=np.int32), tuple(items))], 10_000, 10_000)
        return forward


@pytest.fixture
def world(weights, place):
    return World(weights, place)


def test_scores_are_the_same_to_the_last_bit_wherever_items_lie(world, weights, counted):
    wanted = world.plain.logits(world.forward(held=False))
    np.testing.assert_allclose(wanted, TorchBackend(weights, threads=1).logits(world.forward(held=False)), atol=1e-5)
    assert np.array_equal(world.backend.logits(world.forward()), wanted)
    assert counted() == {"yes": 6}
    assert np.array_equal(world.backend.logits(world.forward(held=False)), wanted)
    assert len(set(wanted.round(4))) == 6


def test_what_is_overwritten_evicted_or_removed_between_request_and_forward_changes_no_score(world, counted):
    wanted = world.plain.logits(world.forward(held=False))
    forward = world.forward()
    arena = world.backend.arena
    arena.keep_tokens([(key("a", version=2), np.full(5, 3, np.int32), None)])
    arena.remove(key("b"))
    arena.keep_vectors([(key("w", version=2), np.ones((1, 32), np.float32), None)])
    assert np.array_equal(world.backend.logits(forward), wanted)
    assert counted() == {"yes": 3, "gone": 3}
    arena.keep_tokens([(key(f"new {number}"), np.full(40, 3, np.int32), None) for number in range(6)])
    arena.keep_vectors([(key(f"new {number}"), np.ones((1, 32), np.float32), None) for number in range(3)])
    assert np.array_equal(world.backend.logits(forward), wanted)
    assert counted() == {"yes": 3, "gone": 9}


def test_what_comes_while_two_are_in_flight_reaches_neither(world):
    wanted = world.plain.logits(world.forward(held=False))
    first = world.backend.launch(world.forward())
    world.backend.arena.keep_tokens([(key(f"new {number}"), np.full(64, 3, np.int32), None) for number in range(4)])
    second = world.backend.launch(world.forward())
    world.backend.arena.keep_tokens([(key(f"newer {number}"), np.full(64, 3, np.int32), None) for number in range(4)])
    assert np.array_equal(first.wait(), wanted)
    assert np.array_equal(second.wait(), wanted)


def test_what_comes_and_goes_captures_no_graph_anew(weights, place):
    if place.type != "cpu":
        pytest.skip("counted where graphs are stand-ins")
    captured = []
    world = World(weights, place, capture=lambda launch: captured.append(launch) or launch)
    wanted = world.plain.logits(world.forward(held=False))
    captured.clear()
    for _ in range(2):
        assert np.array_equal(world.backend.logits(world.forward()), wanted)
        world.backend.arena.keep_tokens([(key(f"new {number}"), np.full(64, 3, np.int32), None) for number in range(9)])
        assert np.array_equal(world.backend.logits(world.forward()), wanted)
        world.keep("abcd")
    assert len(captured) == 1


def test_whoever_keeps_while_forwards_run_changes_no_score(world):
    wanted = world.plain.logits(world.forward(held=False))
    stop, failed = threading.Event(), []

    def churn():
        version = 2
        try:
            while not stop.is_set():
                names = [*"abcd", *(f"new {number}" for number in range(4))]
                world.backend.arena.keep_tokens(
                    [(key(name, version), np.full(60, 3, np.int32), None) for name in names]
                )
                for name in "abcd":
                    world.backend.arena.remove(key(name, version))
                world.keep("abcd")
                version += 1
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(4):
            assert np.array_equal(world.backend.logits(world.forward()), wanted)
    finally:
        stop.set()
        thread.join(60)
    assert not failed


def test_the_arena_is_as_large_as_the_device_has_room_for_and_counted(weights, place, monkeypatch):
    room = Room(4 * BLOCK * 12, 4 * 32 * 3)
    plain = DeviceBackend(weights, place, 256)
    whole = DeviceBackend(weights, place, 256, room=room)
    staged = whole.nbytes - plain.nbytes - room.tokens - room.vectors
    assert staged == (0 if place.type == "cpu" else 2 * (room.tokens + room.vectors + 8 * (12 + 3)))
    monkeypatch.setattr(device_module, "_admit", lambda *_: (room.tokens + room.vectors) // 3)
    with capture_logs() as logs:
        third = DeviceBackend(weights, place, 256, room=room)
    assert third.arena._tables[0].blocks.count == 4
    assert logs[0]["remedy"].startswith("lower ranker.forward_tokens")
