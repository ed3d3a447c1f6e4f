"""Topics: one place for names, and promises that later parts rely on."""

import re

import pytest

from penstock.schemas import topics
from penstock.schemas.events import DeadLetter, Posting, RankQuery, RankRequest


def test_names_are_domain_entity_version_and_unique():
    names = [topic.name for topic in topics.TOPICS]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z]+\.[a-z]+\.v\d+", name) for name in names)


def test_every_event_has_exactly_one_topic():
    records = [topic.record for topic in topics.TOPICS]
    assert len(set(records)) == len(records)


def test_keys():
    assert topics.POSTINGS.key(Posting(posting_id="p", version=1)) == "p"
    request = RankRequest(request_id="r", tenant="t", deadline=0, query=RankQuery(text=""))
    assert topics.RANK_REQUESTS.key(request) == "t/r"


def test_the_index_outlives_the_longest_posting_and_is_compacted():
    assert topics.INDEX.retention_ms > topics.LONGEST_POSTING_LIFE
    assert topics.INDEX.config()["cleanup.policy"] == "compact,delete"
    assert "cleanup.policy" not in topics.POSTINGS.config()


def test_dead_letters():
    letters = topics.dead_letter_topic(topics.POSTINGS)
    assert (letters.name, letters.record) == ("jobs.posting.v1.dlq", DeadLetter)
    assert letters.retention_ms > topics.POSTINGS.retention_ms
    assert topics.topic_named("jobs.posting.v1.dlq").name == letters.name
    assert topics.topic_named("index.update.v1") is topics.INDEX
    with pytest.raises(KeyError, match=r"there are: jobs\.posting\.v1"):
        topics.topic_named("jobs.posting.v9")


def test_no_other_file_names_a_topic(request):
    """Topic names stand in topics.py, in docstrings and in documentation; code takes them from there."""
    root = request.config.rootpath
    names = "|".join(re.escape(topic.name) for topic in topics.TOPICS)
    literal = re.compile(rf"""^[^#]*(?<!")["'](?:{names})(?:\.dlq)?["']""", re.MULTILINE)
    offenders = [
        str(path.relative_to(root))
        for folder in ("schemas", "jobs", "retrieval", "ranker", "infra", "kernels")
        for path in (root / folder).rglob("*.py")
        if path.name != "topics.py" and literal.search(path.read_text(encoding="utf-8"))
    ]
    assert offenders == []
    assert literal.search('x = "jobs.posting.v1"'), "the pattern finds what it is for"
