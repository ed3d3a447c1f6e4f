"""The shipped sample, and anyone's files."""

import json

import pytest

from penstock.infra.demo import sample
from penstock.schemas import filters, jsonl
from penstock.schemas.events import Posting
from penstock.schemas.validate import check_posting

NOW = 1_763_700_000_000
DAY = 86_400_000


def test_the_sample_is_real_open_now_and_allowed():
    postings = sample.shipped_postings(NOW).postings
    assert 1_900 <= len(postings) <= 2_100
    assert len({posting.posting_id for posting in postings}) == len(postings)
    assert len({(posting.title, posting.description) for posting in postings}) == len(postings)
    assert len({posting.category for posting in postings}) > 200
    for posting in postings:
        check_posting(posting, now_ms=NOW, max_life_ms=365 * DAY)
        assert posting.posted_at <= NOW < NOW + DAY < posting.expires_at
        assert posting.version == NOW


def test_the_sample_has_sixty_queries():
    queries = sample.shipped_queries()
    assert len(queries) == 60
    assert len({query.query_id for query in queries}) == 60


def test_anyones_postings_with_wrong_lines_told_by_number_and_field(tmp_path):
    file = tmp_path / "postings.jsonl"
    good = {"posting_id": "a", "version": 1, "title": "T", "description": "D"}
    file.write_text(
        f"{json.dumps(good)}\n\n{json.dumps(good | {'salary': {'min': 'x'}})}\nnot json\n", encoding="utf-8"
    )
    lines = sample.read_postings(file)
    assert [posting.posting_id for posting in lines.postings] == ["a"]
    assert [line.split(": ")[0] for line in lines.refused] == [f"{file}:3", f"{file}:4"]
    assert "salary.min" in lines.refused[0]


def test_a_file_without_a_posting_is_refused(tmp_path):
    file = tmp_path / "postings.jsonl"
    file.write_text("\n", encoding="utf-8")
    with pytest.raises(sample.BadInput, match="empty"):
        sample.read_postings(file)
    with pytest.raises(sample.BadInput, match="cannot read"):
        sample.read_postings(tmp_path / "nowhere.jsonl")


def test_queries_under_either_name_and_filters_in_either_form(tmp_path):
    tree = filters.parse("remote=REMOTE")
    file = tmp_path / "queries.jsonl"
    lines = [
        {"query_id": "q1", "text": "nurse"},
        {"request_id": "q2", "query": "clerk", "filters": ["remote=REMOTE"]},
        {"query_id": "q3", "text": "", "filters": {"kind": "IN", "field": "remote", "values": ["REMOTE"]}},
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert [(q.query_id, q.event.text, q.event.filters) for q in sample.read_queries(file)] == [
        ("q1", "nurse", None),
        ("q2", "clerk", tree),
        ("q3", "", tree),
    ]


def test_a_query_keeps_every_field_it_was_given_and_the_postings_tenant_else(tmp_path):
    file = tmp_path / "queries.jsonl"
    line = {"query_id": "q", "text": "x", "person_id": "me", "deadline_ms": 77, "page": {"size": 3}, "class": "ALERT"}
    file.write_text(f'{json.dumps(line)}\n{{"query_id": "r", "text": "y", "tenant": "own"}}\n', encoding="utf-8")
    first, second = sample.read_queries(file, "acme")
    held = jsonl.to_json(first.event)
    assert held["request_id"] == "q" and held["tenant"] == "acme"
    assert all(held[name] == line[name] for name in line.keys() - {"query_id"})
    assert (second.event.tenant, second.event.deadline_ms) == ("own", sample.QUERY_DEADLINE_MS)


def test_the_queries_tenant_is_that_of_all_postings_or_the_one_named():
    def of(*tenants):
        return [Posting(posting_id=f"p{n}", version=1, tenant=tenant) for n, tenant in enumerate(tenants)]

    assert sample.tenant_of(of("acme", "acme"), None) == "acme"
    assert sample.tenant_of(of("acme", "other"), "other") == "other"
    with pytest.raises(sample.SeveralTenants, match=r"acme, other.*--tenant"):
        sample.tenant_of(of("other", "acme"), None)


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ('{"text": "nurse"}', "query_id"),
        ('{"query_id": "q"}', "text"),
        ('{"query_id": "q", "text": " "}', "text"),
        ('{"query_id": "q", "text": "x", "filters": ["salary>=x"]}', "salary"),
        ('{"query_id": "q", "text": "x"}\n{"query_id": "q", "text": "y"}', "twice"),
        ("[1]", "query"),
        ("nonsense", ":1:"),
        ('\n{"query_id": "q", "text": "x", "depth": 5}', ":2: depth"),
        ('{"query_id": "q", "text": "x", "query": "y"}', "query"),
        ('{"query_id": "q", "text": "x", "class": "SOON"}', "class"),
        ('{"query_id": "' + "q" * 250 + '", "text": "x"}', "query_id"),
    ],
)
def test_a_wrong_query_is_named(tmp_path, line, names):
    file = tmp_path / "queries.jsonl"
    file.write_text(line + "\n", encoding="utf-8")
    with pytest.raises(sample.BadInput, match=names):
        sample.read_queries(file)
