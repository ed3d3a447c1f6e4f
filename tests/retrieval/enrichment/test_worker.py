"""Both loops over one log: a posting without a vector is healed though a backlog of refinements stands before it."""

import threading
import time

import numpy as np
import pytest
from log_in_memory import Log, LogSink, LogSource

from penstock.infra.settings import EnrichSettings, Settings
from penstock.retrieval.encoder.enriching import BadForward
from penstock.retrieval.encoder.planes import dense_bytes
from penstock.retrieval.enrichment import server
from penstock.retrieval.enrichment.server import Worker
from penstock.schemas import topics
from penstock.schemas.events import EnrichedPosting, EnrichRequest, PostingText, Vector
from penstock.schemas.wire import codec

GROUP, HEAL_GROUP = "enrich", "enrich-heal"


class Encoder:
    """Unit vectors, a fast and a slow way to them. `gate` holds the slow one back; `length` breaks both."""

    space_id, encoder_id, refined_encoder_id = "s", "fast", "slow"

    def __init__(self):
        self.gate = threading.Event()
        self.gate.set()
        self.length = 1.0

    def encode_postings(self, postings):
        return [self._vector("fast") for _ in postings]

    def refine_postings(self, postings):
        assert self.gate.wait(20)
        return [self._vector("slow") for _ in postings]

    def _vector(self, encoder_id):
        return Vector(space_id="s", encoder_id=encoder_id, dense=dense_bytes(np.array([self.length, 0], np.float32)))


class Summarizer:
    summarizer_id = "summaries"

    def summarize(self, posting):
        return "summary"

    def item_text(self, posting, summary):
        return f"{posting.title}\n{summary}"


class Role:
    def __init__(self):
        self.log, self.encoder = Log(), Encoder()
        self.sink = LogSink()
        self.committed = {GROUP: {}, HEAL_GROUP: {}}
        self.worker = Worker(
            Settings(enrich=EnrichSettings(batch=2)),
            encoder=self.encoder,
            summarizer=Summarizer(),
            open_source=self.open,
            make_sink=lambda: self.sink,
            priority=("nice 19", "SCHED_IDLE: not here"),
        )

    def open(self, group, rebalance):
        source = LogSource(self.log, rebalance)
        source.commit = lambda positions, wait=False: self.committed[group].update(positions)
        return source

    def publish(self, name, bare=False):
        text = PostingText(title=name, description="d")
        request = EnrichRequest(posting_id=name, version=1, text_hash=name, text=text, bare=bare)
        self.log.append(codec(EnrichRequest).encode(request), key=name.encode())

    def answers(self):
        sent = [codec(EnrichedPosting).decode(value) for _, value in self.sink.sent[topics.ENRICHED.name]]
        return [(one.posting_id, one.enrichment.vector.encoder_id, one.heals) for one in sent]

    def status(self):
        return self.worker.status(None, None)

    def until(self, condition):
        give_up = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < give_up
            threading.Event().wait(0.005)


@pytest.fixture
def role():
    made = Role()
    yield made
    made.encoder.gate.set()
    made.worker.close()


def test_a_posting_without_a_vector_does_not_wait_for_the_backlog(role):
    role.worker.start()
    role.encoder.gate.clear()  # after the warm-up: every refinement stands still now
    for n in range(5):
        role.publish(f"p{n}")
    role.publish("bare", bare=True)
    role.until(lambda: role.committed[HEAL_GROUP] == {0: 6})
    assert role.answers() == [("bare", "fast", True)]
    assert role.committed[GROUP] == {}
    role.encoder.gate.set()
    role.until(lambda: role.committed[GROUP] == {0: 6})
    assert sorted(role.answers()[1:]) == sorted(
        [(f"p{n}", "slow", False) for n in range(5)] + [("bare", "slow", False)]
    )


def test_status_tells_of_both_loops_and_what_priority_was_reached(role):
    assert not role.status().ready, "its loops do not run yet"
    role.worker.start()
    role.publish("a", bare=True)
    role.until(lambda: role.worker.refine.tally.answered == role.worker.heal.tally.answered == 1)
    role.until(lambda: role.status().ready)
    said = role.status()
    assert (said.numbers["refined"], said.numbers["healed"]) == (1, 1)
    assert said.numbers["rate_per_s"] > 0
    assert said.texts["priority"] == "nice 19: SCHED_IDLE: not here"
    assert (said.texts["encoder_id"], said.texts["heal_encoder_id"]) == ("slow", "fast")


def test_a_dead_encoder_shows_in_health_and_so_does_its_return(role, monkeypatch):
    role.worker.start()
    role.until(lambda: role.status().ready)
    monkeypatch.setattr(server, "PROVEN_S", -1.0)  # no earlier forward counts
    role.encoder.length = 0.0
    said = role.status()
    assert not said.ready
    assert "norm 0" in said.reason
    role.encoder.length = 1.0
    assert role.status().ready


def test_an_encoder_that_gives_no_unit_vectors_never_starts(role):
    role.encoder.length = 3.0
    with pytest.raises(BadForward, match="norm 3"):
        role.worker.start()
