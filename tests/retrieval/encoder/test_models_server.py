"""The models role over a real socket, with the real encoder: answers, failures of single items, health, load."""

import gc
import socket
import sys
import threading
import time

import numpy as np
import pytest

from penstock.infra.settings import ModelsSettings, Settings
from penstock.ranker.summarizer.extractive import ExtractiveSummarizer
from penstock.retrieval.client import ModelsClient
from penstock.retrieval.encoder import server
from penstock.retrieval.encoder.enriching import BadForward
from penstock.retrieval.encoder.planes import dense_floats
from penstock.retrieval.understanding.rules import RuleUnderstander
from penstock.schemas.events import PostingText
from penstock.schemas.grpc_avro import CallError, PortInUse
from penstock.schemas.rpc import AnalyzeQueriesRequest, EnrichPostingsRequest

SOON = 30.0


class Flawed:
    """The real encoder, which the test makes fail on marked texts or altogether."""

    def __init__(self, encoder):
        self._encoder = encoder
        self.broken = False
        self.calls = []

    def __getattr__(self, name):
        return getattr(self._encoder, name)

    def encode_postings(self, postings):
        self.calls.append(len(postings))
        if any("MARKED" in posting.title for posting in postings):
            raise RuntimeError("a posting nobody can encode")
        return self._encoder.encode_postings(postings)

    def encode_queries(self, texts):
        if self.broken or any("MARKED" in text for text in texts):
            raise RuntimeError("the device is gone")
        return self._encoder.encode_queries(texts)


