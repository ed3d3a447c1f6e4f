"""The life of a posting, through the real broker, the real Flink and the real roles."""

import time
from dataclasses import replace

import pytest
from system import eventually, posting

from penstock.schemas import topics
from penstock.schemas.events import EmploymentType, IndexOp, Location, Op, Salary
from penstock.schemas.filters import all_of, is_in, near
from penstock.schemas.rpc import GetRequest, RowState
from penstock.schemas.wire import codec


def now_ms() -> int:
    return int(time.time() * 1000)


def ids(result) -> list[str]:
    return [item.posting_id for item in result.items]


def test_a_posting_becomes_searchable_with_what_models_add(system):
    p = posting(system.new_id("vet"), employment_type=EmploymentType.PART_TIME)
    system.publish(topics.POSTINGS, p)
    row = system.row(p.posting_id, version=1)
    assert row.state is RowState.LIVE
    assert row.update.attributes.title == p.title
    assert row.update.attributes.employment_type is EmploymentType.PART_TIME
    assert row.update.vector is not None
    assert len(row.update.vector.dense) == 2 * 384
    assert row.update.summary
    assert row.searchable_at >= row.update.produced_at
    found = system.search("veterinary nurse", filters=is_in("posting_id", p.posting_id))
    assert ids(found) == [p.posting_id]
    assert found.items[0].version == 1
    assert not found.degraded


def test_meaning_and_words_both_find(system):
    company = system.new_id("company")
    plumber = posting(
        system.new_id("p"), title="Plumber", description="Install and repair water pipes in houses.", company=company
    )
    teacher = posting(
        system.new_id("t"), title="Primary school teacher", description="Teach reading to children.", company=company
    )
    zymurgist = posting(
        system.new_id("z"), title="Zymurgist", description="Oversee fermentation at the zymurgy lab.", company=company
    )
    system.publish(topics.POSTINGS, plumber, teacher, zymurgist)
    for p in (plumber, teacher, zymurgist):
        system.row(p.posting_id, version=1)
    ours = is_in("company", company)
    assert ids(system.search("someone to educate pupils", filters=ours))[0] == teacher.posting_id
    assert ids(system.search("fix leaking taps and drains", filters=ours))[0] == plumber.posting_id
    assert ids(system.search("zymurgy", filters=ours))[0] == zymurgist.posting_id


def test_the_newest_version_wins_whatever_the_order(system):
    p = posting(system.new_id("order"), version=5, title="Fifth")
    system.publish(topics.POSTINGS, replace(p, version=3, title="Third"), p)
    system.publish(topics.POSTINGS, replace(p, version=4, title="Fourth"), p)
    marker = posting(p.posting_id + "-marker")
    system.publish(topics.POSTINGS, marker)
    row = system.row(p.posting_id, version=5)
    assert row.update.attributes.title == "Fifth"
    updates = [u for u in system.read(topics.INDEX) if u.posting_id == p.posting_id]
    keys = [(u.version, u.revision) for u in updates]
    assert keys == sorted(set(keys)), "one writer, strictly increasing"
    assert 4 not in [version for version, _ in keys]


def test_a_changed_posting_is_searchable_by_its_new_words_only(system):
    company = system.new_id("company")
    p = posting(system.new_id("change"), title="Baker", description="Bake bread at night.", company=company)
    system.publish(topics.POSTINGS, p)
    system.row(p.posting_id, version=1)
    system.publish(topics.POSTINGS, replace(p, version=2, company=company + "-new", salary=Salary(min=1, max=2)))
    row = system.row(p.posting_id, version=2)
    assert row.update.attributes.salary == Salary(min=1, max=2)
    assert ids(system.search("baker", filters=is_in("company", company))) == []
    assert ids(system.search("baker", filters=is_in("company", company + "-new"))) == [p.posting_id]


def test_a_deleted_posting_is_gone_and_an_older_version_does_not_bring_it_back(system):
    p = posting(system.new_id("delete"), version=2)
    system.publish(topics.POSTINGS, p)
    system.row(p.posting_id, version=2)
    system.publish(topics.POSTINGS, replace(p, version=4, op=Op.DELETE), replace(p, version=3, title="Too late"))
    system.until(p.posting_id, RowState.DELETED, version=4)
    assert ids(system.search("veterinary nurse", filters=is_in("posting_id", p.posting_id))) == []
    system.publish(topics.POSTINGS, replace(p, version=5, title="Back again"))
    assert system.row(p.posting_id, version=5).update.attributes.title == "Back again"


