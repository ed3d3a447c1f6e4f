"""The system a demo runs on, where it is there already: it must rank as was asked for."""

import os

import pytest

from penstock.infra.demo.session import NotAsked, OtherScorer, system
from penstock.infra.scorers import Choice
from penstock.schemas import grpc_avro, rpc


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("PENSTOCK_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PENSTOCK_DATA_DIR", str(tmp_path))


@pytest.fixture
def elsewhere(free_port, monkeypatch):
    """A system of somebody's own, as far as a ranker that says what it runs."""
    address = f"127.0.0.1:{free_port()}"
    texts = {"scorer": "engine", "model": "/models/qwen3", "model_id": "fused:1+engine-fp32:qwen3:2"}
    status = rpc.RoleStatus(role="ranker", ready=True, numbers={}, texts=texts)
    server = grpc_avro.serve(address, {rpc.Ranker.STATUS: lambda request, context: status})
    monkeypatch.setenv("PENSTOCK_RANKER__LISTEN", address)
    yield address
    server.stop(0).wait(10)


def quiet(message, style=""):
    pass


def opened(scorer, on_configured=True):
    with system(keep=False, on_configured=on_configured, tell=quiet, scorer=scorer) as settings:
        return settings.ranker.listen


def test_without_a_wish_any_scorer_will_do(elsewhere):
    assert opened(None) == elsewhere
    assert opened(Choice("engine")) == elsewhere


@pytest.mark.parametrize("wish", [Choice("fused"), Choice("transformers")])
def test_another_scorer_is_an_error_that_says_what_runs(elsewhere, wish):
    with pytest.raises(OtherScorer, match=f"--scorer {wish.scorer}: the ranker that is up runs engine, model qwen3: "):
        opened(wish)


def test_another_model_is_an_error(elsewhere, tmp_path):
    with pytest.raises(OtherScorer, match=f"--scorer engine --model {tmp_path}: "):
        opened(Choice("engine", tmp_path))


def test_nothing_that_answers_is_not_what_was_asked_for(free_port, monkeypatch):
    monkeypatch.setenv("PENSTOCK_RANKER__ADDRESS", f"127.0.0.1:{free_port()}")
    with pytest.raises(OtherScorer, match="runs nothing that answers"):
        opened(Choice("fused"))


def test_somebody_s_own_system_is_still_not_written_to_unasked(elsewhere):
    with pytest.raises(NotAsked, match="--on-configured"):
        opened(Choice("engine"), on_configured=False)
