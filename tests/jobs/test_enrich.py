"""The fast lane against a real gRPC server: batches, memory, deadlines, and a dead server that costs nothing."""

import asyncio
import threading

import pytest
from flink_metrics import Metrics

from penstock.infra.settings import ModelsSettings, PostingsSettings, Settings
from penstock.jobs.operators.analyze import Analyze, request_of
from penstock.jobs.operators.enrich import Batcher, Breaker, Enrich, Rejected, Remembered, Unavailable
from penstock.jobs.operators.posting_state import Arrival
from penstock.schemas import grpc_avro, rpc, validate
from penstock.schemas.events import Enrichment, Op, Posting, QueryVector, RankRequest, SearchQuery, Vector
from penstock.schemas.wire import codec

NOW = 1_000_000


def arrival(posting_id: str = "p", **changes) -> Arrival:
    posting = Posting(**{"posting_id": posting_id, "version": 1, "title": "Nurse", "description": "Cares."} | changes)
    text = validate.text_of(posting) if posting.op is Op.UPSERT else None
    return Arrival(
        posting=posting,
        raw=b"raw",
        produced_at=NOW,
        event_hash=validate.event_hash(posting),
        text=text,
        text_hash=validate.text_hash(text) if text else None,
    )


@pytest.fixture
def models(free_port):
    """A models role of our own: says which batches it saw; `hold` keeps its answers back."""
    address = f"127.0.0.1:{free_port()}"
    batches = []
    hold = threading.Event()
    hold.set()

    def enrich(request, context):
        batches.append([text.title for text in request.postings])
        hold.wait(10)
        return rpc.EnrichPostingsReply(
            enrichments=tuple(
                Enrichment(vector=None if text.title == "blank" else Vector(space_id="s", encoder_id="e", dense=b"ab"))
                for text in request.postings
            )
        )

    def analyze(request, context):
        vector = QueryVector(space_id="s", encoder_id="e", dense=b"abcd")
        return rpc.AnalyzeQueriesReply(analyses=tuple(rpc.QueryAnalysis(vector=vector) for _ in request.texts))

    server = grpc_avro.serve(address, {rpc.Models.ENRICH: enrich, rpc.Models.ANALYZE: analyze})
    yield address, batches, hold
    hold.set()
    server.stop(None).wait()


def enricher(address: str, timeout_ms: int = 5_000, batch: int = 8) -> tuple[Enrich, Metrics]:
    settings = Settings(
        models=ModelsSettings(listen=address),
        postings=PostingsSettings(enrich_timeout_ms=timeout_ms, enrich_batch=batch),
    )
    operator, metrics = Enrich(settings), Metrics()
    operator.open(metrics)
    return operator, metrics


def test_concurrent_postings_share_calls_and_come_back_enriched(models):
    address, batches, _ = models
    operator, metrics = enricher(address)

    async def all_at_once():
        return await asyncio.gather(*[operator.enrich(arrival(f"p{n}", title=f"t{n}"), NOW) for n in range(20)])

    done = asyncio.run(all_at_once())
    assert [a.posting.posting_id for a in done] == [f"p{n}" for n in range(20)]
    assert all(a.enrichment.vector is not None for a in done)
    assert max(len(batch) for batch in batches) == 8
    assert len(batches) < 20
    assert metrics.values == {
        "penstock_postings_enrichments_reused_total": 0,
        "penstock_postings_enrichments_made_total": 20,
        "penstock_postings_without_enrichment_total": 0,
    }


def test_the_same_text_is_asked_for_once(models):
    address, batches, _ = models
    operator, metrics = enricher(address)

    async def one_after_the_other():
        return [await operator.enrich(arrival(f"p{n}", version=n), NOW) for n in range(1, 4)]

    assert all(a.enrichment is not None for a in asyncio.run(one_after_the_other()))
    assert batches == [["Nurse"]]
    assert metrics.values["penstock_postings_enrichments_reused_total"] == 2


