"""`penstock warmup`: with nothing to compile it says why; for a GPU that is not here it compiles all the same."""

import json
import os
import subprocess
import sys

import pytest
import torch
from qwen3_directory import make_directory
from typer.testing import CliRunner

from penstock.infra.cli.main import app

WITHOUT_DEVICE = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")


def warmup(*arguments, **environ):
    """In a process of its own, which may choose how Triton runs: exit code, what it answers, what it says."""
    script = f"from penstock.infra.cli.main import app; app({['warmup', *arguments]!r})"
    environ = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"} | environ
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=250, check=False, env=environ
    )
    return done.returncode, done.stdout, done.stderr


@WITHOUT_DEVICE
@pytest.mark.parametrize(
    ("device", "why"),
    [("auto", "no CUDA device is found"), ("cpu", "it runs no kernel"), ("interpreter", "as they are written")],
)
def test_without_a_device_there_is_nothing_to_do(device, why, monkeypatch, tmp_path):
    monkeypatch.setenv("PENSTOCK_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("PENSTOCK_RETRIEVAL__DEVICE", device)
    done = CliRunner().invoke(app, ["warmup", "--json"])
    told = json.loads(done.stdout)
    assert done.exit_code == 0 and told["compiled"] == []
    assert told["nothing_to_do"].startswith(f"retrieval.device is {device}") and why in told["nothing_to_do"]


@WITHOUT_DEVICE
def test_a_device_that_is_not_there_is_an_error(tmp_path):
    code, _, said = warmup(PENSTOCK_DATA_DIR=str(tmp_path), PENSTOCK_RETRIEVAL__DEVICE="cuda")
    assert code == 1 and "finds no CUDA device" in said


@WITHOUT_DEVICE
def test_a_rankers_device_that_is_not_there_is_an_error(tmp_path):
    engine = {"PENSTOCK_RANKER__SCORER": "engine", "PENSTOCK_RANKER__MODEL": str(tmp_path)}
    own = {"PENSTOCK_DATA_DIR": str(tmp_path), "PENSTOCK_RETRIEVAL__DEVICE": "cpu"}
    code, _, said = warmup(**own, **engine, PENSTOCK_RANKER__DEVICE="cuda")
    assert code == 1 and "ranker.device is cuda and torch finds 0 CUDA devices" in said
    code, _, said = warmup(**own, **engine, PENSTOCK_RANKER__DEVICE="cpu")
    assert code == 0 and "retrieval.device is cpu" in said


@pytest.mark.cuda
def test_a_rankers_engine_is_compiled_on_its_device(tmp_path):
    model = make_directory(tmp_path / "model")
    engine = {
        "PENSTOCK_RANKER__SCORER": "engine",
        "PENSTOCK_RANKER__MODEL": str(model),
        "PENSTOCK_RANKER__DEVICE": "cuda",
    }
    own = {"PENSTOCK_DATA_DIR": str(tmp_path), "PENSTOCK_RETRIEVAL__DEVICE": "cpu"}
    code, told, said = warmup("--json", **own, **engine)
    assert code == 0, said
    (made,) = json.loads(told)["compiled"]
    assert made["name"].startswith("ranker/engine-bf16:model:")


def test_for_a_gpu_that_is_not_here_it_compiles_and_says_what_and_how_long(tmp_path):
    once = warmup("--for", "sm_90", "--only", "filtered_topk/rank", "--json", TRITON_CACHE_DIR=str(tmp_path))
    assert once[0] == 0, once[2]
    (form,) = json.loads(once[1])["compiled"]
    assert form["name"] == "filtered_topk/rank" and form["seconds"] > 0
    assert list(tmp_path.rglob("*.cubin"))  # for every process that has this cache


def test_a_form_that_is_none_is_refused_by_name():
    code, _, said = warmup("--for", "sm_90", "--only", "nonsense")
    assert code == 2 and "nonsense" in said and "filtered_topk" in said
