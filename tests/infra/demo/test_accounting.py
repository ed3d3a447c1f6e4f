"""The oracle against a brute-force reading of the rules, and a comparison that misses nothing."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.infra.demo.accounting import Published, State, compare, matches, oracle
from penstock.schemas.events import (
    Attributes,
    DeadLetter,
    EmploymentType,
    IndexOp,
    IndexUpdate,
    Location,
    Op,
    PayPeriod,
    Posting,
    Promotion,
    Remote,
    Salary,
    Seniority,
)
from penstock.schemas.records import fields_of
from penstock.schemas.rpc import Row, RowState
from penstock.schemas.wire import codec

NOW = 1_763_700_000_000
FULL = Posting(
    posting_id="p",
    version=3,
    title="Nurse",
    company="VA",
    description="Cares.",
    location=Location(text="Columbus, Ohio", country="US", region="OH", city="Columbus", lat=39.96, lon=-82.99),
    remote=Remote.HYBRID,
    employment_type=EmploymentType.FULL_TIME,
    seniority=Seniority.MID,
    salary=Salary(min=50_000.0, max=60_000.0, currency="USD", period=PayPeriod.YEAR),
    grade="VN-2",
    category="Nurse",
    skills=("care",),
    posted_at=NOW - 5,
    expires_at=NOW + 1_000_000,
    source="usajobs",
    url="https://example.org/p",
    promotion=Promotion(campaign_id="c"),
)


def published(posting, refused=None):
    return Published(posting.posting_id, codec(Posting).encode(posting), posting, refused)


postings = st.builds(
    Posting,
    posting_id=st.sampled_from("abc"),
    version=st.integers(0, 3),
    op=st.sampled_from([Op.UPSERT, Op.UPSERT, Op.DELETE]),
    tenant=st.sampled_from(["default", "default", "other"]),
    title=st.sampled_from(["x", "y"]),
    description=st.just("d"),
    expires_at=st.sampled_from([None, NOW - 1, NOW, NOW + 1]),
)
events = st.builds(published, postings, st.sampled_from([None, None, None, "validate"]))
runs = st.lists(events, max_size=14)


def winner(run, posting_id):
    """The rule said another way: of the owner's usable events, the first with the highest version."""
    usable = [event.posting for event in run if event.posting_id == posting_id and event.refused is None]
    usable = [posting for posting in usable if posting.tenant == usable[0].tenant]
    return max(usable, key=lambda posting: posting.version, default=None)


def state_of(posting):
    if posting is None:
        return State.REJECTED
    if posting.op is Op.DELETE:
        return State.DELETED
    return State.EXPIRED if posting.expires_at is not None and posting.expires_at <= NOW else State.LIVE


@given(runs)
def test_every_id_is_in_exactly_one_state_with_the_highest_version(run):
    expected = oracle(run).expected(NOW)
    assert expected.keys() == {event.posting_id for event in run}
    for posting_id, wanted in expected.items():
        best = winner(run, posting_id)
        assert wanted.state is state_of(best)
        assert wanted.version == (None if best is None else best.version)
        if wanted.state is State.LIVE:
            assert wanted.attributes.title == best.title
            assert wanted.expires_at == best.expires_at


@given(runs)
def test_what_is_refused_is_what_breaks_a_rule_or_contradicts_its_version(run):
    by_hand = Counter()
    for position, event in enumerate(run):
        first = winner(run[:position], event.posting_id)
        same_version = first is not None and first.version == event.posting.version
        foreign = first is not None and first.tenant != event.posting.tenant
        if event.refused is not None or foreign or (same_version and event.posting != first):
            by_hand[event.value] += 1
    assert oracle(run).refused() == by_hand


@given(runs, st.data())
def test_exact_repeats_change_nothing(run, data):
    repeated = list(run)
    if run:
        for _ in range(3):
            source = data.draw(st.integers(0, len(repeated) - 1))
            repeated.insert(data.draw(st.integers(source + 1, len(repeated))), repeated[source])
    assert oracle(repeated).expected(NOW) == oracle(run).expected(NOW)
    assert oracle(repeated).refused().keys() == oracle(run).refused().keys()


