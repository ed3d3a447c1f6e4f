"""A second ranker beside the stack's own, with the engine: the same topics, Redis and index, another group and port."""

import os
import signal
import subprocess
import sys
import time

import pytest
from system import eventually, posting

from penstock.infra.local.config import ROLE_ENVIRONMENT
from penstock.infra.scorers import Running, running_at
from penstock.ranker.client import RankerClient
from penstock.ranker.engine.untrained import ModelShape, write
from penstock.schemas import topics
from penstock.schemas.events import Page, RankQuery, RankRequest
from penstock.schemas.filters import is_in
from penstock.schemas.grpc_avro import CallError

POSTINGS, DEPTH = 20, 16
TRADES = ("Veterinary nurse", "Night baker", "Welder", "Payroll clerk", "Bus driver")
QUERIES = ("somebody who cares for animals", "bread and cakes", "wages and taxes")
SHAPE = ModelShape(2_000, 64, 192, 2, 4, 2, 16)


class EngineRanker:
    """`penstock serve ranker` on a port of its own, with settings of its own by variables; killed at the end."""

    def __init__(self, data_dir, port, model, group):
        self.address = f"127.0.0.1:{port}"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")},
            **ROLE_ENVIRONMENT,
            "PENSTOCK_DATA_DIR": str(data_dir),
            "PENSTOCK_METRICS__RANKER": "0",
            "PENSTOCK_RANKER__LISTEN": self.address,
            "PENSTOCK_RANKER__GROUP": group,
            "PENSTOCK_RANKER__SCORER": "engine",
            "PENSTOCK_RANKER__MODEL": str(model),
            "PENSTOCK_RANKER__SHAPING__DEPTHS": f"[{DEPTH}, {DEPTH}, {DEPTH}]",  # however busy the machine is
        }
        self.client = RankerClient(self.address)
        self.process = None

    def start(self):
        program = "from penstock.infra.cli.main import main; main()"
        command = [sys.executable, "-c", program, "serve", "ranker"]
        self.process = subprocess.Popen(command, env=self.environment)
        eventually(self.ready, "the second ranker is ready", timeout=120)

    def ready(self):
        assert self.process.poll() is None, f"it ended with {self.process.returncode}"
        try:
            status = self.client.status(5)
        except CallError:
            return None
        return status if status.ready else None

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        assert self.process.wait(30) == -signal.SIGKILL

    def ask(self, system, text, company):
        request = RankRequest(
            request_id=system.new_id("engine"),
            deadline=int(time.time() * 1000) + 60_000,
            query=RankQuery(text=text, filters=is_in("company", company)),
            page=Page(size=POSTINGS),
        )
        result = self.client.rank(request, timeout=60)
        assert result.error is None
        return result

    def close(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait(30)
        self.client.close()


def order(result):
    return [(item.posting_id, item.score) for item in result.items]


@pytest.fixture
def company(system):
    name = system.new_id("engine")
    made = [
        posting(system.new_id("p"), company=name, title=f"{TRADES[n % len(TRADES)]} {n}", description=f"Shift {n}.")
        for n in range(POSTINGS)
    ]
    system.publish(topics.POSTINGS, *made)
    for p in made:
        system.row(p.posting_id, version=1)
    return name


@pytest.fixture
def ranker(system, machinery, free_port, tmp_path):
    model = write(tmp_path / "random", [*TRADES, *QUERIES, "Shift in a small practice or shop."] * 20, SHAPE)
    made = EngineRanker(machinery.stack.layout.root, free_port(), model, system.new_id("second"))
    yield made
    made.close()


@pytest.mark.installation("embedded")
def test_a_ranker_with_the_engine_beside_the_other(system, company, ranker):
    ranker.start()
    running = running_at(ranker.address)
    assert (running.scorer, running.untrained) == ("engine", True)
    assert str(running) == "engine, model random: random weights"
    assert str(running_at(system.settings.ranker.dial)) == "fused"

    first = {text: ranker.ask(system, text, company) for text in QUERIES}
    for result in first.values():
        assert not result.degraded
        assert result.lm_scored == DEPTH and len(result.items) == POSTINGS
        assert "+engine-fp32:random:" in result.model_id
        assert {"lm", "lm_tokenise", "lm_queue", "lm_pack", "lm_forward"} <= result.timings.keys()
        assert result.timings["lm_forward"] > 0
        scores = [item.score for item in result.items]
        assert scores == sorted(scores, reverse=True)
        read = [item for item in result.items if "yes_no_logit" in item.parts]
        assert len(read) == DEPTH
        assert len({item.parts["yes_no_logit"] for item in read}) > 1, "the model tells postings apart"
    assert len({tuple(order(result)) for result in first.values()}) == len(QUERIES)
    assert Running.of(ranker.ready()) == running
    eventually(
        lambda: (told := ranker.ready()) and told.numbers["arena_items"] >= POSTINGS, "index updates fill the arena"
    )

    again = {text: ranker.ask(system, text, company) for text in QUERIES}
    for text, result in again.items():
        assert order(result) == order(first[text])
        assert result.cache_hits == POSTINGS + DEPTH
        assert result.lm_scored == DEPTH and "lm" not in result.timings, "nothing was left to compute"

    ranker.kill()
    ranker.start()
    kept = ranker.ask(system, QUERIES[0], company)
    assert order(kept) == order(first[QUERIES[0]])
    fresh = ranker.ask(system, "someone to drive a bus", company)
    assert fresh.lm_scored == DEPTH and not fresh.degraded
    assert fresh.timings["lm_forward"] > 0
