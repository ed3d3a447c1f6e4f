"""Summaries: within the budget for any text, made of the text's own sentences, the same every time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.ranker.summarizer.extractive import ExtractiveSummarizer
from penstock.ranker.summarizer.sentences import MAX_READ, sentences
from penstock.ranker.summarizer.tokens import approximate_tokens, cut
from penstock.schemas.events import PostingText

SENTENCES = st.sampled_from(
    [
        "Repairs hydraulic pumps and valves on aircraft.",
        "Thank you for your interest in this position.",
        "1.",
        "A. I have not had education, training, or experience in performing this task.",
        "• Supervises a crew of twelve mechanics;",
        "Requires a licence e.g. from the U.S. Coast Guard.",
        "Ünïcode gehört dazu.",
        "見習い看護師を募集しています。",
        "no end of this one and it goes on and on without any stop",
    ]
)
TEXTS = (
    st.text(max_size=400)
    | st.lists(SENTENCES, max_size=20).map(" ".join)
    | st.lists(SENTENCES, max_size=20).map("\n".join)
    | st.text(alphabet="ab ", min_size=500, max_size=2_000)
)


def posting(description, title="Aircraft Mechanic"):
    return PostingText(title=title, description=description)


def normalised(text):
    return " ".join(text.split())


@given(text=TEXTS, budget=st.integers(1, 120))
def test_the_budget_holds_for_any_text(text, budget):
    summary = ExtractiveSummarizer(budget).summarize(posting(text))
    assert approximate_tokens(summary) <= budget


@given(text=TEXTS, budget=st.integers(1, 40), factor=st.integers(1, 5))
def test_the_budget_holds_for_a_counter_that_is_not_additive(text, budget, factor):
    def count(words):
        return factor * len(words) // 3 + len(words.split()) ** 2 // 50

    summary = ExtractiveSummarizer(budget, count, "odd").summarize(posting(text))
    assert count(summary) <= budget


@given(text=TEXTS)
def test_sentences_are_substrings_of_the_text_in_its_order(text):
    whole, at = normalised(text), 0
    for sentence in sentences(text):
        assert sentence == normalised(sentence) and sentence
        found = whole.find(sentence, at)
        assert found >= 0
        at = found


@given(text=TEXTS, budget=st.integers(5, 80))
def test_a_summary_is_made_of_the_texts_sentences(text, budget):
    summary = ExtractiveSummarizer(budget).summarize(posting(text))
    order = list(dict.fromkeys(sentences(text)))
    left = {summary}
    for sentence in order:
        left |= {rest[len(sentence) :].removeprefix(" ") for rest in left if rest.startswith(sentence)}
    assert "" in left or any(sentence.startswith(summary) for sentence in order)


@given(text=TEXTS)
def test_the_same_posting_gives_the_same_summary(text):
    assert ExtractiveSummarizer(60).summarize(posting(text)) == ExtractiveSummarizer(60).summarize(posting(text))


def test_the_work_is_kept_and_the_form_is_left_out():
    text = (
        "Thank you for your interest in a position with the agency. Your responses are subject to verification.\n"
        "1. Select the one statement that best describes your experience.\n"
        "A. I have not had education, training, or experience in performing this task.\n"
        "2. Repairs and overhauls hydraulic pumps of transport aircraft.\n"
        "B. Inspects landing gear and supervises two aircraft mechanics.\n"
        "Please review your responses for accuracy before you submit your application."
    )
    summary = ExtractiveSummarizer(40).summarize(posting(text))
    assert summary == (
        "Repairs and overhauls hydraulic pumps of transport aircraft. "
        "Inspects landing gear and supervises two aircraft mechanics."
    )


def test_nothing_is_said_twice():
    text = "\n".join(["Repairs hydraulic pumps of transport aircraft."] * 6 + ["Writes daily maintenance reports."])
    summary = ExtractiveSummarizer(60).summarize(posting(text))
    assert summary.count("Repairs") == 1 and "reports" in summary


def test_a_posting_of_boilerplate_alone_still_gives_something():
    assert ExtractiveSummarizer(8).summarize(posting("Thank you for your interest in this position with us."))


def test_one_giant_sentence_is_cut_at_a_word():
    summary = ExtractiveSummarizer(10).summarize(posting("repairs pumps and valves " * 400))
    assert summary.startswith("repairs pumps") and summary.split()[-1] in ("repairs", "pumps", "and", "valves")
    assert 5 <= approximate_tokens(summary) <= 10


def test_a_giant_posting_is_read_only_as_far_as_stated():
    late = "Welds submarine hulls."
    text = "Repairs pumps. " * (MAX_READ // 15 + 10) + late
    assert late not in ExtractiveSummarizer(60).summarize(posting(text, "Welder"))


@pytest.mark.parametrize("budget", [0, -5])
def test_a_budget_below_one_is_refused(budget):
    with pytest.raises(ValueError, match="max_tokens"):
        ExtractiveSummarizer(budget)


def test_the_id_names_everything_the_summary_depends_on():
    ids = {
        ExtractiveSummarizer(96).summarizer_id,
        ExtractiveSummarizer(97).summarizer_id,
        ExtractiveSummarizer(96, len, "characters").summarizer_id,
    }
    assert len(ids) == 3


@given(text=st.text(max_size=200), more=st.text(max_size=50))
def test_more_text_never_counts_less(text, more):
    assert approximate_tokens(text + " " + more) == approximate_tokens(text) + approximate_tokens(more)


@given(text=TEXTS, budget=st.integers(0, 30))
def test_a_cut_is_a_start_that_fits(text, budget):
    assert text.startswith(cut(text, budget, approximate_tokens))
    assert approximate_tokens(cut(text, budget, approximate_tokens)) <= budget
