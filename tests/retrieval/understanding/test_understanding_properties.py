"""What holds for any query: it never fails, its filters run, and a posting of which nothing is known passes."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.retrieval.search.evaluate import evaluate
from penstock.retrieval.search.filters import pushed
from penstock.retrieval.store.columns import Columns
from penstock.retrieval.understanding.rules import RuleUnderstander
from penstock.schemas.events import Attributes, IndexOp, IndexUpdate

PIECES = st.sampled_from(
    re.split(
        r"\s+",
        "nurse in Ohio or not remote no part-time $60k over under 25 an hour per GS-12 gs 7-9 and up below senior "
        "entry level near Denver Washington DC Springfield , / - ( ) ! new york Guam posted this week last 3 days "
        "java without except 100k permanent seasonal internship ideally ok AZ tx west Texas the Midwest 50 miles of "
        "9/11 £40,000 İstanbul ß",
    )
)
QUERIES = st.text(max_size=120) | st.lists(PIECES, max_size=14).map(" ".join)


@pytest.fixture(scope="module")
def understander():
    return RuleUnderstander()


@pytest.fixture(scope="module")
def unknown():
    """One posting that has a title and no attribute."""
    columns = Columns(1)
    columns.write(
        0,
        IndexUpdate(posting_id="p", version=1, op=IndexOp.UPSERT, attributes=Attributes(title="qqq"), produced_at=0),
    )
    return columns


@given(text=QUERIES)
def test_only_known_violations_are_excluded(understander, unknown, text):
    for one in understander.understand(text, now_ms=1_767_225_600_000):
        assert evaluate(pushed(one.filter), unknown, 1).all(), one


@given(text=QUERIES)
def test_the_same_words_always_read_the_same(understander, text):
    first = understander.understand(text, now_ms=5)
    assert first == RuleUnderstander().understand(text, now_ms=5)
    assert all(one.span in text and one.label for one in first)


@pytest.mark.parametrize("text", ["", " ", "\x00", "a" * 8192, "$" * 500, "not " * 400, "in Ohio " * 300, "-" * 1000])
def test_odd_queries(understander, text):
    understander.understand(text, now_ms=0)
