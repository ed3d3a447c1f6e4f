import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.ranker.shaping.cost import CostModel, Prior

PRIOR = Prior(0.002, 2.5e-6)


def taught(model: CostModel, batches: int, overhead_s: float, token_s: float, noise: float = 0.0) -> None:
    draw = random.Random(7)
    for _ in range(batches):
        tokens = draw.uniform(2_000, 60_000)
        model.observed(tokens, (overhead_s + token_s * tokens) * draw.uniform(1 - noise, 1 + noise))


@given(st.floats(0.0, 0.02), st.floats(5e-7, 1e-5))
def test_it_finds_what_batches_take(overhead_s: float, token_s: float) -> None:
    model = CostModel(PRIOR, 16_384)
    taught(model, 120, overhead_s, token_s)
    for tokens in (3_000, 30_000, 60_000):
        assert model.predict(tokens) == pytest.approx(overhead_s + token_s * tokens, rel=0.02)
    assert model.confidence > 0.8


def test_noise_moves_it_little_and_shows_in_its_spread() -> None:
    model = CostModel(PRIOR, 16_384)
    taught(model, 300, 0.002, 2.5e-6, noise=0.2)
    assert model.predict(30_000) == pytest.approx(0.077, rel=0.08)
    assert 0.05 < model.spread < 0.2


@pytest.mark.parametrize("factor", [3.0, 1 / 3])
def test_an_engine_that_changes_is_believed_at_its_second_batch(factor: float) -> None:
    model = CostModel(PRIOR, 16_384)
    taught(model, 60, 0.002, 2.5e-6)
    for tokens in (20_000, 20_000):  # alike: they do not say what is overhead
        model.observed(tokens, factor * (0.002 + 2.5e-6 * tokens))
    for tokens in (1_000, 60_000):
        assert model.predict(tokens) == pytest.approx(factor * (0.002 + 2.5e-6 * tokens), rel=0.02)


def test_one_outlier_changes_nothing_but_the_spread() -> None:
    model = CostModel(PRIOR, 16_384)
    taught(model, 60, 0.002, 2.5e-6)
    before = model.predict(20_000)
    model.observed(20_000, 1.0)
    assert model.predict(20_000) == before
    assert model.spread > 0.2


def test_after_one_slow_batch_the_next_had_better_be_shorter() -> None:
    model = CostModel(PRIOR, 16_384)
    taught(model, 60, 0.002, 2.5e-6)
    assert model.caution == 1.0
    model.observed(20_000, 3 * model.predict(20_000))
    assert model.caution == pytest.approx(3.0)
    model.observed(20_000, model.predict(20_000))
    assert model.caution == 1.0, "it was an outlier"


def test_two_noisy_batches_do_not_say_what_is_overhead() -> None:
    """Admission counts an overhead a work: half a second of it would refuse everyone."""
    model = CostModel(Prior(0.005, 5e-5), 4_096)
    for tokens, ratio in ((2_481, 1.29), (2_622, 0.85), (1_311, 0.87), (2_013, 0.92)):
        model.observed(tokens, ratio * (0.0034 + 33.5e-6 * tokens))
        assert model.overhead_s < 0.02


def test_sizes_that_are_all_alike_do_not_undo_what_is_known_of_others() -> None:
    """Without directional forgetting a thousand of them would leave the overhead to chance."""
    model = CostModel(PRIOR, 16_384)
    taught(model, 60, 0.002, 2.5e-6)
    draw = random.Random(1)
    for _ in range(1_000):
        model.observed(20_000, (0.002 + 2.5e-6 * 20_000) * draw.uniform(0.99, 1.01))
    assert model.predict(60_000) == pytest.approx(0.152, rel=0.05)
    assert model.predict(2_000) == pytest.approx(0.007, rel=0.3)


@given(
    st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e3) | st.sampled_from([math.nan, math.inf, -1.0])), max_size=60)
)
def test_whatever_it_is_told_its_predictions_are_durations(batches: list[tuple[float, float]]) -> None:
    model = CostModel(PRIOR, 16_384)
    for tokens, seconds in batches:
        model.observed(tokens, seconds)
    assert model.overhead_s >= 0 and model.token_s > 0
    assert 0 < model.predict(1_000) < math.inf
    assert model.predict(2_000) > model.predict(1_000)
    assert 0 <= model.confidence <= 1


@pytest.mark.parametrize("wrong", [(-0.1, 1e-6), (0.0, 0.0), (math.nan, 1e-6), (0.0, math.inf)])
def test_a_prior_that_is_none_is_refused(wrong: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="measure a short and a long batch"):
        Prior(*wrong)
