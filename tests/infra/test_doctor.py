"""The doctor on made-up machines: fake launchers, empty PATHs, taken ports."""

import json
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from penstock.infra import doctor

VERSIONS = {
    8: 'openjdk version "1.8.0_412"',
    11: 'openjdk version "11.0.22" 2024-01-16',
    17: 'openjdk version "17.0.15" 2025-04-15',
    21: 'java version "21.0.3" 2024-04-16 LTS',
    25: 'openjdk version "25" 2025-09-16',
}


def script(path, text, status=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\ncat >&2 <<'END'\n{text}\nEND\nexit {status}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(("major", "text"), VERSIONS.items())
def test_java_by_version(tmp_path, major, text):
    path = script(tmp_path / "java", text)
    check = doctor.check_java({"PATH": f"{tmp_path}:/bin:/usr/bin"})
    assert check.ok == (major >= 17)
    assert check.found == f"Java {major} ({path})"
    assert ("openjdk-17" in check.remedy) == (not check.ok)


def test_no_java():
    check = doctor.check_java({"PATH": "/nowhere"})
    assert not check.ok
    assert "no java on PATH" in check.found
    assert "apt-get install openjdk-17-jre-headless" in check.remedy


def test_java_home_wins_over_path_and_a_wrong_one_is_named(tmp_path):
    script(tmp_path / "on-path" / "java", VERSIONS[17])
    script(tmp_path / "home" / "bin" / "java", VERSIONS[11])
    path = f"{tmp_path / 'on-path'}:/bin:/usr/bin"
    assert "Java 11" in doctor.check_java({"PATH": path, "JAVA_HOME": str(tmp_path / "home")}).found
    wrong = doctor.check_java({"PATH": path, "JAVA_HOME": str(tmp_path / "gone")})
    assert not wrong.ok
    assert str(tmp_path / "gone") in wrong.found
    assert "unset JAVA_HOME" in wrong.remedy


@pytest.mark.parametrize(("text", "status"), [("Segmentation fault", 139), ("a tea kettle", 0)])
def test_a_java_that_does_not_say_its_version(tmp_path, text, status):
    script(tmp_path / "java", text, status)
    check = doctor.check_java({"PATH": f"{tmp_path}:/bin:/usr/bin"})
    assert not check.ok
    assert text in check.found


def test_maven_is_needed_only_until_the_jars_are_here(tmp_path):
    nothing = {"PATH": str(tmp_path)}
    assert not doctor.check_maven(nothing, jars_present=False).ok
    assert doctor.check_maven(nothing, jars_present=True).ok
    script(tmp_path / "mvn", "")
    assert doctor.check_maven(nothing, jars_present=False).found == str(tmp_path / "mvn")


@pytest.mark.parametrize(
    ("system", "machine", "libc", "ok"),
    [
        ("Linux", "x86_64", "glibc", True),
        ("Linux", "aarch64", "glibc", False),
        ("Linux", "x86_64", "musl", False),
        ("Darwin", "arm64", "", False),
    ],
)
def test_platform(system, machine, libc, ok):
    assert doctor.check_platform(system, machine, libc).ok is ok


def test_an_old_python_finds_a_newer_one_beside_it(tmp_path):
    environment = {"PATH": str(tmp_path), "HOME": str(tmp_path)}
    assert not doctor.check_python(environment, (3, 9)).ok
    (tmp_path / "python3.11").symlink_to(sys.executable)
    found = doctor.check_python(environment, (3, 9))
    assert found.ok == (sys.version_info[:2] in doctor.PYTHONS)
    assert str(tmp_path / "python3.11") in found.found


def test_a_pyenv_shim_without_a_version_is_not_a_python(tmp_path):
    script(tmp_path / "python3.11", "pyenv: python3.11: command not found", 127)
    assert doctor.python_version(str(tmp_path / "python3.11")) is None


def test_disk_says_how_much_to_free(tmp_path, monkeypatch):
    free = 3 * doctor.GB
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    check = doctor.check_disk(tmp_path / "not" / "there" / "yet", installed=False)
    assert not check.ok
    assert f"free 5.0 GB on the disk that holds {tmp_path}" in check.remedy
    assert doctor.check_disk(tmp_path, installed=True).ok


@pytest.mark.parametrize(("available", "held", "ok"), [(9, 0, True), (4, 0, False), (4, 5, True), (None, 0, True)])
def test_memory_of_a_running_stack_counts_as_free(available, held, ok):
    size = None if available is None else available * doctor.GB
    assert doctor.check_memory(size, held * doctor.GB).ok is ok


def test_a_configured_port_in_use_is_named(tmp_path):
    (tmp_path / "penstock.toml").write_text(
        '[redis]\nurl = "redis://127.0.0.1:5/0"\n[flink]\nrest = "elsewhere:8081"\n'
    )
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = held.getsockname()[1]
        environment = {"PENSTOCK_KAFKA__BOOTSTRAP_SERVERS": f"127.0.0.1:{port}"}
        named = doctor.configured_ports(environment, tmp_path)
        assert named == [("PENSTOCK_KAFKA__BOOTSTRAP_SERVERS", port), ("redis.url", 5)]
        check = doctor.check_ports(named[:1], doctor.port_taken)
        assert not check.ok
        assert f"PENSTOCK_KAFKA__BOOTSTRAP_SERVERS = {port}" in check.found
    assert doctor.check_ports(named[:1], doctor.port_taken).ok


def test_ports_that_up_chose_are_not_configured(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "ports.json").write_text('{"chosen": {"redis": 5}, "configured": {}}')
    (tmp_path / "penstock.toml").write_text('[redis]\nurl = "redis://127.0.0.1:5/0"\n')
    assert doctor.configured_ports({}, tmp_path) == []


def test_it_runs_alone_and_its_exit_code_is_its_verdict(tmp_path):
    """Before anything is installed: a bare interpreter, no site-packages."""
    source = Path(doctor.__file__)
    command = [sys.executable, "-I", "-S", str(source)]
    environment = {"PATH": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run([*command, "--json"], env=environment, capture_output=True, text=True, cwd=tmp_path)
    verdict = json.loads(done.stdout)
    checks = {check["name"]: check for check in verdict["checks"]}
    assert not checks["java"]["ok"]
    assert checks["java"]["remedy"]
    assert verdict["ok"] is False
    assert done.returncode == 1
    table = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert table.returncode == 1
    assert "MISSING  java" in table.stdout
    assert "java" in table.stdout.splitlines()[-1]
    assert subprocess.run([*command, "--jason"], env=environment, capture_output=True).returncode == 2


def test_nothing_missing_is_exit_code_0(capsys):
    assert doctor.report([doctor.Check("java", True, "Java 17", "Java 17 or newer")], as_json_text=False) == 0
    assert "Everything Penstock needs is here." in capsys.readouterr().out


def test_docker_is_told_of_and_never_missing(tmp_path):
    nothing = {"PATH": str(tmp_path)}
    assert doctor.check_docker(nothing).found.startswith("none")
    docker = tmp_path / "docker"
    docker.write_text("#!/bin/sh\necho 27.1.2\n")
    docker.chmod(0o755)
    assert doctor.check_docker(nothing).found == "engine 27.1.2"
    script(docker, "Cannot connect to the Docker daemon", 1)
    stopped = doctor.check_docker({"PATH": f"{tmp_path}:/bin:/usr/bin"})
    assert stopped.ok
    assert "no engine runs" in stopped.found


# --- the scorer ----------------------------------------------------------------------------------------------------


def model(path, kind="qwen3", **files):
    path.mkdir(parents=True)
    contents = {"config.json": json.dumps({"model_type": kind}), "tokenizer.json": "{}", "model.safetensors": ""}
    for name, text in {**contents, **files}.items():
        if text is not None:
            (path / name).write_text(text)
    return path


def test_the_scorer_is_what_variables_say_else_files(tmp_path):
    assert doctor.configured_scorer({}, tmp_path) == ("fused", None, "")
    (tmp_path / "penstock.toml").write_text(
        '[ranker]\nscorer = "engine"\nmodel = "models/small"\n[ranker.remote]\nurl = "http://a:1"\n'
    )
    assert doctor.configured_scorer({}, tmp_path) == ("engine", tmp_path / "models" / "small", "http://a:1")
    stronger = tmp_path / "mine.toml"
    stronger.write_text('[ranker]\nscorer = "transformers"\n')
    environment = {"PENSTOCK_CONFIG": str(stronger), "PENSTOCK_RANKER__REMOTE__URL": "http://b:2"}
    assert doctor.configured_scorer(environment, tmp_path) == (
        "transformers",
        tmp_path / "models" / "small",
        "http://b:2",
    )
    environment |= {"PENSTOCK_RANKER__SCORER": "remote", "PENSTOCK_RANKER__MODEL": "/m"}
    assert doctor.configured_scorer(environment, tmp_path)[:2] == ("remote", Path("/m"))


def test_a_model_directory_that_fits(tmp_path):
    qwen, llama = model(tmp_path / "qwen"), model(tmp_path / "llama", "llama")
    old = model(tmp_path / "old", **{"tokenizer.json": None, "vocab.json": "{}"})
    for scorer, directory in (("engine", qwen), ("engine", old), ("transformers", qwen), ("transformers", llama)):
        check = doctor.check_scorer(scorer, directory, "")
        assert check.ok and check.found == f"{scorer}, {directory}", check
    (qwen / doctor.UNTRAINED_MARK).write_text("random")
    assert doctor.check_scorer("engine", qwen, "").found.endswith("untrained: its scores mean nothing")


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"config.json": None}, "has no config.json"),
        ({"config.json": None, "model.safetensors": None}, "has no config.json and no *.safetensors"),
        ({"tokenizer.json": None}, "has no tokenizer.json"),
        ({"config.json": "{"}, "config.json does not say its model_type"),
        ({"config.json": "[]"}, "config.json does not say its model_type"),
        ({"config.json": '{"model_type": "bert"}'}, "is of architecture 'bert'"),
    ],
)
def test_a_model_directory_that_does_not_fit(tmp_path, files, reason):
    check = doctor.check_scorer("engine", model(tmp_path / "m", **files), "")
    assert not check.ok
    assert check.found.startswith("engine, but ") and check.found.endswith(reason)
    assert "Qwen3" in check.needed and "penstock up --scorer engine --model DIR" in check.remedy


