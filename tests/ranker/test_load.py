"""The scorers that settings name, loaded and asked: the fused one, the engine, transformers, and one behind HTTP."""

import numpy as np
import pytest
from pydantic import ValidationError
from qwen3_directory import make_directory
from rerank_server import RerankServer

from penstock.infra.settings import RankerSettings, RemoteScorerSettings, ShapingSettings
from penstock.ranker.backends.load import load_scorers
from penstock.ranker.backends.scorer import ScoringItem, ScoringQuery
from penstock.ranker.errors import UnfitScorer
from penstock.ranker.known_answer import CHECK_EVERY_MS, KnownAnswer
from penstock.schemas.events import IndexOp, IndexUpdate

QUERY = ScoringQuery("night nurse in ohio", None)


def item(text, name):
    return ScoringItem(
        0.0, 0.0, IndexUpdate(posting_id=name, version=1, op=IndexOp.UPSERT, item_text=text, produced_at=0)
    )


ITEMS = [item("senior welder", "a"), item("night nurse, ohio", "b")]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return make_directory(tmp_path_factory.mktemp("qwen3"))


@pytest.fixture
def load():
    made = []

    def loaded(**settings):
        made.append(load_scorers(RankerSettings(**settings)))
        return made[-1]

    yield loaded
    for scorers in made:
        if scorers.language_model is not None:
            scorers.language_model.close(10)


def test_the_fused_one_alone_is_the_default(load):
    scorers = load()
    assert scorers.language_model is None
    assert scorers.model_id == scorers.fused.model_id


def test_requests_that_share_forwards_are_ranked_side_by_side(directory):
    assert RankerSettings().workers_in_force == 2
    assert RankerSettings(scorer="engine", model=directory).workers_in_force == 8
    assert RankerSettings(scorer="engine", model=directory, workers=3).workers_in_force == 3


def test_engine_and_transformers_read_the_same_directory_alike(load, directory):
    engine = load(scorer="engine", model=directory, shaping=ShapingSettings(depths=(1, 2, 3)))
    assert engine.ceiling == 3
    assert engine.model_id == f"{engine.fused.model_id}+{engine.language_model.model_id}"
    plain = load(scorer="transformers", model=directory)
    found, expected = (each.language_model.score(QUERY, ITEMS) for each in (engine, plain))
    assert np.abs(found.p - expected.p).max() < 1e-5
    assert len(set(found.p.round(5))) == 2
    assert engine.language_model.model_id != plain.language_model.model_id  # their scores agree, not to the last bit


def test_the_engine_has_what_updates_brought_before_anybody_asks(load, directory):
    model = load(scorer="engine", model=directory).language_model
    model.ingest([one.update for one in ITEMS])
    assert model.health().numbers["arena_items"] == 2
    assert model.health().ready
    model.close(10)
    assert not model.health().ready and "stopping" in model.health().reason


def test_an_engine_in_the_interpreter_has_them_on_its_device_as_well(load, directory):
    model = load(scorer="engine", model=directory, device="interpreter", forward_tokens=900, interactive_tokens=900)
    model = model.language_model
    model.ingest([one.update for one in ITEMS])
    assert model.health().numbers["device_arena_items"] == 2
    assert model.score(QUERY, ITEMS).p.shape == (2,)
    without = load(scorer="engine", model=directory, device_arena_bytes=0).language_model
    assert "device_arena_items" not in without.health().numbers  # on a processor


def test_one_behind_http_is_asked_as_settings_say(load, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with RerankServer(key="secret") as server:
        remote = RemoteScorerSettings(
            url=server.url,
            form="vllm-rerank",
            api_key="secret",
            template={"before": "", "between": " for ", "after": "!"},
        )
        model = load(scorer="remote", remote=remote).language_model
        p = model.score(QUERY, ITEMS).p
        assert p[1] > p[0]
        assert server.requests[-1][1]["query"] == "night nurse in ohio for "
        assert model.health().ready and model.health().reason == ""


def test_a_remote_one_that_goes_away_leaves_the_ranker_ready_and_is_told(load, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    now = [0]
    with RerankServer() as server:
        scorers = load(scorer="remote", remote=RemoteScorerSettings(url=server.url, form="vllm-rerank", retry_share=0))
        known = KnownAnswer(scorers, lambda: now[0])
        server.fault = 503
        for _ in range(10):
            now[0] += CHECK_EVERY_MS
            assert known.verdict(CHECK_EVERY_MS).ok
        health = scorers.language_model.health()
        assert health.ready and "is not asked" in health.reason
        assert health.numbers == {"remote_scorer_circuit_open": 1.0}


def test_a_remote_one_that_scores_otherwise_than_at_the_start_is_seen(load, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with RerankServer() as server:
        scorers = load(scorer="remote", remote=RemoteScorerSettings(url=server.url, form="vllm-rerank"))
        now = [0]
        known = KnownAnswer(scorers, lambda: now[0])
        server.constant = True
        now[0] = CHECK_EVERY_MS
        assert f"by {scorers.language_model.model_id}, at the start it scored" in known.verdict(CHECK_EVERY_MS).reason


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"scorer": "engine"}, r"expected the directory of a model in ranker\.model"),
        ({"scorer": "transformers"}, r"expected the directory of a model in ranker\.model"),
        ({"scorer": "remote"}, r"expected where it is in ranker\.remote\.url"),
        ({"scorer": "/models/qwen3"}, r"a model's directory goes in ranker\.model"),
        ({"device": "tpu"}, "device"),
        ({"device": "cuda:x"}, "device"),
        ({"scorer": "transformers", "model": ".", "device": "interpreter"}, "expected cpu, cuda, cuda:1"),
        ({"weights": "int8", "device": "cuda"}, "scorer fused and device cuda: expected the engine on a device"),
        ({"weights": "fp8", "scorer": "engine", "model": "."}, "weights is fp8, scorer engine and device cpu"),
        ({"device_arena_bytes": 1_000}, r"expected 0, or at least a mebibyte \(1048576\)"),
        ({"device_vector_bytes": -1}, "expected 0, or at least a mebibyte"),
        ({"device_arena_bytes": 1 << 33}, "less than or equal to 4294967296"),
        ({"shaping": {"depths": (32, 16, 64)}}, "the least, the start and the most, ascending"),
        ({"shaping": {"depths": (16, 64)}}, "depths"),
        ({"remote": {"url": "10.0.0.5:8000"}}, "expected a URL"),
    ],
)
def test_settings_that_do_not_go_together(settings, reason):
    with pytest.raises(ValidationError, match=reason):
        RankerSettings(**settings)


def test_what_is_not_a_model(load, tmp_path, directory):
    for scorer in ("engine", "transformers"):
        with pytest.raises(UnfitScorer, match=r"has no config\.json"):
            load(scorer=scorer, model=tmp_path)
    with pytest.raises(UnfitScorer, match=r"ranker\.device is cuda:99 and torch finds \d+ CUDA devices"):
        load(scorer="engine", model=directory, device="cuda:99")
    with pytest.raises(UnfitScorer, match="forward_tokens"):
        load(scorer="engine", model=directory, forward_tokens=64)
    with pytest.raises(UnfitScorer, match="expected one of"):
        load(scorer="remote", remote=RemoteScorerSettings(url="http://127.0.0.1:1", form="none"))
