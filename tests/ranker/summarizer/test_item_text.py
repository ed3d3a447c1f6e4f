"""The text the ranking model reads: in a fixed order, absent parts left out, bounded."""

from hypothesis import given
from hypothesis import strategies as st

from penstock.ranker.summarizer.item_text import item_text
from penstock.schemas.events import PostingText


def test_the_order_of_the_parts():
    posting = PostingText(
        title="Nurse", company="VA", location="Reno, Nevada", grade="VN-2", skills=("ICU", "BLS"), description="…"
    )
    assert item_text(posting, "Cares.") == "Nurse | VA | Reno, Nevada | VN-2 | ICU, BLS\nCares."


def test_absent_parts_leave_no_trace():
    assert item_text(PostingText(title=" Nurse \n", description="…"), "") == "Nurse"


@given(
    part=st.text(max_size=3_000),
    skills=st.lists(st.text(max_size=100), max_size=100).map(tuple),
    summary=st.text(max_size=300),
)
def test_it_is_bounded_whatever_the_attributes(part, skills, summary):
    posting = PostingText(title=part, company=part, location=part, grade=part, skills=skills, description="")
    assert len(item_text(posting, summary)) <= 740 + len(summary)