@given(runs)
def test_the_order_between_different_ids_does_not_matter(run):
    apart = sorted(run, key=lambda event: event.posting_id)
    assert oracle(apart).expected(NOW) == oracle(run).expected(NOW)
    assert oracle(apart).refused() == oracle(run).refused()


# --- compare -----------------------------------------------------------------------------------------------------


def row_of(posting, searchable_at=NOW):
    """What a correct index holds after this posting."""
    state = state_of(posting)
    attributes = Attributes(**{f.attribute: getattr(posting, f.attribute) for f in fields_of(Attributes)})
    op = {State.LIVE: IndexOp.UPSERT, State.DELETED: IndexOp.DELETE, State.EXPIRED: IndexOp.EXPIRE}[state]
    update = IndexUpdate(
        posting_id=posting.posting_id,
        version=posting.version,
        op=op,
        attributes=attributes if state is State.LIVE else None,
        produced_at=NOW - 100,
        expires_at=posting.expires_at,
    )
    return Row(posting_id=posting.posting_id, state=RowState[state.name], update=update, searchable_at=searchable_at)


def letter_of(event):
    return DeadLetter(
        topic="jobs.posting.v1", raw=event.value, stage="decode", error_class="X", message="m", failed_at=NOW
    )


LIVE = published(FULL)
DELETED = published(Posting(posting_id="gone", version=9, op=Op.DELETE))
EXPIRED = published(replace(FULL, posting_id="past", expires_at=NOW - 1))
BAD = published(replace(FULL, posting_id="bad", title=" "), "validate")
GARBAGE = Published("garbage", b"\xff\x00\x01", None, "decode")
RUN = [LIVE, DELETED, EXPIRED, BAD, GARBAGE]


def verdict(rows=None, letters=None, run=RUN):
    judge = oracle(run)
    if rows is None:
        rows = good_rows()
    if letters is None:
        letters = [letter_of(BAD), letter_of(GARBAGE)]
    return compare(len(run), judge.expected(NOW), rows, judge.refused(), judge.usable(), letters)


def good_rows():
    rows = {event.posting_id: row_of(event.posting) for event in (LIVE, DELETED, EXPIRED)}
    return rows | {name: Row(posting_id=name, state=RowState.ABSENT) for name in ("bad", "garbage")}


def test_a_clean_run_is_clean():
    result = verdict()
    assert result.clean and result.details == ()
    counts = (result.published, result.live, result.deleted, result.expired, result.rejected, result.dead_lettered)
    assert counts == (5, 1, 1, 1, 2, 2)


def test_an_uncounted_id_is_judged_all_the_same():
    def judged(rows):
        judge = oracle(RUN)
        letters = [letter_of(BAD), letter_of(GARBAGE)]
        return compare(3, judge.expected(NOW), rows, judge.refused(), judge.usable(), letters, {"p", "gone"})

    result = judged(good_rows())
    assert result.clean and (result.published, result.live, result.deleted, result.expired) == (3, 0, 0, 1)
    assert judged({name: row for name, row in good_rows().items() if name != "p"}).lost == 1
    assert judged(good_rows() | {"gone": replace(good_rows()["gone"], state=RowState.LIVE)}).wrong == 1


@pytest.mark.parametrize("missing", ["p", "gone", "past"])
@pytest.mark.parametrize("how", ["absent", "unasked"])
def test_a_missing_row_is_lost(missing, how):
    rows = good_rows()
    if how == "absent":
        rows[missing] = Row(posting_id=missing, state=RowState.ABSENT)
    else:
        del rows[missing]
    result = verdict(rows)
    assert (result.lost, result.wrong) == (1, 0)
    assert missing in result.details[0]


@pytest.mark.parametrize(
    ("posting_id", "state"),
    [
        ("p", RowState.DELETED),
        ("p", RowState.EXPIRED),
        ("gone", RowState.LIVE),
        ("gone", RowState.EXPIRED),
        ("past", RowState.LIVE),
        ("past", RowState.DELETED),
    ],
)
def test_another_state_is_wrong(posting_id, state):
    rows = good_rows()
    rows[posting_id] = replace(rows[posting_id], state=state)
    assert (verdict(rows).lost, verdict(rows).wrong) == (0, 1)