def test_deletes_and_expired_postings_pass_without_a_call(models):
    address, batches, _ = models
    operator, _ = enricher(address)

    async def both():
        return [
            await operator.enrich(arrival(op=Op.DELETE, title=None, description=None), NOW),
            await operator.enrich(arrival(expires_at=NOW), NOW),
        ]

    assert [a.enrichment for a in asyncio.run(both())] == [None, None]
    assert batches == []


def test_a_text_that_cannot_be_encoded_is_not_remembered(models):
    address, batches, _ = models
    operator, metrics = enricher(address)

    async def twice():
        return [await operator.enrich(arrival(title="blank"), NOW) for _ in range(2)]

    asyncio.run(twice())
    assert len(batches) == 2
    assert metrics.values["penstock_postings_without_enrichment_total"] == 2


def test_a_batch_of_the_longest_postings_gets_its_vectors(models):
    address, batches, _ = models
    operator, _ = enricher(address, batch=32)
    long = "x" * validate.MAX_DESCRIPTION_BYTES

    async def all_at_once():
        arrivals = [arrival(f"p{n}", title=f"t{n}", description=long) for n in range(32)]
        return await asyncio.gather(*[operator.enrich(each, NOW) for each in arrivals])

    assert all(a.enrichment is not None for a in asyncio.run(all_at_once()))
    assert [len(batch) for batch in batches] == [32], "2 MiB in one call"


def test_a_rejected_batch_says_nothing_of_the_next():
    breaker = Breaker(threshold=1)

    async def refuse(questions):
        raise Rejected("not like this")

    async def ask():
        return await Batcher(refuse, batch=1, concurrency=1, timeout_s=5, breaker=breaker).ask("a")

    with pytest.raises(Unavailable, match="not like this"):
        asyncio.run(ask())
    assert breaker.closed


def test_a_slow_server_lets_postings_go_on_without_a_vector(models):
    address, _, hold = models
    hold.clear()
    operator, metrics = enricher(address, timeout_ms=50)

    async def all_at_once():
        return await asyncio.gather(*[operator.enrich(arrival(f"p{n}", title=f"t{n}"), NOW) for n in range(5)])

    assert [a.enrichment for a in asyncio.run(all_at_once())] == [None] * 5
    assert metrics.values["penstock_postings_without_enrichment_total"] == 5


def test_a_dead_server_stops_being_asked_and_is_found_again(free_port):
    operator, metrics = enricher(f"127.0.0.1:{free_port()}", timeout_ms=2_000)

    async def many():
        return [await operator.enrich(arrival(f"p{n}", title=f"t{n}"), NOW) for n in range(50)]

    assert all(a.enrichment is None for a in asyncio.run(many()))
    assert metrics.values["penstock_postings_without_enrichment_total"] == 50
    assert not operator._batcher._breaker.closed


def test_a_query_without_analysis_goes_on_with_its_words(models, free_port):
    query = SearchQuery(request_id="q", text="nurse", deadline_ms=500)
    for address, has_vector in ((models[0], True), (f"127.0.0.1:{free_port()}", False)):
        operator = Analyze(Settings(models=ModelsSettings(listen=address)))
        operator.open(Metrics())
        [row] = asyncio.run(operator.async_invoke((query, NOW)))
        request = codec(RankRequest).decode(row[1])
        assert row[0] == b"default/q"
        assert (request.query.text, request.deadline, request.produced_at) == ("nurse", NOW + 500, NOW)
        assert (request.query.vector is not None) is has_vector
    assert request_of(query, NOW, None).query.understood == ()


# --- the breaker, in made-up time ----------------------------------------------------------------------------------


