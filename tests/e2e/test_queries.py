"""Queries on Kafka: from search.query.v1 through Flink and the ranker to rank.result.v1."""

import pytest
from system import eventually, posting

from penstock.schemas import topics
from penstock.schemas.events import MinVersion, Page, RankResult, SearchQuery
from penstock.schemas.filters import is_in


def result_of(system, request_id: str) -> RankResult:
    return eventually(
        lambda: next((r for r in system.read(topics.RANK_RESULTS) if r.request_id == request_id), None),
        f"a result for {request_id}",
    )


@pytest.fixture(scope="module")
def company(system) -> str:
    name = system.new_id("queries")
    made = [posting(system.new_id(f"n{n}"), company=name, title=f"Veterinary nurse {n}") for n in range(7)]
    system.publish(topics.POSTINGS, *made)
    for p in made:
        system.row(p.posting_id, version=1)
    return name


def test_a_published_query_is_answered_with_timings(system, company):
    query = SearchQuery(
        request_id=system.new_id("q"), text="veterinary nurse", filters=is_in("company", company), deadline_ms=60_000
    )
    system.publish(topics.QUERIES, query)
    result = result_of(system, query.request_id)
    assert result.error is None
    assert len(result.items) == 7
    assert [item.score for item in result.items] == sorted((item.score for item in result.items), reverse=True)
    assert all(0 <= item.score <= 1 for item in result.items)
    assert result.model_id
    assert {"queue", "retrieve", "score"} <= set(result.timings)


def test_the_topic_and_the_call_rank_alike(system, company):
    query = SearchQuery(
        request_id=system.new_id("q"), text="nurse 3", filters=is_in("company", company), deadline_ms=60_000
    )
    system.publish(topics.QUERIES, query)
    by_topic = result_of(system, query.request_id)
    by_call = system.search(query.text, filters=query.filters)
    assert [(i.posting_id, i.score) for i in by_topic.items] == [(i.posting_id, i.score) for i in by_call.items]


def test_the_second_asking_comes_from_the_score_cache(system, company):
    first = system.search("animal care", filters=is_in("company", company))
    second = system.search("animal care", filters=is_in("company", company))
    assert second.cache_hits == len(first.items) == 7
    assert [i.score for i in second.items] == [i.score for i in first.items]


def test_pages_neither_repeat_nor_skip(system, company):
    ours = is_in("company", company)
    whole = [i.posting_id for i in system.search("nurse", filters=ours, size=7).items]
    seen, cursor = [], None
    while True:
        page = system.search("nurse", filters=ours, size=3, cursor=cursor)
        seen += [i.posting_id for i in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == whole


def test_a_poison_query_is_a_dead_letter(system, company):
    raw = b"\xc3\x01 not a query " + system.new_id("x").encode()
    system.publish_raw(topics.QUERIES, [("k", raw)])
    good = SearchQuery(request_id=system.new_id("q"), text="nurse", page=Page(size=1), deadline_ms=60_000)
    system.publish(topics.QUERIES, good)
    assert len(result_of(system, good.request_id).items) == 1
    eventually(lambda: [x for x in system.dead_letters(topics.QUERIES) if x.raw == raw], "the poison's dead letter")


def test_a_read_of_one_s_own_write_waits_for_it(system):
    p = posting(system.new_id("mine"))
    system.publish(topics.POSTINGS, p)
    result = system.search(
        "veterinary nurse",
        filters=is_in("posting_id", p.posting_id),
        min_version=MinVersion(posting_id=p.posting_id, version=1),
    )
    assert [i.posting_id for i in result.items] == [p.posting_id]


def test_a_query_whose_deadline_has_passed_is_answered_so(system, company):
    query = SearchQuery(request_id=system.new_id("late"), text="nurse", deadline_ms=1)
    system.publish(topics.QUERIES, query)
    result = result_of(system, query.request_id)
    assert result.items == ()
    assert "deadline" in result.error
