import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.ranker.shaping.spend import Claim, Purse, tokens, water_fill
from penstock.ranker.shaping.work import Work
from penstock.schemas.events import RankClass


def claim(
    margins: list[float], *, item: float = 10.0, least: int = 1, most: int | None = None, hits: float = 0.0
) -> Claim:
    wanted = len(margins)
    falling = np.sort(np.array(margins))[::-1]
    work = Work(0, "t", RankClass.INTERACTIVE, 0.0, 1.0, 5.0, item, wanted, least, falling, hits)
    return Claim(work, min(least, wanted), wanted if most is None else most)


claims = st.lists(
    st.builds(
        claim,
        st.lists(st.floats(0.0, 1.0), min_size=1, max_size=6),
        item=st.sampled_from([1.0, 3.0, 10.0]),
        hits=st.sampled_from([0.0, 0.5, 1.0]),
    ),
    min_size=1,
    max_size=4,
)


def relevance(of: list[Claim], depths: tuple[int, ...] | list[int]) -> float:
    return sum(float(one.work.margins[:depth].sum()) for one, depth in zip(of, depths, strict=True))


@given(claims, st.floats(0.0, 1.0))
def test_no_other_depths_within_the_budget_are_worth_more_than_a_candidate_more(of: list[Claim], part: float) -> None:
    least, most = ([getattr(one, name) for one in of] for name in ("least", "most"))
    budget = tokens(of, least) + part * (tokens(of, most) - tokens(of, least))
    depths = water_fill(of, budget)
    assert tokens(of, depths) <= budget + 1e-7
    assert all(one.least <= depth <= one.most for one, depth in zip(of, depths, strict=True))
    best = max(
        relevance(of, other)
        for other in itertools.product(*(range(one.least, one.most + 1) for one in of))
        if tokens(of, other) <= budget
    )
    dearest = max(one.each for one in of)
    worth = max(
        (
            float(one.work.margins[depth]) / one.each
            for one, depth in zip(of, depths, strict=True)
            if depth < one.most and one.each
        ),
        default=0.0,
    )
    assert relevance(of, depths) >= best - worth * dearest * len(of) - 1e-9


@given(st.lists(st.tuples(claims, st.floats(0, 1), st.floats(0, 1.5)), min_size=1, max_size=30))
def test_a_purse_never_spends_more_than_uniform_depth_and_its_loan(
    batches: list[tuple[list[Claim], float, float]],
) -> None:
    purse = Purse()
    planned_sum = spent_sum = 0.0
    largest = 0.0
    for of, part, room in batches:
        uniform = max(1.0, 6 * part)
        depths_planned = [min(max(one.least, round(uniform)), one.most) for one in of]
        planned, floors = tokens(of, depths_planned), tokens(of, [one.least for one in of])
        most = room * planned
        depths = purse.spend(of, planned, most, uniform)
        spent = tokens(of, depths)
        assert all(one.least <= depth <= one.most for one, depth in zip(of, depths, strict=True))
        assert spent <= max(most, floors) + 1e-6
        largest = max(largest, planned)
        planned_sum += planned
        spent_sum += spent
        # Where even the floors pass what there is, they are given all the same.
        planned_sum += max(0.0, spent - max(planned, 0.0)) if spent == floors else 0.0
        assert spent_sum <= planned_sum + largest + 1e-6


def test_tokens_go_from_works_with_flat_margins_to_works_with_steep_ones_that_come_later() -> None:
    """One work a batch, as on a small engine: more relevance than uniform depth, for no more tokens."""
    deep, shallow = np.exp2(-np.arange(600) / 400), np.exp2(-np.arange(600) / 20)
    purse = Purse()
    gained = uniform_gained = spent = 0.0
    for n in range(400):
        of = claim(list(deep if n % 2 else shallow), least=50)
        planned = of.work.tokens(200)
        (depth,) = purse.spend([of], planned, 1e9, 200.0)
        if n >= 100:
            spent += of.work.tokens(depth)
            gained += relevance([of], [depth])
            uniform_gained += relevance([of], [200])
    assert spent <= 1.02 * 300 * of.work.tokens(200)
    assert gained >= 1.15 * uniform_gained


@pytest.mark.parametrize("half", [5, 100, 10_000])
def test_works_that_are_alike_are_ranked_alike_whatever_the_shape_of_their_margins(half: int) -> None:
    purse = Purse()
    of = claim(list(np.exp2(-np.arange(600) / half)), least=50)
    seen = [purse.spend([of], of.work.tokens(200), 1e9, 200.0)[0] for _ in range(300)]
    assert all(195 <= depth <= 205 for depth in seen[50:])


@pytest.mark.parametrize("item", [0.7, 1.0, 3.0, 7.3, 41.7, 120.0, 333.3])
def test_margins_that_are_all_alike_get_what_uniform_depth_gives(item: float) -> None:
    """No candidate is lost by rounding between a price and its logarithm, nor when margins fall behind the price."""
    purse = Purse()
    for n in range(40):
        of = claim([0.95**n] * 250, item=item, least=50)
        assert purse.spend([of], of.work.tokens(200), 1e9, 200.0, idle=True)[0] >= 200
    of = claim([1.0] * 250, item=item, least=50)
    assert Purse().spend([of], of.work.tokens(250), 1e9, 250.0) == [250]


def test_what_cannot_be_saved_is_spent() -> None:
    """Margins fall faster than the price follows: uniform depth's tokens are spent but for half a batch."""
    purse = Purse()
    spent = planned = 0.0
    for n in range(40):
        of = claim([0.5**n] * 250, item=3.0, least=50)
        planned += of.work.tokens(200)
        spent += of.work.tokens(purse.spend([of], of.work.tokens(200), 1e9, 200.0)[0])
        assert spent >= planned - 0.5 * of.work.tokens(200) - 3.0 * (n + 1)


def test_works_that_are_alike_share_what_cannot_be_saved_alike() -> None:
    alike = [claim([1.0] * 100, item=1.0) for _ in range(3)]
    assert water_fill(alike, tokens(alike, [40, 40, 40])) == [40, 40, 40]
