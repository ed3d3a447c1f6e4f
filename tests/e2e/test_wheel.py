"""The wheel as a cluster gets it: built from this tree, installed with [jobs] alone, with no torch anywhere."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


def run(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory, pytestconfig) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    # setuptools builds from what an earlier build left in the tree, files since deleted included.
    shutil.rmtree(pytestconfig.rootpath / "build", ignore_errors=True)
    run(sys.executable, "-m", "uv", "build", "--wheel", "--no-build-isolation", "--python", sys.executable,
        "-q", "-o", out, pytestconfig.rootpath)  # fmt: skip
    [built] = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def cluster_python(wheel, tmp_path_factory, pytestconfig) -> Path:
    """The interpreter of an environment that holds the wheel with [jobs], at the locked versions."""
    home = tmp_path_factory.mktemp("taskmanager")
    python = home / "env" / "bin" / "python"
    lock = pytestconfig.rootpath / "infra" / "requirements.lock"
    pins = home / "constraints.txt"
    pins.write_text("\n".join(line.removesuffix(" \\") for line in lock.read_text().splitlines() if line[:1].isalpha()))
    uv = (sys.executable, "-m", "uv")
    run(*uv, "venv", "-q", "--python", sys.executable, home / "env")
    run(*uv, "pip", "install", "-q", "--python", python, "-c", pins, f"{wheel}[jobs]", cwd=home)
    return python


def test_the_wheel_is_pure_python_and_carries_its_data(wheel):
    assert wheel.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert not [name for name in names if name.endswith((".so", ".pyc"))]
    for needed in (
        "penstock/schemas/avro/Posting.avsc",
        "penstock/schemas/history/Posting/0001.avsc",
        "penstock/infra/pom.xml",
        "penstock/ranker/backends/fused_scorer.json",
    ):
        assert needed in names
    assert any(name.startswith("penstock/retrieval/encoder/tables/") for name in names)
    assert any(name.startswith("penstock/infra/demo/data/") for name in names)


def test_a_taskmanager_s_environment_has_no_torch_and_imports_the_jobs(cluster_python, tmp_path):
    script = """
import importlib.util
assert importlib.util.find_spec("torch") is None
assert importlib.util.find_spec("transformers") is None
import penstock.jobs.alerts, penstock.jobs.postings, penstock.jobs.queries
print(penstock.jobs.postings.__file__)
"""
    where = run(cluster_python, "-c", script, cwd=tmp_path)
    assert "site-packages" in where, "the installed package, not this tree"
