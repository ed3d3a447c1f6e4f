"""Postings on their way past the standing queries: each is put to the shards until they answer, and none is dropped."""

import asyncio
from dataclasses import replace

import grpc
import pytest

from penstock.infra.settings import AlertsSettings, Settings
from penstock.jobs.operators import percolate
from penstock.jobs.operators.identity import person_key
from penstock.jobs.operators.percolate import NotPercolated, Percolate, lean, wanted
from penstock.jobs.operators.scores import TakeScores
from penstock.schemas.events import (
    Attributes,
    DeadLetter,
    IndexOp,
    IndexUpdate,
    Match,
    Op,
    RankClass,
    RankedItem,
    RankResult,
    StandingQuery,
    Vector,
)
from penstock.schemas.grpc_avro import CallError
from penstock.schemas.rpc import Matches, PercolateReply, Retrieval
from penstock.schemas.states import Candidate, Subject
from penstock.schemas.wire import codec

NOW = 1_795_260_000_000
FAR = 4_000_000_000_000
UPDATE = IndexUpdate(
    posting_id="a",
    version=3,
    op=IndexOp.UPSERT,
    attributes=Attributes(title="Nurse", company="x"),
    summary="long",
    item_text="long",
    vector=Vector(space_id="s", encoder_id="e", dense=b"ab"),
    produced_at=NOW,
    expires_at=FAR,
    material_class="m",
    percolate=True,
    trace="t",
)


def update(**changes) -> IndexUpdate:
    return replace(UPDATE, **changes)


def match(subscription: str, person: str) -> Match:
    parts = {"match_score": 0.6, "dense": 0.5, "lexical": 0.1}
    return Match(subscription_id=subscription, version=1, person_id=person, reason="said", **parts)


def error(code) -> CallError:
    return CallError(Retrieval.PERCOLATE, "shard", code, "said so")


class Shards:
    """All shards: `script` says what becomes of each call; then every title's initial is a person who wants it."""

    def __init__(self, *script):
        self.script, self.calls, self.refuse = list(script), [], ()

    async def percolate(self, request, timeout):
        self.calls.append([each.posting_id for each in request.updates])
        if self.script and (failure := self.script.pop(0)) is not None:
            raise failure
        if set(self.refuse) & {each.posting_id for each in request.updates}:
            raise error(grpc.StatusCode.INVALID_ARGUMENT)
        fields = {"op": Op.UPSERT, "min_score": 0.5, "produced_at": 1}
        query = StandingQuery(subscription_id="s2", version=1, person_id="q", **fields)
        matches = (match("s1", "p"), match("s2", "q"), match("s3", "p"))
        return PercolateReply(found=tuple(Matches(matches=matches, queries=(query,)) for _ in request.updates))


def run(counted, shards, *updates):
    """What leaves the operator for each update, all of them in flight at once."""

    class Tried(Percolate):
        def _connect(self):
            return shards

    operator = Tried(Settings(alerts=AlertsSettings(percolate_batch=4)))
    operator.open(counted)

    async def all_of_them():
        raw = [each if isinstance(each, bytes) else codec(IndexUpdate).encode(each) for each in updates]
        return await asyncio.gather(*(operator.async_invoke(each) for each in raw))

    return asyncio.run(all_of_them())


def test_each_person_gets_one_candidate_with_all_their_matches_and_the_posting_once(counted):
    [out] = run(counted, Shards(), update())
    keys = [key for key, _ in out]
    assert keys == [person_key("default", "p"), person_key("default", "q")]
    first, second = (codec(Candidate).decode(packed) for _, packed in out)
    assert [m.subscription_id for m in first.matches] == ["s1", "s3"]
    assert (first.queries, [q.subscription_id for q in second.queries]) == ((), ["s2"])
    assert first.subject == second.subject
    subject = codec(Subject).decode(first.subject)
    assert (subject.posting_id, subject.version, subject.material_class, subject.trace) == ("a", 3, "m", "t")
    assert (subject.produced_at, subject.expires_at, subject.attributes) == (NOW, FAR, update().attributes)
    assert counted["alerts_matched_total"] == 3