@pytest.mark.parametrize("posting_id", ["p", "gone", "past"])
@pytest.mark.parametrize("change", [{"version": 2}, {"version": 99}, {"tenant": "other"}])
def test_another_version_or_tenant_is_wrong(posting_id, change):
    rows = good_rows()
    rows[posting_id] = replace(rows[posting_id], update=replace(rows[posting_id].update, **change))
    assert (verdict(rows).lost, verdict(rows).wrong) == (0, 1)


@pytest.mark.parametrize("name", [f.attribute for f in fields_of(Attributes)])
def test_any_other_attribute_is_wrong(name):
    rows, others = good_rows(), {"title": "Another", "remote": Remote.ONSITE, "skills": ("care", "more")}
    update = rows["p"].update
    attributes = replace(update.attributes, **{name: others.get(name)})
    if name in ("employment_type", "seniority"):
        attributes = replace(update.attributes, **{name: type(getattr(update.attributes, name))("UNKNOWN")})
    assert attributes != update.attributes
    rows["p"] = replace(rows["p"], update=replace(update, attributes=attributes))
    result = verdict(rows)
    assert (result.lost, result.wrong) == (0, 1)
    assert name in result.details[0]


def test_another_expiry_is_wrong():
    rows = good_rows()
    rows["p"] = replace(rows["p"], update=replace(rows["p"].update, expires_at=None))
    assert verdict(rows).wrong == 1


def test_a_missing_dead_letter_is_lost_and_a_changed_one_does_not_count():
    assert verdict(letters=[letter_of(BAD)]).lost == 1
    cut = replace(letter_of(GARBAGE), raw=GARBAGE.value[:-1])
    result = verdict(letters=[letter_of(BAD), cut])
    assert (result.lost, result.dead_lettered) == (1, 1)


def test_a_letter_may_come_twice_and_another_runs_letters_do_not_matter():
    foreign = replace(letter_of(BAD), raw=b"from another run")
    assert verdict(letters=[letter_of(BAD), letter_of(BAD), letter_of(GARBAGE), foreign]).clean


def test_the_same_bytes_refused_twice_need_two_letters():
    run = [*RUN, GARBAGE]
    assert verdict(run=run).lost == 1
    assert verdict(run=run, letters=[letter_of(BAD), letter_of(GARBAGE), letter_of(GARBAGE)]).clean


def test_a_usable_record_among_the_letters_is_wrong():
    assert verdict(letters=[letter_of(BAD), letter_of(GARBAGE), letter_of(LIVE)]).wrong == 1


def test_a_refused_id_in_the_index_is_wrong():
    rows = good_rows()
    rows["bad"] = replace(row_of(FULL), posting_id="bad")
    result = verdict(rows)
    assert (result.wrong, result.rejected) == (1, 1)


def test_a_repeat_of_a_version_with_other_content_is_refused_and_the_first_stays():
    second = published(replace(FULL, title="Other"))
    judge = oracle([LIVE, second])
    assert judge.expected(NOW)["p"].attributes.title == "Nurse"
    assert judge.refused() == {second.value: 1}
    assert judge.usable() == {LIVE.value}


def test_a_row_matches_exactly_when_nothing_differs():
    expected = oracle(RUN).expected(NOW)
    rows = good_rows()
    assert all(matches(wanted, rows.get(posting_id)) for posting_id, wanted in expected.items())
    assert not matches(expected["p"], rows["gone"])
    assert not matches(expected["bad"], rows["p"])
    assert not matches(expected["p"], None)


def test_last_expiry_is_the_last_that_falls_due_in_time():
    soon = published(replace(FULL, posting_id="soon", expires_at=NOW + 10))
    judge = oracle([LIVE, soon])
    assert judge.last_expiry(NOW + 100) == NOW + 10
    assert judge.last_expiry(NOW) is None
