"""What becomes of a posting, for any order, repetition and interleaving of its events."""

import pickle
from dataclasses import replace

import cloudpickle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.jobs.operators.posting_state import (
    BARE,
    EXPIRED,
    FAST,
    Arrival,
    Transition,
    on_enriched,
    on_posting,
    on_timer,
    plain_text,
)
from penstock.schemas import validate
from penstock.schemas.events import (
    EnrichedPosting,
    Enrichment,
    IndexOp,
    Location,
    Op,
    PayPeriod,
    Posting,
    Promotion,
    Remote,
    Salary,
    Vector,
)
from penstock.schemas.states import PostingState

NOW = 1_000_000
WINDOW = 500_000
FAR = 100_000_000


def vector(name: str) -> Vector:
    return Vector(space_id="s", encoder_id=name, dense=b"\x00\x00")


def fast(name: str = "fast") -> Enrichment:
    return Enrichment(vector=vector(name), summary="short", item_text="item")


def arrival(posting: Posting, enrichment: Enrichment | None = None) -> Arrival:
    text = validate.text_of(posting) if posting.op is Op.UPSERT else None
    return Arrival(
        posting=posting,
        raw=repr(posting).encode(),
        produced_at=NOW - 10,
        event_hash=validate.event_hash(posting),
        text=text,
        text_hash=validate.text_hash(text) if text else None,
        enrichment=enrichment,
    )


BASE = Posting(posting_id="p", version=1, title="Nurse", description="Cares.")
RICH = Posting(
    posting_id="p",
    version=1,
    title="Nurse",
    description="Cares.",
    location=Location(text="Columbus, Ohio", country="US", lat=39.96, lon=-83.0),
    remote=Remote.HYBRID,
    salary=Salary(min=35.0, max=42.0, currency="USD", period=PayPeriod.HOUR),
    skills=("triage", "phlebotomy"),
    promotion=Promotion(campaign_id="c", bid=0.5),
    expires_at=FAR,
    trace="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
)


def published(posting: Posting = BASE, enrichment: Enrichment | None = None, state=None) -> Transition:
    return on_posting(state, arrival(posting, enrichment or fast()), NOW, WINDOW)


def answer(state: PostingState, name: str = "slow", version: int | None = None) -> EnrichedPosting:
    return EnrichedPosting(
        posting_id="p",
        version=state.update.version if version is None else version,
        text_hash=state.text_hash or "",
        enrichment=Enrichment(vector=vector(name), summary="better"),
    )


def test_a_new_posting_is_published_once_and_sent_to_the_slow_lane():
    t = published(replace(BASE, expires_at=FAR))
    assert (t.update.version, t.update.revision, t.update.op) == (1, FAST, IndexOp.UPSERT)
    assert t.update.vector == vector("fast")
    assert t.update.attributes.title == "Nurse"
    assert t.update.produced_at == NOW - 10
    assert t.request.text.description == "Cares."
    assert t.wake_at == FAR
    assert t.refusal is None


def test_without_a_vector_it_is_published_all_the_same_and_healed_by_a_repeat():
    bare = on_posting(None, arrival(BASE), NOW, WINDOW)
    assert (bare.update.revision, bare.update.vector) == (BARE, None)
    again = on_posting(bare.state, arrival(BASE), NOW, WINDOW)
    assert (again.update, again.counted) == (None, ("repeat",))
    healed = on_posting(again.state, arrival(BASE, fast()), NOW, WINDOW)
    assert (healed.update.revision, healed.update.vector) == (FAST, vector("fast"))
    assert on_posting(healed.state, arrival(BASE, fast()), NOW, WINDOW).update is None


def test_stale_and_repeated_events_change_nothing():
    state = published(replace(BASE, version=5)).state
    for event in (replace(BASE, version=4, title="Old"), replace(BASE, version=5)):
        t = on_posting(state, arrival(event, fast()), NOW, WINDOW)
        assert t.state is state
        assert (t.update, t.request, t.refusal) == (None, None, None)