@pytest.mark.parametrize(
    "change",
    [{"op": IndexOp.DELETE}, {"op": IndexOp.EXPIRE}, {"percolate": False}, {"attributes": None}, {"expires_at": NOW}],
)
def test_only_new_and_materially_changed_live_postings_are_put_to_the_shards(counted, change):
    shards = Shards()
    assert wanted(update(), NOW)
    assert not wanted(update(**change), NOW)
    assert run(counted, shards, update(**change), b"poison") == [[], []]
    assert shards.calls == []
    assert counted["alerts_unreadable_total"] == 1


def test_postings_in_flight_share_calls(counted):
    shards = Shards()
    out = run(counted, shards, *(update(posting_id=str(n)) for n in range(10)))
    assert [len(each) for each in out] == [2] * 10
    assert sorted(len(call) for call in shards.calls) == [2, 4, 4]


def test_what_fails_is_asked_again_until_it_is_answered(counted, monkeypatch):
    monkeypatch.setattr(percolate, "PAUSE_S", 0.001)
    away = error(grpc.StatusCode.UNAVAILABLE)
    shards = Shards(away, away, away)
    assert [len(each) for each in run(counted, shards, update(), update(posting_id="b"))] == [2, 2]
    assert counted["alerts_asked_again_total"] > 0
    assert counted["alerts_percolated_total"] == 2


def test_patience_ends_by_failing_the_job_never_by_dropping(counted, monkeypatch):
    monkeypatch.setattr(percolate, "PATIENCE_S", 0.0)
    with pytest.raises(NotPercolated, match="bring them back"):
        run(counted, Shards(*[error(grpc.StatusCode.UNAVAILABLE)] * 9), update())


def test_a_batch_that_takes_longer_than_a_call_may_is_asked_one_by_one_with_more_time(counted, monkeypatch):
    monkeypatch.setattr("penstock.jobs.operators.percolate.PAUSE_S", 0.001)

    class Slow(Shards):
        """Each posting takes three seconds; without a batch there is time for it at the second try."""

        async def percolate(self, request, timeout):
            if 3 * len(request.updates) > timeout:
                self.calls.append(timeout)
                raise error(grpc.StatusCode.DEADLINE_EXCEEDED)
            return await super().percolate(request, timeout)

    names = [f"p{number}" for number in range(4)]
    out = run(counted, shards := Slow(), *(update(posting_id=name) for name in names))
    assert all(len(each) == 2 for each in out)
    assert sorted(call for call in shards.calls if isinstance(call, list)) == [[name] for name in names]


def test_one_that_the_shards_refuse_takes_nobody_with_it(counted):
    shards = Shards()
    shards.refuse = ("bad",)
    out = run(counted, shards, update(), update(posting_id="bad"), update(posting_id="b"))
    assert [len(each) for each in out] == [2, 0, 2]
    assert counted["alerts_refused_by_shards_total"] == 1


def test_shards_get_what_they_compare_and_no_more():
    assert (lean(update()).summary, lean(update()).item_text, lean(update()).vector) == (None, None, UPDATE.vector)
    assert lean(update(vector=None)).item_text == "long"


# --- what comes back from the ranker -----------------------------------------------------------------------------


class Context:
    def timestamp(self):
        return NOW


def taken(counted, raw: bytes):
    operator = TakeScores(Settings())
    operator.open(counted)
    return list(operator.process_element(raw, Context()))


def test_only_answers_to_this_job_are_taken_and_poison_leaves_with_its_bytes(counted):
    asked = Candidate(person_id="p", subject=b"x", matches=(match("s1", "p"),), asked="s1")
    item = RankedItem(posting_id="a", version=1, score=0.8, parts={})
    answer = RankResult(
        request_id="alert-1",
        class_=RankClass.ALERT,
        items=(item,),
        echo=codec(Candidate).encode(asked),
        timings={},
    )
    [(key, packed)] = taken(counted, codec(RankResult).encode(answer))
    assert key == person_key("default", "p")
    assert codec(Candidate).decode(packed).matches[0].score == 0.8

    for other in (
        replace(answer, class_=RankClass.INTERACTIVE),
        replace(answer, request_id="somebody's"),
        replace(answer, echo=None),
    ):
        assert taken(counted, codec(RankResult).encode(other)) == []
    for poison in (b"poison", codec(RankResult).encode(replace(answer, echo=b"poison"))):
        [(_, row)] = taken(counted, poison)
        assert codec(DeadLetter).decode(row[1]).raw == poison