@pytest.mark.parametrize(
    ("scorer", "directory", "url", "reason"),
    [
        ("engine", None, "", "engine, and no model for it"),
        ("transformers", Path("/nowhere"), "", "/nowhere is not a directory"),
        ("remote", None, "", "remote, and no address for it"),
        ("remote", None, "10.0.0.5:8000", "remote, 10.0.0.5:8000"),
        ("/models/qwen3", None, "", "/models/qwen3"),
    ],
)
def test_a_scorer_that_lacks_something(scorer, directory, url, reason):
    check = doctor.check_scorer(scorer, directory, url)
    assert not check.ok and reason in check.found and check.needed and check.remedy


def test_a_device_needs_its_driver_where_one_is_named(tmp_path):
    (tmp_path / "penstock.toml").write_text(
        '[ranker]\nscorer = "engine"\ndevice = "cuda:1"\n[models]\ndevice = "cpu"\n'
    )
    named = doctor.configured_devices({"PENSTOCK_RETRIEVAL__DEVICE": "cuda"}, tmp_path)
    assert named == [("models.device", "cpu"), ("retrieval.device", "cuda"), ("ranker.device", "cuda:1")]
    assert doctor.check_device(named, tmp_path).found == "retrieval.device, ranker.device are cuda"
    check = doctor.check_device(named, tmp_path / "nvidiactl")
    assert not check.ok and check.found.endswith("nvidiactl is not here") and "set it to cpu" in check.remedy
    assert doctor.check_device(doctor.configured_devices({}, tmp_path / "none"), tmp_path / "none").ok
    unused = {"PENSTOCK_RANKER__SCORER": "fused"}
    assert doctor.configured_devices(unused, tmp_path) == [("models.device", "cpu")], "no model of the ranker's to run"