def test_a_version_twice_with_different_content_is_refused_and_the_first_stands():
    state = published().state
    t = on_posting(state, arrival(replace(BASE, title="Doctor"), fast()), NOW, WINDOW)
    assert t.state is state
    assert t.update is None
    assert t.refusal.error.field == "version"
    assert b"Doctor" in t.refusal.arrival.raw


def test_another_tenant_s_posting_is_refused():
    state = published().state
    t = on_posting(state, arrival(replace(BASE, version=9, tenant="other"), fast()), NOW, WINDOW)
    assert t.state is state
    assert t.refusal.error.field == "tenant"


def test_the_same_text_reuses_what_the_slow_lane_made():
    state = published().state
    state = on_enriched(state, answer(state)).state
    t = on_posting(state, arrival(replace(BASE, version=2, url="u"), fast("fast again")), NOW, WINDOW)
    assert t.update.vector == vector("slow")
    assert t.request is None
    changed = on_posting(t.state, arrival(replace(BASE, version=3, title="Doctor"), fast("third")), NOW, WINDOW)
    assert changed.update.vector == vector("third")
    assert changed.request is not None


def test_the_same_text_without_the_fast_lane_keeps_its_vector():
    state = published().state
    t = on_posting(state, arrival(replace(BASE, version=2, url="u")), NOW, WINDOW)
    assert t.update.vector == vector("fast")
    assert t.update.revision == FAST


def test_an_answer_refines_once_and_a_void_one_does_nothing():
    state = published().state
    t = on_enriched(state, answer(state))
    assert (t.update.version, t.update.revision, t.update.vector) == (1, 1, vector("slow"))
    assert (t.update.summary, t.update.item_text) == ("better", "item"), "what it does not say stays"
    assert on_enriched(t.state, answer(t.state)).update is None
    assert on_enriched(None, answer(state)).update is None
    assert on_enriched(t.state, answer(t.state, "x", version=2)).update is None
    moved = published(replace(BASE, version=2, title="Doctor"), state=t.state).state
    assert on_enriched(moved, answer(state)).update is None
    deleted = on_posting(moved, arrival(replace(BASE, version=3, op=Op.DELETE)), NOW, WINDOW).state
    assert on_enriched(deleted, answer(state)).update is None


def test_a_heal_gives_what_the_fast_lane_could_not_and_never_undoes_a_refinement():
    bare = on_posting(None, arrival(BASE), NOW, WINDOW)
    assert bare.request.bare
    heal = replace(answer(bare.state, "fast"), heals=True)
    healed = on_enriched(bare.state, heal)
    assert (healed.update.revision, healed.update.vector, healed.update.percolate) == (FAST, vector("fast"), True)
    assert not healed.state.refined
    assert on_enriched(healed.state, heal).update is None
    for state in (healed.state, bare.state):  # in either order
        refined = on_enriched(state, answer(state))
        assert (refined.update.revision, refined.update.vector) == (1, vector("slow"))
        late = on_enriched(refined.state, heal)
        assert (late.update, late.counted) == (None, ("repeated_answer",))


def test_without_a_model_the_words_are_published_bounded():
    long = replace(BASE, company="Paws", title="Nurse\nat night", description="Cares for animals. " * 1_000)
    text = on_posting(None, arrival(long), NOW, WINDOW).update.item_text
    line, _, body = text.partition("\n")
    assert line == "Nurse at night | Paws"
    assert body == long.description[:2_048]
    assert on_posting(None, arrival(long, fast()), NOW, WINDOW).update.item_text == "item"
    said = Enrichment(item_text="of a model that had no vector")
    assert on_posting(None, arrival(long, said), NOW, WINDOW).update.item_text == said.item_text


