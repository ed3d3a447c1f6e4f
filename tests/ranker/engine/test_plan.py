"""The plan: whatever the requests, every prompt can be read back out of the forwards, once."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.ranker.engine.plan import TILE_TOKENS, Forward, MalformedRequest, Request, Text, Vectors, plan, unpack

HIDDEN = 3


def tokens(*values):
    return np.array(values, np.int32)


def _tokens(low, high):
    return st.lists(st.integers(1, 9), min_size=low, max_size=high).map(lambda each: np.array(each, np.int32))


def _vectors(count, tail):
    rows = np.arange(count * HIDDEN, dtype=np.float32).reshape(count, HIDDEN)
    return Vectors(rows, tail)


items = st.one_of(
    st.builds(Text, _tokens(1, 90)),
    st.builds(_vectors, st.integers(1, 3), _tokens(0, 3)),
    st.builds(_vectors, st.just(0), _tokens(1, 3)),
)
prefixes = st.one_of(_tokens(0, 80), st.sampled_from([tokens(1, 2, 3), tokens(4)]))
requests_of = st.lists(st.builds(Request, prefixes, st.lists(items, max_size=8).map(tuple), st.booleans()), max_size=8)
room = st.integers(1, 400)


def prompts(forward: Forward):
    """(token, vector or None, position) of each place of each prompt, by (request, item)."""
    rows = dict(zip(forward.embedded.tolist(), forward.rows.tolist(), strict=True))
    found = {}
    for at, of in enumerate(map(tuple, forward.scores_of.tolist())):
        prefix, span = forward.prefixes[forward.prefix_of[at]], forward.items[at]
        assert forward.last[at] == span[1] - 1
        places = [*range(*prefix), *range(*span)]
        found[of] = [(int(forward.tokens[each]), rows.get(each), int(forward.positions[each])) for each in places]
    return found


def written(request, item):
    prompt = [(int(token), None) for token in request.prefix]
    if isinstance(item, Vectors):
        prompt += [(0, row) for row in item.rows.tolist()] + [(int(token), None) for token in item.tail]
    else:
        prompt += [(int(token), None) for token in item.tokens]
    return [(token, row, position) for position, (token, row) in enumerate(prompt)]


@given(requests_of, room, room)
def test_every_prompt_is_in_one_forward_as_it_was_written(requests, budget, interactive):
    forwards = plan(requests, budget, interactive)
    wanted = {
        (number, at): written(request, item)
        for number, request in enumerate(requests)
        for at, item in enumerate(request.items)
    }
    found = [prompts(forward) for forward in forwards]
    assert sum(len(each) for each in found) == len(wanted)
    assert {of: prompt for each in found for of, prompt in each.items()} == wanted


@given(requests_of, room, room)
def test_forwards_stay_within_their_budget_or_hold_one_item(requests, budget, interactive):
    seen_other = False
    for forward in plan(requests, budget, interactive):
        urgent = {requests[request].interactive for request, _ in forward.scores_of.tolist()}
        assert len(urgent) == 1
        assert len(forward) <= (interactive if urgent == {True} else budget) or len(forward.items) == 1
        assert not (seen_other and urgent == {True})
        seen_other |= urgent == {False}


@given(requests_of, room, room)
def test_a_forward_holds_nothing_but_its_segments_and_each_prefix_once(requests, budget, interactive):
    for forward in plan(requests, budget, interactive):
        order = []
        for number, prefix in enumerate(forward.prefixes):
            order += [prefix, *forward.items[forward.prefix_of == number]]
            assert (forward.prefix_of == number).any()
        bounds = np.concatenate(order)
        assert bounds[0] == 0
        assert bounds[-1] == len(forward.tokens) == len(forward.positions)
        assert (bounds[1:-1:2] == bounds[2::2]).all()
        contents = [forward.tokens[start:end].tobytes() for start, end in forward.prefixes]
        assert len(set(contents)) == len(contents)


@given(requests_of, room, room)
def test_tiles_let_each_place_see_its_prefix_and_what_is_before_it_in_its_own_segment(requests, budget, interactive):
    for forward in plan(requests, budget, interactive):
        segments = [*((span, (0, 0)) for span in forward.prefixes.tolist())]
        segments += [
            (span, tuple(forward.prefixes[of].tolist()))
            for span, of in zip(forward.items.tolist(), forward.prefix_of, strict=True)
        ]
        wanted = {
            place: {*range(*prefix), *range(start, place + 1)}
            for (start, end), prefix in segments
            for place in range(start, end)
        }
        seen = {}
        for first, end, prefix_first, prefix_end in forward.tiles.tolist():
            assert 0 < end - first <= TILE_TOKENS
            for place in range(first, end):
                assert place not in seen
                seen[place] = {*range(prefix_first, prefix_end), *range(forward.starts[place], place + 1)}
        assert seen == wanted


@given(requests_of, room, room)
def test_tiles_stand_by_the_keys_that_they_read(requests, budget, interactive):
    for forward in plan(requests, budget, interactive):
        read = [
            (prefix_first - prefix_end + int(forward.starts[first]) - end, first)
            for first, end, prefix_first, prefix_end in forward.tiles.tolist()
        ]
        assert read == sorted(read)


@given(requests_of, room, room)
def test_equal_requests_give_equal_forwards(requests, budget, interactive):
    again = [replace(request, prefix=request.prefix.copy()) for request in requests]
    for one, other in zip(plan(requests, budget, interactive), plan(again, budget, interactive), strict=True):
        for name in Forward.__slots__:
            assert np.array_equal(getattr(one, name), getattr(other, name))


def test_requests_with_one_prefix_share_it_and_their_items_stand_by_length():
    shared, other = tokens(1, 2), tokens(3)
    requests = [
        Request(shared, (Text(tokens(5, 5, 5)), Text(tokens(6)))),
        Request(other, (Text(tokens(7)),)),
        Request(shared, (Text(tokens(8, 8)),)),
    ]
    (forward,) = plan(requests, 100, 100)
    assert forward.tokens.tolist() == [1, 2, 6, 8, 8, 5, 5, 5, 3, 7]
    assert forward.positions.tolist() == [0, 1, 2, 2, 3, 2, 3, 4, 0, 1]
    assert forward.scores_of.tolist() == [[0, 1], [2, 0], [0, 0], [1, 0]]
    assert forward.starts.tolist() == [0, 0, 2, 3, 3, 5, 5, 5, 8, 9]
    assert forward.tiles.tolist() == [[2, 8, 0, 2], [0, 2, 0, 0], [9, 10, 8, 9], [8, 9, 8, 8]]


def test_a_request_longer_than_a_forward_is_split_and_its_prefix_repeated():
    request = Request(tokens(1, 1), tuple(Text(np.full(n, n, np.int32)) for n in (3, 4, 5)))
    first, second = plan([request], 9, 9)
    assert first.tokens.tolist() == [1, 1, 3, 3, 3, 4, 4, 4, 4]
    assert second.tokens.tolist() == [1, 1, 5, 5, 5, 5, 5]
    scores = unpack([request], [first, second], [np.array([0.3, 0.4]), np.array([0.5])])
    assert [each.tolist() for each in scores] == [[0.3, 0.4, 0.5]]


@given(requests_of, room, st.randoms(use_true_random=False))
def test_logits_go_back_to_the_items_they_are_of(requests, budget, random):
    forwards = plan(requests, budget, budget)
    given_ = {(at, item): random.random() for at, one in enumerate(requests) for item in range(len(one.items))}
    logits = [np.array([given_[of] for of in map(tuple, forward.scores_of.tolist())]) for forward in forwards]
    for at, found in enumerate(unpack(requests, forwards, logits)):
        assert found.tolist() == [given_[at, item] for item in range(len(requests[at].items))]


def test_great_numbers_are_finite():
    (forward,) = plan([Request(tokens(1), (Vectors(np.full((2, 3), 3e38, np.float32), tokens(1)),))], 10, 10)
    assert (forward.rows == np.float32(3e38)).all()


def test_a_request_goes_whole_into_the_first_forward_with_room():
    requests = [Request(tokens(n), (Text(np.full(n, n, np.int32)),)) for n in (6, 7, 2)]
    first, second = plan(requests, 10, 10)
    assert [of for of, _ in first.scores_of.tolist()] == [0, 2]
    assert [of for of, _ in second.scores_of.tolist()] == [1]


def test_five_thousand_items():
    request = Request(np.ones(70, np.int32), tuple(Text(np.ones(n % 150 + 1, np.int32)) for n in range(5_000)))
    forwards = plan([request], 8_192, 8_192)
    total = sum(len(item) for item in request.items)
    assert sum(len(forward) for forward in forwards) == total + 70 * len(forwards)
    assert len(forwards) <= total // (8_192 - 70 - 150) + 1


def test_nothing_to_score():
    assert plan([], 10, 10) == []
    assert plan([Request(tokens(1), ())], 10, 10) == []


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (Request(np.array([1.0]), ()), "the prefix: tokens of float64"),
        (Request(tokens(1), (Text(tokens()),)), "item 0 has no token"),
        (Request(tokens(1), (Text(np.zeros((2, 2), np.int32)),)), r"int32 \[2, 2\]: expected int32 \[n\]"),
        (Request(tokens(1), (_vectors(0, tokens()),)), "has no token"),
        (Request(tokens(1), (Vectors(np.zeros(3, np.float32), tokens(1)),)), r"float32 \[3\]"),
        (Request(tokens(1), (Vectors(np.full((1, 3), np.nan, np.float32), tokens(1)),)), "expected finite float32"),
        (Request(tokens(1), (Vectors(np.float32([[1, -np.inf, np.inf]]), tokens(1)),)), "expected finite float32"),
        (
            Request(tokens(1), (_vectors(1, tokens(1)), Vectors(np.zeros((1, 4), np.float32), tokens(1)))),
            "one hidden size",
        ),
    ],
)
def test_what_no_model_can_score(request_, said):
    with pytest.raises(MalformedRequest, match=said):
        plan([request_], 10, 10)


def test_a_forward_of_no_tokens():
    with pytest.raises(ValueError, match="expected at least 1"):
        plan([], 0, 10)