def test_a_scorer_elsewhere_and_none_at_all():
    assert doctor.check_scorer("remote", None, "https://rerank.example/v1").ok
    assert doctor.check_scorer("fused", None, "").ok


# --- what products multiply ---------------------------------------------------------------------------------------


def test_weights_that_were_measured_are_shown_with_their_figures(tmp_path, monkeypatch):
    kept = tmp_path / "penstock-tunings.json"
    trial = {"drift": 0.0312, "ms": {"qkv": [2.0, 1.0], "out": [1.0, 1.25]}}
    entry = {"form": "int8", "products": ["qkv"], "trials": {"int8": trial}}
    monkeypatch.setattr(doctor, "_release", {"torch": "2.9", "triton": "3.9"}.get)
    device, other = "H200, torch 2.9+cu132, triton 3.9, source 1a", "H200, torch 2.9, triton 3.90, source 1a"
    mark = ": ranker.weights small bf16"
    kept.write_text(json.dumps({device + mark: entry, other + mark: entry, "H200: scan d16": {"tile": 3}}))
    found = doctor.check_weights("auto", kept, "cuda")
    assert found.ok
    assert found.found == (
        "auto: int8 (qkv) [int8: qkv 2.00x, out 0.80x, log-odds off by 0.031] for small bf16 on "
        f"{device} (1 by other releases)"
    )
    assert doctor.check_weights("plain", kept, "cpu").found == "plain"


def test_weights_that_a_processor_has_no_products_for(tmp_path):
    check = doctor.check_weights("int8", tmp_path / "kept.json", "cpu")
    assert not check.ok and check.found == "int8, and ranker.device is cpu" and "ranker.weights" in check.remedy
    assert doctor.check_weights("int8", tmp_path / "kept.json", "cuda:1").ok


@pytest.mark.parametrize("held", [None, "{", "[]", '{": ranker.weights ": 3}'])
def test_weights_of_which_nothing_is_kept(tmp_path, held):
    kept = tmp_path / "kept.json"
    if held is not None:
        kept.write_text(held)
    assert doctor.check_weights("auto", kept, "cuda").found == "auto: nothing measured yet"


def test_weights_are_told_of_the_engine_alone(tmp_path):
    environ = {
        "PENSTOCK_RANKER__SCORER": "engine",
        "PENSTOCK_RANKER__WEIGHTS": "auto",
        "TRITON_CACHE_DIR": str(tmp_path),
    }
    assert doctor.configured_weights(environ, tmp_path) == ("auto", tmp_path / "penstock-tunings.json", "cpu")
    assert doctor.configured_weights({}, tmp_path)[0] == "plain"
    assert doctor.diagnose(tmp_path, tmp_path, environ)[-1].name == "weights"
    assert "weights" not in [check.name for check in doctor.diagnose(tmp_path, tmp_path, {})]