@pytest.fixture(scope="module")
def role(embedded):
    """(client, encoder, address) of one running role."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    settings, stop, encoder = Settings(models=ModelsSettings(listen=address)), threading.Event(), Flawed(embedded)
    interval = sys.getswitchinterval()
    running = threading.Thread(
        target=server.serve,
        args=(settings, stop),
        kwargs={"encoder": encoder, "understander": RuleUnderstander(), "summarizer": ExtractiveSummarizer(32)},
    )
    running.start()
    client = ModelsClient(address)
    wait_ready(client)
    yield client, encoder, address
    client.close()
    stop.set()
    running.join(SOON)
    assert not running.is_alive()
    sys.setswitchinterval(interval)
    gc.unfreeze()


def wait_ready(client, ready=True):
    until = time.monotonic() + SOON
    while time.monotonic() < until:
        try:
            status = client.status(5.0)
        except CallError as error:
            assert error.retryable, error
        else:
            if status.ready is ready:
                return status
    raise AssertionError(f"not ready={ready} within {SOON} s")


def posting(title, description="Repairs hydraulic pumps of transport aircraft."):
    return PostingText(title=title, description=description, location="Reno, Nevada")


def enrich(client, *postings, refine=False):
    return client.enrich(EnrichPostingsRequest(postings=postings, refine=refine), SOON).enrichments


def test_a_posting_gets_vector_summary_and_item_text(role, embedded):
    client, _, _ = role
    (one,) = enrich(client, posting("Aircraft Mechanic"))
    assert one.vector is not None and one.vector == embedded.encode_postings([posting("Aircraft Mechanic")])[0]
    assert one.summary == "Repairs hydraulic pumps of transport aircraft."
    assert one.item_text == "Aircraft Mechanic | Reno, Nevada\nRepairs hydraulic pumps of transport aircraft."


def test_refinement_is_the_transformers_and_has_its_own_place_in_the_cache(role):
    client, _, _ = role
    (fast,), (slow,) = enrich(client, posting("Mechanic")), enrich(client, posting("Mechanic"), refine=True)
    assert fast.vector.space_id == slow.vector.space_id
    assert fast.vector.encoder_id != slow.vector.encoder_id and fast.vector.dense != slow.vector.dense


def test_a_query_gets_vector_and_filters(role):
    client, _, _ = role
    reply = client.analyze(AnalyzeQueriesRequest(texts=("remote nurse in Ohio", "welder")), SOON)
    first, second = reply.analyses
    assert [one.label for one in first.understood] == ["remote", "in Ohio"] and second.understood == ()
    dense = np.frombuffer(first.vector.dense, "<f4")
    assert np.linalg.norm(dense) == pytest.approx(1.0, abs=1e-3)


def test_what_was_encoded_together_equals_what_was_encoded_alone(role, embedded):
    client, _, _ = role
    batch = [posting(f"Batch {n}", "Words. " * n + "End.") for n in range(20)]
    together = enrich(client, *batch)
    assert [one.vector for one in together] == [embedded.encode_postings([one])[0] for one in batch]


def test_the_same_text_is_encoded_once(role):
    client, encoder, _ = role
    before = client.status(5.0).numbers["cache_hits"]
    enrich(client, posting("Once"), posting("Once"))
    calls = len(encoder.calls)
    enrich(client, posting("Once"))
    assert len(encoder.calls) == calls
    assert client.status(5.0).numbers["cache_hits"] == before + 1


def test_a_posting_that_cannot_be_encoded_fails_alone_and_is_not_remembered(role):
    client, encoder, _ = role
    good, bad, other = enrich(client, posting("Good"), posting("MARKED"), posting("Other"))
    assert bad.vector is None and bad.summary is not None
    assert good.vector is not None and other.vector is not None
    calls = len(encoder.calls)
    enrich(client, posting("MARKED"))
    assert len(encoder.calls) > calls


def test_a_posting_without_a_word_has_no_vector(role):
    client, _, _ = role
    (one,) = enrich(client, PostingText(title="", description=""))
    assert one.vector is None


def test_a_query_that_cannot_be_encoded_has_no_vector_and_its_neighbours_have(role):
    client, _, _ = role
    flawed, fine = client.analyze(AnalyzeQueriesRequest(texts=("MARKED", "fine")), SOON).analyses
    assert flawed.vector is None
    assert fine.vector


def test_a_dead_encoder_shows_in_health_and_so_does_its_return(role, monkeypatch):
    client, encoder, _ = role
    monkeypatch.setattr(server, "PROVEN_S", 0.0)  # every health check proves itself by a forward
    assert client.status(5.0).ready
    encoder.broken = True
    try:
        assert "the device is gone" in wait_ready(client, ready=False).reason
        with pytest.raises(CallError, match="not ready"):
            client.analyze(AnalyzeQueriesRequest(texts=("nurse",)), SOON)
    finally:
        encoder.broken = False
    assert wait_ready(client).reason == ""


def test_many_callers_at_once_all_get_their_own(role):
    client, _, _ = role
    answers = {}

    def call(n):
        answers[n] = enrich(client, *(posting(f"Caller {n} posting {m}") for m in range(5)))

    threads = [threading.Thread(target=call, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)
    assert sorted(answers) == list(range(12))
    for n, found in answers.items():
        assert [one.item_text.split(" | ")[0] for one in found] == [f"Caller {n} posting {m}" for m in range(5)]


def test_status_says_who_encodes(role, embedded):
    client, _, _ = role
    status = client.status(5.0)
    assert status.role == "models" and status.texts["encoder_id"] == embedded.encoder_id
    assert status.numbers["resident_bytes"] > 0 and status.numbers["queries_waiting"] == 0


def test_an_encoder_that_gives_no_unit_vectors_never_becomes_ready(embedded, free_port):
    class Zeroes(Flawed):
        def encode_queries(self, texts):
            made = self._encoder.encode_queries(texts)
            return [type(one)(**{**fields(one), "dense": bytes(len(one.dense))}) for one in made]

    settings = Settings(models=ModelsSettings(listen=f"127.0.0.1:{free_port()}"))
    parts = {"understander": RuleUnderstander(), "summarizer": ExtractiveSummarizer(32)}
    with pytest.raises(BadForward, match="norm 0"):
        server.serve(settings, threading.Event(), encoder=Zeroes(embedded), **parts)


def fields(record):
    return {name: getattr(record, name) for name in record.__dataclass_fields__}


def test_a_port_in_use_is_said(role, embedded):
    _, _, address = role
    parts = {"understander": RuleUnderstander(), "summarizer": ExtractiveSummarizer(32)}
    with pytest.raises(PortInUse, match=address):
        server.serve(
            Settings(models=ModelsSettings(listen=address)), threading.Event(), encoder=Flawed(embedded), **parts
        )


def test_vectors_are_unit(role):
    client, _, _ = role
    (one,) = enrich(client, posting("Unit"))
    assert np.linalg.norm(dense_floats(one.vector.dense)) == pytest.approx(1.0, abs=0.02)