def test_the_breaker_opens_pauses_longer_and_closes():
    breaker = Breaker(threshold=2, first_pause_s=1.0, longest_s=3.0)
    breaker.failed()
    assert breaker.closed, "one failure is not a pattern"
    pauses = []
    for _ in range(4):
        breaker.failed()
        assert not breaker.closed
        pauses.append(breaker.pause_s)
    assert pauses == [1.0, 2.0, 3.0, 3.0]
    breaker.succeeded()
    assert breaker.closed
    breaker.failed()
    assert breaker.closed, "it counts from the start again"


def test_nobody_waits_for_a_trial_and_none_needs_a_posting():
    """An open breaker fails every question at once; trials go on beside, and the first that succeeds closes it."""
    calls = []
    up = False

    async def call(questions):
        calls.append(list(questions))
        if not up:
            raise OSError("down")
        return list(questions)

    async def scenario():
        nonlocal up
        breaker = Breaker(threshold=1, first_pause_s=0.01, longest_s=0.01)
        batcher = Batcher(call, batch=2, concurrency=1, timeout_s=60, breaker=breaker)

        async def both(*questions):
            return await asyncio.gather(*map(batcher.ask, questions), return_exceptions=True)

        await both("a", "b")
        outcomes = await both("c", "d")
        assert [type(outcome) for outcome in outcomes] == [Unavailable, Unavailable]
        assert ["c", "d"] not in calls
        up = True
        await asyncio.wait_for(batcher._trials, 10)
        assert calls[-1] == ["d"], "the latest question"
        assert breaker.closed
        assert await both("e", "f") == ["e", "f"]

    asyncio.run(scenario())


def test_a_batch_whose_answers_do_not_match_fails_whole():
    async def short(questions):
        return list(questions)[:-1]

    async def ask_two():
        batcher = Batcher(short, batch=2, concurrency=1, timeout_s=5, breaker=Breaker())
        return await asyncio.gather(batcher.ask("a"), batcher.ask("b"), return_exceptions=True)

    assert [type(outcome) for outcome in asyncio.run(ask_two())] == [Unavailable, Unavailable]


def test_what_was_used_least_recently_is_forgotten_first():
    remembered = Remembered(2)
    first, second, third = (Enrichment(summary=name) for name in "abc")
    remembered.put("a", first)
    remembered.put("b", second)
    assert remembered.get("a") is first
    remembered.put("c", third)
    assert (remembered.get("a"), remembered.get("b"), remembered.get("c")) == (first, None, third)


def test_another_encoder_s_vectors_are_forgotten():
    remembered = Remembered(8)
    old, new = (Enrichment(vector=Vector(space_id=s, encoder_id=s, dense=b"ab")) for s in ("old", "new"))
    remembered.put("a", old)
    remembered.put("b", new)
    assert (remembered.get("a"), remembered.get("b")) == (None, new)


def test_the_breaker_knows_of_a_hanging_call_before_its_questions_give_up():
    async def hang(questions):
        await asyncio.Event().wait()

    async def ask():
        breaker = Breaker(threshold=1)
        batcher = Batcher(hang, batch=1, concurrency=1, timeout_s=0.2, breaker=breaker)
        with pytest.raises(Unavailable):
            await batcher.ask("a")
        assert not breaker.closed

    asyncio.run(ask())


def test_who_gave_up_is_not_asked_about():
    """Two batches, one slot: the second waits longer than its postings may, so its call is never made."""
    calls = []
    release = asyncio.Event()

    async def slow(questions):
        calls.append(list(questions))
        await release.wait()
        return list(questions)

    async def ask_two():
        batcher = Batcher(slow, batch=1, concurrency=1, timeout_s=0.05, breaker=Breaker(threshold=9))
        outcomes = await asyncio.gather(batcher.ask("a"), batcher.ask("b"), return_exceptions=True)
        release.set()
        while batcher._running:
            await asyncio.sleep(0)
        return outcomes

    assert [type(outcome) for outcome in asyncio.run(ask_two())] == [Unavailable, Unavailable]
    assert calls == [["a"]]
