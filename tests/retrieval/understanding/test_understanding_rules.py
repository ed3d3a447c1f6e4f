"""Queries and what is read out of them, the text form of the filters being the verdict. Every line is one decision."""

import pytest

from penstock.retrieval.understanding.rules import RuleUnderstander
from penstock.schemas.filters import describe

NOW_MS = 1_767_225_600_000
DAY_MS = 86_400_000


@pytest.fixture(scope="module")
def read():
    understander = RuleUnderstander()

    def texts(query):
        return [describe(one.filter) for one in understander.understand(query, now_ms=NOW_MS)]

    return texts


FULL = "employment_type?=FULL_TIME,PERMANENT_OTHER,CONTRACT,TEMPORARY"
PART = "employment_type?=PART_TIME,CONTRACT,TEMPORARY,INTERNSHIP,PERMANENT_OTHER"


@pytest.mark.parametrize(
    ("query", "filters"),
    [
        ("remote accountant", ["remote?=REMOTE"]),
        ("work from home typist", ["remote?=REMOTE"]),
        ("data engineer, remote or hybrid", ["remote?=REMOTE,HYBRID"]),
        ("not remote", ["!remote?=REMOTE"]),
        ("I don't want a remote job", ["!remote?=REMOTE"]),
        ("remote sensing scientist", []),
        ("remote patient monitoring nurse", []),
        ("hybrid vehicle technician", []),
        ("designer, ideally remote", []),
        ("java dev, remote or hybrid if poss", []),
        ("freelance designer seeks full-time work", [FULL]),
        ("full-time nurse", [FULL]),
        ("full or part time nurse", [f"{FULL},PART_TIME,INTERNSHIP"]),
        ("full time, part-time ok", [f"{FULL},PART_TIME,INTERNSHIP"]),
        ("nurse manager, permanent full-time", ["employment_type?=FULL_TIME,PERMANENT_OTHER"]),
        ("nurse, not part-time", ["!employment_type?=PART_TIME"]),
        ("contract specialist", []),
        ("contracting officer", []),
        ("contract job in python", ["employment_type?=CONTRACT,TEMPORARY"]),
        ("unpaid IT internship", ["employment_type?=INTERNSHIP,TEMPORARY"]),
        ("internal medicine", []),
        ("summer job at a lake", ["employment_type?=TEMPORARY,CONTRACT,INTERNSHIP,PART_TIME"]),
        ("senior developer", ["seniority?=SENIOR,LEAD,EXECUTIVE"]),
        ("senior living director", []),
        ("senior care aide", []),
        ("lead paint inspector", []),
        ("executive assistant", []),
        ("mid level not senior", ["seniority?=MID,SENIOR", "!seniority?=SENIOR"]),
        ("no experience required cashier", ["seniority?=INTERN,ENTRY,MID"]),
        ("I coordinate trainee onboarding", []),
    ],
)
def test_hours_and_levels(read, query, filters):
    assert read(query) == filters


@pytest.mark.parametrize(
    ("query", "filters"),
    [
        ("welder over $60k", ["salary.annual_max?>=60000"]),
        ("at least 25 an hour in a warehouse", ["salary.annual_max?>=52000"]),
        ("$80,000+ data engineer", ["salary.annual_max?>=80000"]),
        ("60-80k project manager", ["salary.annual_max?>=60000 AND salary.annual_min?<=80000"]),
        ("chef under 100k", ["salary.annual_min?<=100000"]),
        ("cook paying $18-22 per hour", ["salary.annual_max?>=37440 AND salary.annual_min?<=45760"]),
        ("six-figure pay", ["salary.annual_max?>=100000"]),
        ("earn 5k a month", ["salary.annual_max?>=60000"]),
        ("over £40,000 a year", ["salary.annual_max?>=40000 AND salary.currency?=GBP"]),
        ("warehouse of 50,000 sq ft", []),
        ("401k administrator", []),
        ("devops, not some huge 10k+ corp", []),
        ("analyst, $90k+", ["salary.annual_max?>=90000"]),
        ("over 10 years experience", []),
        ("under 20 hours a week", []),
        ("manager of over 200 people", []),
        ("data scientist $150k", []),  # neither floor nor ceiling is said
        ("around $60k would be nice", []),
        ("posted in the last 3 days", [f"posted_at?>={NOW_MS - 3 * DAY_MS:.10g}"]),
        ("jobs posted this week", [f"posted_at?>={NOW_MS - 7 * DAY_MS:.10g}"]),
        ("post office clerk, last week of May", []),
    ],
)
def test_pay_and_age(read, query, filters):
    assert read(query) == filters


@pytest.mark.parametrize(
    ("query", "out", "kept"),
    [
        ("analyst GS-12", ["GS-10", "GS-9/10", "GS-14", "GG-14"], ["GS-11", "GS-12", "GS-13", "GS-7/12", "WG-10"]),
        ("clerk gs 9", ["GS-6", "GS-12"], ["GS-7", "GS-9", "GS-11", "GS-9/12"]),
        ("ranger GS-12 or up", ["GS-10", "GS-5/7"], ["GS-15", "GS-12"]),
        ("clerk GS-7 or below", ["GS-10", "GS-15"], ["GS-1", "GS-7", "GS-9"]),
        ("supply spec gs 7-9 or 11", ["GS-4", "GS-13"], ["GS-5", "GS-7", "GS-11", "GS-12"]),
        ("mechanic WG-10", ["WG-8", "WG-12"], ["WG-9", "WG-10", "WG-11", "GS-5"]),
    ],
)
def test_grades_rule_out_what_is_out_of_reach_and_nothing_else(query, out, kept):
    (one,) = RuleUnderstander().understand(query, now_ms=NOW_MS)
    ruled_out = set(one.filter.children[0].values)
    assert set(out) <= ruled_out
    assert not ruled_out & set(kept)


@pytest.mark.parametrize("query", ["not GS-12", "GS-5 or WG-10", "GS 99", "NF-4 or NF-1 to NF-6", "gs-12 hours"])
def test_no_grade_is_read(read, query):
    assert read(query) == []


@pytest.mark.parametrize(
    ("query", "filters"),
    [
        ("mental health RN but NOT inpatient", ["!title.terms?=inpati"]),
        ("backend dev, no java pls", ["!title.terms?=java"]),
        ("anything but sales", ["!title.terms?=sale"]),
        ("clinic nurse, not nursing home or nights", ["!(title.terms?=nurs,rn AND title.terms?=home)"]),
        ("manager, not supervising", ["!title.terms?=supervis,supervisor,supervisori,supv"]),
        ("not agent - HR, admin", ["!title.terms?=agent"]),
        ("nurse without night shifts", []),
        ("no experience needed to apply", ["seniority?=INTERN,ENTRY,MID"]),
        ("no degree", []),
        ("no travel", []),
        ("I am not a physical therapist", []),
        ("not only nursing", []),
        ("a nurse, not just any nurse", []),
        ("no surgical background and I'd love a change", []),
    ],
)
def test_exclusions(read, query, filters):
    assert read(query) == filters


def test_an_or_between_two_ideas_demands_neither(read):
    assert read("remote or in Denver") == []
    assert len(read("remote, in Denver")) == 2


def test_the_span_is_the_words_it_was_read_from():
    found = RuleUnderstander().understand("Nurse in Columbus, Ohio, paying over $60k", now_ms=NOW_MS)
    assert [(one.label, one.span) for one in found] == [
        ("in Columbus, OH", "Columbus, Ohio"),
        ("pays at least 60,000 a year", "over $60k"),
    ]
    assert [one.needs_values for one in found] == [True, False]