def test_a_posting_expires_by_itself(system):
    p = posting(system.new_id("expire"), expires_at=now_ms() + 4_000)
    system.publish(topics.POSTINGS, p)
    row = system.row(p.posting_id, version=1)
    assert row.state in (RowState.LIVE, RowState.EXPIRED)
    system.until(p.posting_id, RowState.EXPIRED, version=1)
    assert now_ms() >= p.expires_at, "not before its time"
    assert ids(system.search("veterinary nurse", filters=is_in("posting_id", p.posting_id))) == []
    eventually(
        lambda: [u for u in system.read(topics.INDEX) if u.posting_id == p.posting_id and u.op is IndexOp.EXPIRE],
        "the postings job says EXPIRE on the index topic",
    )


def test_every_kind_of_poison_is_a_dead_letter_and_delays_nobody(system):
    key = system.new_id("poison")
    good = codec(topics.POSTINGS.record)
    poison = {
        "garbage": b"\x00\xff not a record " + key.encode(),
        "unknown fingerprint": b"\xc3\x01" + b"\x01" * 8 + key.encode(),
        "truncated": good.encode(posting(key, description="x" * 500))[:-100],
        "invalid": good.encode(posting(key, title=None)),
        "oversized field": good.encode(posting(key, description="x" * 70_000)),
        "expires too late": good.encode(posting(key, expires_at=now_ms() + 3 * 365 * 86_400_000)),
        "empty": b"",
    }
    after = posting(system.new_id("after"))
    system.publish_raw(topics.POSTINGS, [(key, raw) for raw in poison.values()])
    system.publish(topics.POSTINGS, after)
    system.row(after.posting_id, version=1)

    def all_there() -> dict[bytes, object] | None:
        letters = {letter.raw: letter for letter in system.dead_letters(topics.POSTINGS)}
        return letters if set(poison.values()) <= letters.keys() else None

    letters = eventually(all_there, "a dead letter with the raw bytes of every poison record")
    for name, raw in poison.items():
        letter = letters[raw]
        assert letter.topic == topics.POSTINGS.name
        assert letter.message, name
        assert letter.stage in ("decode", "validate"), name
    assert letters[poison["unknown fingerprint"]].error_class == "UnknownSchema"
    assert "title" in letters[poison["invalid"]].message
    assert "description" in letters[poison["oversized field"]].message


def test_a_version_published_twice_with_different_content_is_refused(system):
    p = posting(system.new_id("conflict"), title="First")
    other = replace(p, title="Second")
    system.publish(topics.POSTINGS, p, other, p)
    raw = codec(topics.POSTINGS.record).encode(other)
    letter = eventually(
        lambda: next((x for x in system.dead_letters(topics.POSTINGS) if x.raw == raw), None), "the refused one"
    )
    assert letter.stage == "order"
    assert system.row(p.posting_id, version=1).update.attributes.title == "First"


@pytest.fixture(scope="module")
def columbus(system):
    """Three postings of one company: in Columbus, in Denver, and nowhere said."""
    company = system.new_id("places")
    made = {
        "columbus": posting(
            system.new_id("columbus"),
            company=company,
            location=Location(text="Columbus, Ohio", country="US", region="OH", city="Columbus", lat=39.96, lon=-83.0),
        ),
        "denver": posting(
            system.new_id("denver"),
            company=company,
            location=Location(
                text="Denver, Colorado", country="US", region="CO", city="Denver", lat=39.74, lon=-104.99
            ),
        ),
        "nowhere": posting(system.new_id("nowhere"), company=company),
    }
    system.publish(topics.POSTINGS, *made.values())
    for p in made.values():
        system.row(p.posting_id, version=1)
    return company, {name: p.posting_id for name, p in made.items()}


def test_a_caller_s_filter_is_hard_and_a_query_s_words_exclude_known_violations_only(system, columbus):
    company, place = columbus
    ours = is_in("company", company)
    hard = system.search("veterinary nurse", filters=all_of(ours, is_in("location.region", "OH")))
    assert ids(hard) == [place["columbus"]]
    close = system.search("veterinary nurse", filters=all_of(ours, near(40.0, -83.0, 50.0)))
    assert ids(close) == [place["columbus"]]
    soft = system.search("veterinary nurse in Ohio", filters=ours)
    assert set(ids(soft)) == {place["columbus"], place["nowhere"]}
    [ohio] = [u for u in soft.understood if u.filter.field == "location.region" or "Ohio" in u.label]
    assert ohio.applied


def test_a_place_nobody_has_is_understood_but_not_applied(system, columbus):
    company, place = columbus
    result = system.search("veterinary nurse in Reykjavik, Iceland", filters=is_in("company", company))
    assert set(ids(result)) == set(place.values())
    assert result.understood
    assert not any(u.applied for u in result.understood if u.needs_values)


def test_get_of_what_nobody_published(system):
    row = system.retrieval.get(GetRequest(posting_ids=(system.new_id("never"),)), timeout=5).rows[0]
    assert row.state is RowState.ABSENT
    assert row.update is None
