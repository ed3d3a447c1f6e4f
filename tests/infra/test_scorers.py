"""What somebody asks for, completed from settings and checked; and what a running ranker says of itself."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.infra import doctor, scorers
from penstock.infra.scorers import Choice, Running, asked
from penstock.infra.settings import RankerSettings, RemoteScorerSettings, SettingsError
from penstock.ranker.backends.load import described
from penstock.ranker.engine.untrained import MARK, is_untrained
from penstock.ranker.errors import UnfitScorer
from penstock.schemas import grpc_avro, rpc


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    for name in [name for name in os.environ if name.startswith("PENSTOCK_RANKER__")]:
        monkeypatch.delenv(name)


@pytest.fixture
def told():
    return []


def model(path, kind="qwen3"):
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"model_type": kind}))
    (path / "tokenizer.json").write_text("{}")
    (path / "model.safetensors").write_bytes(b"")
    return path


def completed(choice, ranker, tmp_path, told):
    return scorers.completed(choice, ranker, tmp_path / "stack", tmp_path / "models", told.append)


def test_no_option_is_no_choice():
    assert asked(None, None) is None


def test_a_model_named_from_here_is_that_one_wherever_it_is_used(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert asked("engine", Path("m")) == Choice("engine", tmp_path / "m")


@pytest.mark.parametrize("scorer", [None, "fused", "remote"])
def test_a_model_nobody_reads_is_refused(scorer, tmp_path):
    with pytest.raises(SettingsError, match="goes with --scorer engine or --scorer transformers"):
        asked(scorer, tmp_path)


def test_the_fused_one_needs_nothing(tmp_path, told):
    assert completed(Choice("fused"), RankerSettings(), tmp_path, told) == Choice("fused")
    assert not told


def test_the_model_that_is_named_is_checked(tmp_path, told):
    qwen, llama = model(tmp_path / "qwen"), model(tmp_path / "llama", "llama")
    assert completed(Choice("engine", qwen), RankerSettings(), tmp_path, told) == Choice("engine", qwen)
    assert completed(Choice("transformers", llama), RankerSettings(), tmp_path, told).model == llama
    with pytest.raises(SettingsError, match=r"llama is of architecture 'llama'; needed: the directory of a Qwen3"):
        completed(Choice("engine", llama), RankerSettings(), tmp_path, told)
    with pytest.raises(SettingsError, match="gone is not a directory"):
        completed(Choice("engine", tmp_path / "gone"), RankerSettings(), tmp_path, told)
    assert not told


def test_settings_name_the_model_where_no_option_does(tmp_path, told, monkeypatch):
    beside_the_stack, here = model(tmp_path / "stack" / "m"), model(tmp_path / "here" / "m")
    ranker = RankerSettings(model=Path("m"))
    assert completed(Choice("engine"), ranker, tmp_path, told).model == beside_the_stack
    monkeypatch.setenv("PENSTOCK_RANKER__MODEL", "m")
    monkeypatch.chdir(tmp_path / "here")
    assert completed(Choice("engine"), ranker, tmp_path, told).model == here
    other = model(tmp_path / "other")
    assert completed(Choice("engine", other), ranker, tmp_path, told).model == other


def test_transformers_needs_a_model(tmp_path, told):
    with pytest.raises(SettingsError, match="--scorer transformers needs --model DIR"):
        completed(Choice("transformers"), RankerSettings(), tmp_path, told)


def test_the_engine_without_a_model_gets_an_untrained_one_once_and_it_is_told(tmp_path, told):
    first = completed(Choice("engine"), RankerSettings(), tmp_path, told)
    assert first.model is not None and is_untrained(first.model)
    assert told == [scorers.UNTRAINED]
    written = (first.model / "model.safetensors").stat().st_mtime_ns
    assert completed(Choice("engine"), RankerSettings(), tmp_path, told) == first
    assert (first.model / "model.safetensors").stat().st_mtime_ns == written
    assert len(told) == 2
    completed(first, RankerSettings(), tmp_path, told)
    assert told[2].startswith("untrained: the model is untrained")


def test_writing_a_model_brings_no_model_library(tmp_path):
    script = (
        "import sys; from pathlib import Path; from penstock.infra import scorers\n"
        "scorers.untrained_model(Path(sys.argv[1]))\n"
        "print(*sorted({'torch', 'transformers'} & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == ""


def test_the_remote_one_is_checked_and_kept_without_its_key(tmp_path, told):
    with pytest.raises(SettingsError, match="PENSTOCK_RANKER__REMOTE__URL="):
        completed(Choice("remote"), RankerSettings(), tmp_path, told)
    settings = RemoteScorerSettings(url="http://127.0.0.1:8000", form="vllm-rerank", api_key="secret")
    choice = completed(Choice("remote"), RankerSettings(remote=settings), tmp_path, told)
    assert choice.remote == {"url": "http://127.0.0.1:8000", "form": "vllm-rerank"}
    odd = RemoteScorerSettings(url="http://127.0.0.1:8000", form="sglang-score")
    with pytest.raises(UnfitScorer, match="needs the token ids of yes and no"):
        completed(Choice("remote"), RankerSettings(remote=odd), tmp_path, told)


# --- what runs ---------------------------------------------------------------------------------------------------


def status(settings):
    texts = {"model_id": "fused:1", **described(settings)}
    return rpc.RoleStatus(role="ranker", ready=True, numbers={}, texts=texts)


def test_a_ranker_says_what_it_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    qwen = model(tmp_path / "qwen3-small")
    fused = Running.of(status(RankerSettings()))
    engine = Running.of(status(RankerSettings(scorer="engine", model=Path("qwen3-small"))))
    url = "http://127.0.0.1:8000"
    remote = Running.of(status(RankerSettings(scorer="remote", remote=RemoteScorerSettings(url=url))))
    assert [str(each) for each in (fused, engine, remote)] == [
        "fused",
        "engine, model qwen3-small",
        "remote, model http://127.0.0.1:8000",
    ]
    assert fused.is_(Choice("fused")) and not fused.is_(Choice("engine"))
    assert engine.is_(Choice("engine")) and engine.is_(Choice("engine", qwen))
    assert not engine.is_(Choice("engine", tmp_path / "other")) and not engine.is_(Choice("transformers", qwen))
    assert remote.is_(Choice("remote", None, {"url": url}))
    (qwen / MARK).write_text("random")
    assert str(Running.of(status(RankerSettings(scorer="engine", model=qwen)))) == (
        "engine, model qwen3-small: random weights"
    )
    plain = Running.of(rpc.RoleStatus(role="ranker", ready=True, numbers={}, texts={"model_id": "fused:1"}))
    assert str(plain) == "fused:1" and not plain.is_(Choice("fused"))


def test_a_ranker_that_is_away_says_nothing(free_port):
    port = free_port()
    assert scorers.running_at(f"127.0.0.1:{port}") is None
    server = grpc_avro.serve(f"127.0.0.1:{port}", {rpc.Ranker.STATUS: lambda *_: status(RankerSettings())})
    try:
        assert scorers.running_at(f"127.0.0.1:{port}") == Running("fused", "", False, "fused:1")
    finally:
        server.stop(0).wait(10)


def test_the_doctor_knows_the_mark_and_the_names():
    from typing import get_args

    from penstock.infra.cli.scorer import ScorerName

    assert doctor.UNTRAINED_MARK == MARK
    settings = get_args(RankerSettings.model_fields["scorer"].annotation)
    assert doctor.SCORERS == settings == tuple(ScorerName)
