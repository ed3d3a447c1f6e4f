"""A stack's scorer: named, kept, healed, switched; on real processes, with a ranker that only says what it runs."""

import json
import os
import signal
import tomllib

import pytest
from trivial_stack import LIVE, TrivialStack
from waiting import eventually

from penstock.infra import settings as settings_module
from penstock.infra.local import provision
from penstock.infra.local.errors import PartFailed, StackError
from penstock.infra.local.layout import Layout
from penstock.infra.local.parts import Part
from penstock.infra.local.scorer import remembered
from penstock.infra.scorers import Choice

RANKER = """
from penstock.infra.settings import load
from penstock.ranker.backends.load import described
from penstock.schemas import grpc_avro, rpc

ranker = load().ranker
if ranker.model is not None and ranker.model.name == "broken":
    raise SystemExit("the weights are damaged")
status = rpc.RoleStatus(role="ranker", ready=True, numbers={}, texts=described(ranker))
server = grpc_avro.serve(ranker.listen, {rpc.Ranker.STATUS: lambda request, context: status})
"""


class RankingStack(TrivialStack):
    parts = (
        Part("ground", "waits for nobody", deadline=30, stop_wait=3, outlives=True),
        Part("ranker", "says what it runs", after=("ground",), deadline=60, stop_wait=3),
    )

    def __init__(self, data_dir, port):
        super().__init__(data_dir)
        self.layout.make()
        self.layout.ports.write_text(json.dumps({"chosen": {"ranker": port}, "configured": {}}))
        self.layout.settings.write_text(f'[ranker]\nlisten = "127.0.0.1:{port}"\nworkers = 3\n')

    def _script(self, name):
        live = LIVE.format(pid=str(self.pid_file(name)))
        return RANKER + live if name == "ranker" else live

    def kept(self):
        return tomllib.loads(self.layout.settings.read_text())["ranker"]


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    for name in [name for name in os.environ if name.startswith("PENSTOCK_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def stack(tmp_path, free_port):
    made = RankingStack(tmp_path / "s", free_port())
    yield made
    made.down()


@pytest.fixture
def model(tmp_path):
    def make(name):
        path = tmp_path / name
        path.mkdir()
        (path / "config.json").write_text('{"model_type": "qwen3"}')
        (path / "tokenizer.json").write_text("{}")
        (path / "model.safetensors").write_bytes(b"")
        return path

    return make


def pid_of(stack, part):
    return int(stack.pid_file(part).read_text())


def test_a_scorer_stays_until_another_is_named_and_a_healed_ranker_has_it(stack, model):
    small = model("small")
    stack.up(scorer=Choice("engine", small))
    assert str(stack.scorer()) == "engine, model small"
    ground, ranker = pid_of(stack, "ground"), pid_of(stack, "ranker")
    lines = []
    stack.up(lines.append, Choice("engine", small))
    assert pid_of(stack, "ranker") == ranker, "it runs it already"
    os.kill(ranker, signal.SIGKILL)
    eventually(lambda: stack.scorer() is None or pid_of(stack, "ranker") != ranker, "the ranker died")
    stack.up()
    assert str(stack.scorer()) == "engine, model small"
    stack.down()
    stack.up()
    assert str(stack.scorer()) == "engine, model small"
    ground, ranker = pid_of(stack, "ground"), pid_of(stack, "ranker")
    stack.up(lines.append, Choice("fused"))
    assert str(stack.scorer()) == "fused"
    assert pid_of(stack, "ground") == ground, "only the ranker is started anew"
    assert pid_of(stack, "ranker") != ranker
    assert any("stopping it, to start it with --scorer fused" in line for line in lines)
    assert stack.kept()["workers"] == 3, "what somebody wrote stays"


def test_a_scorer_that_does_not_start_is_not_kept(stack, model):
    broken = model("broken")
    stack.up(scorer=Choice("engine", model("small")))
    before = stack.kept()
    with pytest.raises(PartFailed, match="the weights are damaged"):
        stack.up(scorer=Choice("engine", broken))
    assert stack.kept() == before
    stack.up()
    assert str(stack.scorer()) == "engine, model small"


def test_variables_come_before_the_option_and_say_so(stack, monkeypatch, model):
    monkeypatch.setenv("PENSTOCK_RANKER__SCORER", "fused")
    before = stack.kept()
    with pytest.raises(StackError, match=r"--scorer engine was asked for, but .* say fused and come first"):
        stack.up(scorer=Choice("engine", model("small")))
    assert stack.kept() == before
    assert not stack.running()


def test_what_the_stack_was_started_with_in_its_environment_is_told(stack, monkeypatch, model):
    monkeypatch.setenv("PENSTOCK_RANKER__SCORER", "fused")
    stack.up()
    monkeypatch.delenv("PENSTOCK_RANKER__SCORER")  # another shell: supervisord keeps its own
    with pytest.raises(StackError, match="the ranker runs fused, though --scorer engine was asked for"):
        stack.up(scorer=Choice("engine", model("small")))
    assert "scorer" not in stack.kept()


def test_ports_and_keys_of_the_remote_one_outlive_a_choice(tmp_path):
    layout = Layout.at(tmp_path)
    layout.make()
    layout.settings.write_text('[ranker]\nworkers = 3\n[ranker.remote]\nurl = "http://old:1"\napi_key = "secret"\n')
    choice = Choice("remote", None, {"url": "http://127.0.0.1:8000", "form": "tei"})
    with remembered(layout, choice) as changed:
        assert changed
    provision.choose_ports(layout, settings_module.load_at(tmp_path))
    ranker = settings_module.load_at(tmp_path).ranker
    assert (ranker.scorer, ranker.workers) == ("remote", 3)
    assert (ranker.remote.url, ranker.remote.form) == ("http://127.0.0.1:8000", "tei")
    assert ranker.remote.api_key.get_secret_value() == "secret"
    assert layout.settings.stat().st_mode & 0o077 == 0
    with remembered(layout, choice) as changed:
        assert not changed
    with remembered(layout, None) as changed:
        assert not changed


def test_a_model_that_is_gone_is_told_before_anything_starts(tmp_path):
    from penstock.infra.local.scorer import require_fit

    layout = Layout.at(tmp_path)
    layout.make()
    layout.settings.write_text('[ranker]\nscorer = "engine"\nmodel = "models/gone"\n')
    with pytest.raises(StackError) as told:
        require_fit(layout, settings_module.load_at(tmp_path))
    assert f"{tmp_path / 'models' / 'gone'} is not a directory" in str(told.value)
    assert "penstock up --scorer fused" in str(told.value)