def test_a_model_s_text_outlives_a_fast_lane_that_fails_later():
    state = published().state
    again = on_posting(state, arrival(replace(BASE, version=2, url="u")), NOW, WINDOW)
    assert again.update.item_text == "item"
    assert again.update.item_text != plain_text(validate.text_of(BASE))


def test_an_answer_without_a_vector_refines_only_what_has_one():
    summary = Enrichment(summary="better")
    for enrichment, accepted in ((None, False), (fast(), True)):
        state = on_posting(None, arrival(BASE, enrichment), NOW, WINDOW).state
        t = on_enriched(state, replace(answer(state), enrichment=summary))
        assert (t.update is not None) is accepted
        if accepted:
            assert (t.update.vector, t.update.summary) == (vector("fast"), "better")


def test_a_vector_of_another_space_is_not_used_again():
    state = published().state
    state = on_enriched(state, answer(state)).state
    moved = Enrichment(vector=Vector(space_id="another", encoder_id="new", dense=b"\x00\x00"))
    t = on_posting(state, arrival(replace(BASE, version=2, url="u"), moved), NOW, WINDOW)
    assert t.update.vector == moved.vector
    assert t.request is not None, "the slow lane has to do it again as well"
    assert not t.state.refined


def test_an_answer_to_an_earlier_version_with_the_same_text_counts():
    first = published().state
    second = published(replace(BASE, version=2, url="u"), state=first).state
    assert on_enriched(second, answer(first)).update.version == 2


def test_delete_leaves_a_tombstone_that_outlives_older_events_and_is_forgotten_later():
    t = on_posting(None, arrival(replace(BASE, version=7, op=Op.DELETE)), NOW, WINDOW)
    assert (t.update.op, t.update.attributes, t.wake_at) == (IndexOp.DELETE, None, NOW + WINDOW)
    assert published(replace(BASE, version=6), state=t.state).update is None
    assert published(replace(BASE, version=8), state=t.state).update.op is IndexOp.UPSERT
    early = on_timer(t.state, NOW + WINDOW - 1, WINDOW)
    assert (early.state, early.wake_at) == (t.state, NOW + WINDOW)
    assert on_timer(t.state, NOW + WINDOW, WINDOW).state is None


def test_expiry_by_timer_and_on_arrival():
    t = published(replace(BASE, expires_at=NOW + 100))
    early = on_timer(t.state, NOW + 99, WINDOW)
    assert (early.update, early.wake_at) == (None, NOW + 100)
    due = on_timer(t.state, NOW + 100, WINDOW)
    assert (due.update.op, due.update.version, due.update.revision) == (IndexOp.EXPIRE, 1, EXPIRED)
    assert due.update.vector is None
    assert due.wake_at == NOW + 100 + WINDOW
    again = on_timer(due.state, NOW + 200, WINDOW)
    assert again.update is None
    late = published(replace(BASE, expires_at=NOW))
    assert (late.update.op, late.update.revision, late.request) == (IndexOp.EXPIRE, EXPIRED, None)
    revived = published(replace(BASE, version=2, expires_at=FAR), state=due.state)
    assert revived.update.op is IndexOp.UPSERT


def test_a_timer_of_an_older_version_does_nothing():
    state = published(replace(BASE, expires_at=NOW + 100)).state
    longer = published(replace(BASE, version=2, expires_at=FAR), state=state).state
    t = on_timer(longer, NOW + 100, WINDOW)
    assert (t.state, t.update) == (longer, None)
    assert on_timer(None, NOW, WINDOW).state is None
    endless = published(replace(BASE, version=3), state=longer).state
    assert on_timer(endless, FAR, WINDOW).update is None


# --- any order, any repetition -------------------------------------------------------------------------------------

versions = st.integers(min_value=1, max_value=5)


@st.composite
def event_of(draw, version: int) -> Posting:
    """One content per version, so that repeats are repeats: what a version says is a function of its number."""
    kind = version % 4
    if kind == 0:
        return replace(BASE, version=version, op=Op.DELETE)
    title = draw(st.just(f"title {version // 2}"))  # neighbours share their text
    expires = {1: None, 2: NOW - 1, 3: FAR}[kind]
    return replace(BASE, version=version, title=title, expires_at=expires)


