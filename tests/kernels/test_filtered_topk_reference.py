"""The oracle of the kernels, itself held to exact arithmetic."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.kernels.filtered_topk.reference import exact_dot, filtered_topk

floats = st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**60), max_value=2.0**60)


@settings(max_examples=150)
@given(st.lists(st.tuples(floats, floats), max_size=40))
def test_a_dot_product_is_the_real_sum_rounded_once(pairs):
    rows = torch.tensor([[a for a, _ in pairs]], dtype=torch.float32).bfloat16()
    query = torch.tensor([b for _, b in pairs], dtype=torch.float32)
    exact = sum((Fraction(a) * Fraction(b) for a, b in zip(rows[0].tolist(), query.tolist(), strict=True)), Fraction(0))
    assert exact_dot(rows, query).item() == float(exact)  # float(Fraction) rounds once, ties to even


def test_sums_next_to_half_way_between_two_float64_are_rounded_by_their_last_bit():
    """Of the best rows for a query several in a hundred: few bits take part, but for one tiny value."""
    torch.manual_seed(3)
    query = torch.nn.functional.normalize(torch.randn(384), dim=0)
    rows = torch.nn.functional.normalize(query + 0.06 * torch.randn(300, 384), dim=1).bfloat16()
    query[7] = 2.0**-105
    wanted = [sum(map(Fraction, products), Fraction(0)) for products in (rows.double() * query.double()).tolist()]
    assert any(abs(abs(Fraction(float(x)) - x) - Fraction(math.ulp(float(x))) / 2) < 2.0**-60 for x in wanted)
    assert exact_dot(rows, query).tolist() == [float(one) for one in wanted]


def test_a_dot_product_does_not_depend_on_where_the_row_lies():
    torch.manual_seed(1)
    row, query = torch.randn(384).bfloat16(), torch.randn(384)
    for count in (1, 2, 7, 33, 257):
        rows = torch.randn(count, 384).bfloat16()
        for place in {0, count // 2, count - 1}:
            rows[place] = row
            assert exact_dot(rows, query)[place] == exact_dot(row[None], query)[0]


def case(count=50, batch=3, seed=0):
    torch.manual_seed(seed)
    dense = torch.randint(-2, 3, (count, 8)).bfloat16()
    sketch = torch.randint(-2, 3, (count, 16)).to(torch.int8)
    return dense, sketch, torch.randint(-2, 3, (batch, 8)).float(), torch.randint(0, 2, (batch, 16)).float()


@pytest.mark.parametrize("k", [1, 7, 49, 50, 80])
@pytest.mark.parametrize("per_query", [False, True])
def test_top_k_against_plain_sorting(k, per_query):
    dense, sketch, q_dense, q_lexical = case()
    passes = torch.rand(3, 50) < 0.6 if per_query else torch.rand(50) < 0.6
    ties = torch.randperm(50) - 25
    scores, index = filtered_topk(dense, sketch, q_dense, q_lexical, passes, ties, k)
    for b in range(3):
        allowed = passes[b] if per_query else passes
        rows = [
            (
                -float((dense[i].double() @ q_dense[b].double()) + (sketch[i].double() @ q_lexical[b].double())),
                int(ties[i]),
                i,
            )
            for i in range(50)
            if allowed[i]
        ]
        best = sorted(rows)[:k]
        assert index[b].tolist() == [i for *_, i in best] + [-1] * (k - len(best))
        assert scores[b].tolist() == [-score for score, *_ in best] + [-torch.inf] * (k - len(best))


def test_nothing_passes_and_nothing_is_there():
    dense, sketch, q_dense, q_lexical = case()
    _, index = filtered_topk(dense, sketch, q_dense, q_lexical, torch.zeros(50, dtype=torch.bool), torch.arange(50), 4)
    assert index.tolist() == [[-1] * 4] * 3
    none = torch.zeros(0, dtype=torch.bool)
    _, index = filtered_topk(dense[:0], sketch[:0], q_dense, q_lexical, none, torch.arange(0), 2)
    assert index.tolist() == [[-1, -1]] * 3
