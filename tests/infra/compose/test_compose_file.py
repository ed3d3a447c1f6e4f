"""The compose file and its images, without an engine: what is named is there, and the parts are all in it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from compose_file import COMPOSE_FILE, ComposeError, defaults, load, waves
from images import context

from penstock.infra.compose import flink, health
from penstock.infra.compose.jobs import JOBS
from penstock.infra.local.parts import PARTS, Kind
from penstock.infra.settings import Settings
from penstock.schemas import grpc_avro
from penstock.schemas.rpc import Models, RoleStatus

ROOT = COMPOSE_FILE.parents[2]
PROFILES = ("cpu", "gpu")
# The same service under another name, where a profile wants other devices.
SAME = {"models-gpu": "models", "retrieval-gpu": "retrieval", "ranker-gpu": "ranker"}


@pytest.fixture(scope="module", params=PROFILES)
def services(request):
    return load(request.param, {})


def test_every_part_of_a_stack_is_a_service_in_each_profile(services):
    there = {SAME.get(name, name) for name in services}
    assert there == {part.name for part in PARTS if part.kind is not Kind.JOB} | {"jobs"}
    assert set(JOBS) == {part.name for part in PARTS if part.kind is Kind.JOB}


def test_services_wait_for_what_the_embedded_parts_wait_for_and_never_in_a_circle(services):
    order = [SAME.get(service.name, service.name) for wave in waves(services) for service in wave]
    assert len(order) == len(services)
    for name, before in (("topics", "kafka"), ("retrieval", "topics"), ("jobs", "jobmanager"), ("enrich", "topics")):
        assert order.index(before) < order.index(name)


def test_what_is_built_is_in_the_build_s_context(services):
    files = {str(path) for path in context()}
    assert not [path for path in files if "__pycache__" in path or path.startswith("infra/target")]
    for service in services.values():
        if service.build is None:
            continue
        assert (COMPOSE_FILE.parent / service.build["context"]).resolve() == ROOT
        recipe = (ROOT / service.build["dockerfile"]).read_text()
        for line in re.findall(r"^COPY (?!--from)(.*) \S+$", recipe, re.MULTILINE):
            for source in line.split():
                assert source == "." or source in files, f"{service.build['dockerfile']} copies {source}"
        declared = set(re.findall(r"^ARG (\w+)", recipe, re.MULTILINE))
        assert service.build["args"].keys() <= declared


def test_a_build_has_all_that_a_wheel_is_made_of():
    files = {path.parts[0] for path in context()}
    assert {"pyproject.toml", "README.md", "LICENSE", "NOTICE", "schemas", "jobs", "infra"} <= files


def test_services_run_without_root_within_memory_on_loopback(services):
    for service in services.values():
        assert service.mem_limit.endswith(("m", "g"))
        assert all(host == "127.0.0.1" for host, _ in service.ports.values())
        if service.build is not None:
            users = re.findall(r"^USER (\w+)$", (ROOT / service.build["dockerfile"]).read_text(), re.MULTILINE)
            assert users == ["penstock"]
        if service.restart != "no" and service.name != "taskmanager":
            assert service.healthy, f"{service.name} has no health check"


def test_every_address_and_command_fits_the_settings(services, monkeypatch):
    ours = [service for service in services.values() if service.build is not None]
    for service in ours:
        for key, value in service.environment.items():
            monkeypatch.setenv(key, value)
        settings = Settings()  # refuses by name what it does not know
        assert settings.kafka.bootstrap_servers == "kafka:9092"
        for role in ("models", "ranker", "enrich", "gateway"):
            assert getattr(settings, role).dial.startswith(f"{role}:")
        if service.command[0] == "serve":
            assert service.command[1] == SAME.get(service.name, service.name)
            role = service.command[1]
            called, scraped = service.ports
            assert getattr(settings, role).listen == f"0.0.0.0:{called}"
            assert getattr(settings.metrics, role) == scraped
            assert service.healthy[-1] == role
            assert settings.tracing.endpoint == ""


def test_the_ranker_s_scorer_its_model_and_its_key_are_its_own(services, monkeypatch):
    chosen = {
        "PENSTOCK_RANKER__SCORER": "engine",
        "PENSTOCK_RANKER__MODEL": "/models/qwen3",
        "PENSTOCK_FOLDER_MODELS": "/srv/models",
        "PENSTOCK_RANKER__REMOTE__API_KEY": "secret",
    }
    named = load("cpu", chosen)
    assert named["ranker"].volumes == {"/srv/models": "/models"}
    for key, value in named["ranker"].environment.items():
        monkeypatch.setenv(key, value)
    ranker = Settings().ranker
    assert (ranker.scorer, ranker.model) == ("engine", Path("/models/qwen3"))
    assert ranker.remote.api_key.get_secret_value() == "secret"
    assert [name for name, service in named.items() if "secret" in service.environment.values()] == ["ranker"]
    for name, service in services.items():
        if SAME.get(name, name) == "ranker":
            for key, value in service.environment.items():
                monkeypatch.setenv(key, value)
            assert (Settings().ranker.model, Settings().ranker.remote.api_key) == (None, None)


def test_only_the_gpu_profile_asks_for_devices():
    assert not [service for service in load("cpu", {}).values() if service.devices]
    gpu = {service.name: service for service in load("gpu", {}).values() if service.devices}
    assert set(gpu) == set(SAME)
    assert all(service.build["args"]["ACCELERATOR"] == "cuda" for service in gpu.values())
    aliases = yaml.safe_load(COMPOSE_FILE.read_text())["services"]
    assert {aliases[name]["networks"]["default"]["aliases"][0] for name in gpu} == set(SAME.values())


def test_images_are_variables_and_name_no_registry():
    names = {key: value for key, value in defaults().items() if key.startswith("PENSTOCK_IMAGE_")}
    assert len(names) == 8
    assert all("." not in name.partition("/")[0].partition(":")[0] for name in names.values())
    chosen = load("cpu", {"PENSTOCK_IMAGE_KAFKA": "elsewhere/kafka:1", "PENSTOCK_PORT_KAFKA": "5"})["kafka"]
    assert chosen.image == "elsewhere/kafka:1"
    assert chosen.ports == {9094: ("127.0.0.1", 5)}
    assert chosen.environment["KAFKA_ADVERTISED_LISTENERS"].endswith("HOST://127.0.0.1:5")


def test_the_broker_is_told_what_the_embedded_one_is_told():
    from penstock.infra.local.config import kafka_properties
    from penstock.infra.local.layout import Layout

    environment = load("cpu", {})["kafka"].environment
    embedded = kafka_properties(Layout(Path("/data")), {"kafka": 1, "kafka_controller": 2})
    for key, value in (line.split("=", 1) for line in embedded.splitlines()):
        if "listener" in key or key in ("log.dirs", "controller.quorum.voters"):
            continue
        assert environment[f"KAFKA_{key.replace('.', '_').upper()}"] == value, key


def test_a_line_that_nobody_honours_is_refused(tmp_path):
    file = tmp_path / "compose.yaml"
    base = "services: {one: {image: a, profiles: [cpu], mem_limit: 1g, restart: 'no', %s}}"
    file.write_text(base % "privileged: true")
    with pytest.raises(ComposeError, match="one: privileged"):
        load("cpu", {}, file)
    file.write_text(base % "ports: ['8080:8080']")
    with pytest.raises(ComposeError, match="loopback"):
        load("cpu", {}, file)
    file.write_text(base % "command: ['${UNSET}']")
    with pytest.raises(ComposeError, match="default"):
        load("cpu", {}, file)
    file.write_text(base % "depends_on: {two: {condition: service_started}}")
    with pytest.raises(ComposeError, match="one"):
        waves(load("cpu", {}, file))


def test_flink_in_a_network_differs_from_the_embedded_one_in_addresses_alone():
    text = 'a: 1\nrest.address: "127.0.0.1"\n'
    assert flink.merged(text, {"rest.address": "jobmanager"}) == 'a: 1\nrest.address: "jobmanager"\n'
    with pytest.raises(KeyError, match="nothing"):
        flink.merged(text, {"nothing": 1})


def test_a_cluster_s_configuration_is_found_by_name(tmp_path):
    from penstock.infra.local.layout import Layout

    settings = Settings(data_dir=tmp_path, flink={"rest": "jobmanager:8081"})
    text = flink.cluster_config(Layout.at(tmp_path), settings, "taskmanager-7")
    assert 'taskmanager.host: "taskmanager-7"' in text
    assert 'taskmanager.resource-id: "taskmanager-7"' in text
    assert 'jobmanager.rpc.address: "jobmanager"' in text
    assert "127.0.0.1" not in text


def test_health_says_what_is_wrong(free_port):
    port = free_port()
    role = {"listen": f"0.0.0.0:{port}"}
    settings = Settings(models=role, gateway=role)
    assert health.trouble("models", settings)
    assert "refused" in health.trouble("gateway", settings)


def test_a_role_at_work_is_exit_code_0_and_one_that_is_not_says_why(free_port):
    """As a container's health check runs it, against a Status that answers ready."""
    port = free_port()
    environment = {**os.environ, "PENSTOCK_MODELS__LISTEN": f"0.0.0.0:{port}"}
    command = [sys.executable, "-m", "penstock.infra.compose.health", "models"]
    silent = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert silent.returncode == 1
    assert "Models.Status" in silent.stderr
    status = RoleStatus(role="models", ready=True, numbers={}, texts={})
    server = grpc_avro.serve(f"127.0.0.1:{port}", {Models.STATUS: lambda request, context: status})
    try:
        assert subprocess.run(command, env=environment, check=False).returncode == 0
    finally:
        server.stop(None)