@st.composite
def histories(draw) -> list:
    """Events of one id in any order with repeats; the fast lane fails at random; answers and timers in between."""
    events = [draw(event_of(v)) for v in draw(st.lists(versions, min_size=1, max_size=8))]
    steps: list = []
    for event in events:
        steps.append(("posting", event, draw(st.booleans())))
        if draw(st.booleans()):
            steps.append(("answer", draw(versions), draw(st.sampled_from(["slow", "slower", "heal", None]))))
        if draw(st.booleans()):
            steps.append(("timer",))
    return steps


def run(steps: list, state: PostingState | None = None) -> tuple[PostingState | None, list]:
    emitted = []
    for step in steps:
        if step[0] == "posting":
            t = on_posting(state, arrival(step[1], fast() if step[2] else None), NOW, WINDOW)
        elif step[0] == "answer":
            hash_now = state.text_hash if state is not None and state.text_hash else "none"
            t = on_enriched(
                state,
                EnrichedPosting(
                    posting_id="p",
                    version=step[1],
                    text_hash=hash_now,
                    enrichment=Enrichment(vector=vector(step[2]) if step[2] else None, summary="better"),
                    heals=step[2] == "heal",
                ),
            )
        else:
            t = on_timer(state, NOW, WINDOW)
        state = t.state
        if t.update is not None:
            emitted.append(t.update)
    return state, emitted


def outcome(state: PostingState) -> tuple:
    """What everybody else may see of the final state, models' answers aside."""
    return (state.update.version, state.update.op, state.update.attributes, state.update.expires_at, state.event_hash)


@given(histories())
def test_the_last_word_is_the_highest_version_s(steps):
    state, emitted = run(steps)
    highest = max((step[1] for step in steps if step[0] == "posting"), key=lambda event: event.version)
    alone, _ = run([("posting", highest, True)])
    assert outcome(state) == outcome(alone)
    assert emitted[-1] == state.update


@given(histories())
def test_what_is_emitted_strictly_increases(steps):
    _, emitted = run(steps)
    keys = [(update.version, update.revision) for update in emitted]
    assert keys == sorted(set(keys))


@given(histories(), st.data())
def test_a_replay_after_any_prefix_ends_the_same(steps, data):
    whole, _ = run(steps)
    cut = data.draw(st.integers(min_value=0, max_value=len(steps)))
    before, _ = run(steps[:cut])
    replayed, _ = run(steps, before)
    assert outcome(replayed) == outcome(whole)


@given(histories())
def test_a_pair_of_version_and_revision_never_names_two_kinds_of_content(steps):
    """A crash rolls state back and replays: a reader that has seen a pair ignores it the second time."""
    seen: dict = {}
    for part in (steps, [step for step in steps if step[0] == "posting"], list(reversed(steps))):
        for update in run(part)[1]:
            kind = (update.op, update.attributes, update.vector is None)
            assert seen.setdefault((update.version, update.revision), kind) == kind


@pytest.mark.parametrize("version", [1, 3])
def test_state_survives_its_bytes(version):
    from penstock.schemas.wire import codec

    state = published(replace(BASE, version=version)).state
    packed = codec(PostingState).encode_unbounded(state)
    assert codec(PostingState).decode_unbounded(packed) == state


@pytest.mark.parametrize("enrichment", [None, Enrichment(), fast()])
@pytest.mark.parametrize("posting", [BASE, RICH, Posting(posting_id="p", version=2, op=Op.DELETE)])
def test_an_arrival_crosses_between_operators_unchanged(posting, enrichment):
    before = arrival(posting, enrichment)
    for pickler in (pickle, cloudpickle):  # in the TaskManager's own Python, and on the way to and from a process
        assert pickle.loads(pickler.dumps(before)) == before
