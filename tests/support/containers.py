"""The compose file's cpu profile as a `Machinery`, through testcontainers: what `docker compose up` would start.

Containers, networks and volumes carry the session's own name, and every published port is a free one of the host's
loopback, so that several sessions, and a real `docker compose up`, live side by side.
Health is asked only while somebody waits: by each service's own check, run inside it. A role's check costs a second of
a core, so it is first asked from here, by the same function, and its own check must then agree.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import compose_file
import docker
import images
from compose_file import Service
from docker.errors import APIError, DockerException, NotFound
from system import eventually

from penstock.infra import settings as settings_module
from penstock.infra.compose import health
from penstock.infra.local import config, ports
from penstock.infra.local.flink import FlinkUnreachable, Rest
from penstock.infra.settings import Settings

os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")  # an image of its own; the fixture removes what it made
from testcontainers.core.container import DockerContainer
from testcontainers.core.network import Network

DEADLINE = 240.0  # seconds for a service to become healthy, its image's first start on a busy machine included
LABEL = "penstock.session"
JOB_RECORD = "/var/lib/penstock/flink/checkpoints/jobs.json"  # penstock.infra.compose.jobs
# Port variable of the compose file -> the setting through which programs on the host find the service.
SETTINGS: dict[str, tuple[str, str, str]] = {
    "PENSTOCK_PORT_KAFKA": ("kafka", "bootstrap_servers", "127.0.0.1:{}"),
    "PENSTOCK_PORT_REDIS": ("redis", "url", "redis://127.0.0.1:{}/0"),
    "PENSTOCK_PORT_FLINK": ("flink", "rest", "127.0.0.1:{}"),
    "PENSTOCK_PORT_MODELS": ("models", "listen", "127.0.0.1:{}"),
    "PENSTOCK_PORT_RETRIEVAL": ("retrieval", "listen", "127.0.0.1:{}"),
    "PENSTOCK_PORT_RANKER": ("ranker", "listen", "127.0.0.1:{}"),
    "PENSTOCK_PORT_ENRICH": ("enrich", "listen", "127.0.0.1:{}"),
    "PENSTOCK_PORT_GATEWAY": ("gateway", "listen", "127.0.0.1:{}"),
    "PENSTOCK_PORT_METRICS_MODELS": ("metrics", "models", "{}"),
    "PENSTOCK_PORT_METRICS_RETRIEVAL": ("metrics", "retrieval", "{}"),
    "PENSTOCK_PORT_METRICS_RANKER": ("metrics", "ranker", "{}"),
    "PENSTOCK_PORT_METRICS_ENRICH": ("metrics", "enrich", "{}"),
    "PENSTOCK_PORT_METRICS_GATEWAY": ("metrics", "gateway", "{}"),
}

Say = Callable[[str], None]


class NoEngine(Exception):
    """No Docker engine answers: says why and what to do."""


def engine() -> docker.DockerClient:
    """A client of the machine's engine. Raises NoEngine."""
    try:
        client = docker.from_env(timeout=180)
        client.ping()
    except DockerException as error:
        raise NoEngine(f"no Docker engine answers ({error}): start one, or infra/engine.sh start as root") from error
    return client


class ContainerStack:
    """Owns its containers, volumes and network from `up` to `down`. `data_dir` has the settings of host programs."""

    def __init__(self, data_dir: Path, say: Say) -> None:
        self.data_dir, self._say = data_dir, say
        self._client = engine()
        self._name = f"penstock-{os.getpid()}-{time.time_ns() % 1_000_000:06d}"
        self._ports = dict(zip(SETTINGS, free_ports(len(SETTINGS)), strict=True))
        self._services: dict[str, Service] = {}
        self._containers: dict[str, DockerContainer] = {}
        self._network: Network | None = None

    # --- Machinery -----------------------------------------------------------------------------------------------

    def settings(self) -> Settings:
        return settings_module.load_at(self.data_dir)

    def environment(self) -> dict[str, str]:
        """For programs on the host that shall work on this installation."""
        return {**os.environ, "PENSTOCK_CONFIG": str(self.data_dir / "penstock.toml")}

    def lives(self, part: str) -> list[str]:
        """What changes when a part is started anew."""
        container = self._container(part)
        container.reload()
        return [container.attrs["State"]["StartedAt"]] if container.status == "running" else []

    def kill(self, part: str) -> None:
        container = self._container(part)
        container.kill("KILL")
        container.wait(timeout=30)

    def heal(self) -> None:
        for wave in compose_file.waves(self._services):
            with ThreadPoolExecutor(len(wave)) as pool:
                list(pool.map(self._heal, wave))

    # --- life ----------------------------------------------------------------------------------------------------

    def images(self) -> dict[str, str]:
        """Every image, here and built. Raises CannotBuild."""
        return images.resolve(self._say)

    def up(self, names: dict[str, str]) -> None:
        """Start everything from these images, in the compose file's order. AssertionError with logs."""
        published = {variable: str(port) for variable, port in self._ports.items()}
        self._services = compose_file.load("cpu", names | published)
        tree: dict[str, dict[str, str]] = {}
        for variable, (section, key, form) in SETTINGS.items():
            tree.setdefault(section, {})[key] = form.format(self._ports[variable])
        config.write(self.data_dir / "penstock.toml", config.toml(tree))
        self._network = Network(docker_network_kw={"labels": {LABEL: self._name}}).create()
        for service in self._services.values():
            for volume in service.volumes:
                self._client.volumes.create(self._volume(volume), labels={LABEL: self._name})
        for wave in compose_file.waves(self._services):
            with ThreadPoolExecutor(len(wave)) as pool:
                list(pool.map(self._bring, wave))
        # Those that nobody waits for are waited for here.
        with ThreadPoolExecutor(len(self._services)) as pool:
            list(pool.map(self._wait_healthy, self._services.values()))

    def down(self) -> None:
        """Remove all of it."""
        for container in self._containers.values():
            with contextlib.suppress(NotFound):
                container.get_wrapped_container().remove(force=True, v=True)
        for volume in self._client.volumes.list(filters={"label": f"{LABEL}={self._name}"}):
            volume.remove(force=True)
        if self._network is not None:
            self._network.remove()

    # --- one service ---------------------------------------------------------------------------------------------

    def _bring(self, service: Service) -> None:
        for other, condition in service.after.items():
            self._reached(self._services[other], condition)
        assert self._network is not None
        container = DockerContainer(
            service.image,
            command=list(service.command) or None,
            env=dict(service.environment),
            name=f"{self._name}-{service.name}",
            volumes=[(self._volume(name), path, "rw") for name, path in service.volumes.items()],
            network=self._network,
            network_aliases=[service.name],
        ).with_kwargs(
            hostname=service.name,
            user=service.user,
            init=service.init or None,
            mem_limit=service.mem_limit,
            labels={LABEL: self._name},
        )
        container.ports = {f"{inside}/tcp": outside for inside, outside in service.ports.items()}
        self._containers[service.name] = container
        began = time.monotonic()
        container.start()
        self._say(f"{service.name:<12} started {time.monotonic() - began:5.1f} s")

    def _heal(self, service: Service) -> None:
        container = self._container(service.name)
        container.reload()
        if container.status != "running" and service.restart != "no":
            container.start()
        self._wait_healthy(service)

    def _wait_healthy(self, service: Service) -> None:
        began = time.monotonic()
        self._reached(service, "service_completed_successfully" if service.restart == "no" else "service_healthy")
        self._say(f"{service.name:<12} healthy {time.monotonic() - began:5.1f} s")

    def _reached(self, service: Service, condition: str) -> None:
        """Wait for a condition of `depends_on`. AssertionError with the container's log."""
        if condition == "service_started":
            return
        pause = threading.Event()
        look = self._completed if condition == "service_completed_successfully" else self._healthy
        try:
            # Containers are asked a few times a second: each question takes processor time from what is coming up.
            eventually(lambda: look(service) or pause.wait(0.3), f"{service.name}: {condition}", DEADLINE)
        except AssertionError as error:
            tail = self._container(service.name).logs(tail=60).decode(errors="replace")
            raise AssertionError(f"{error}\n{tail}") from None

    def _completed(self, service: Service) -> bool:
        container = self._container(service.name)
        container.reload()
        state = container.attrs["State"]
        return state["Status"] == "exited" and state["ExitCode"] == 0

    def _healthy(self, service: Service) -> bool:
        container = self._container(service.name)
        if not service.healthy:
            container.reload()
            return bool(container.status == "running")
        if service.healthy[-2] == health.__name__ and health.trouble(service.healthy[-1], self.settings()):
            return False
        try:
            answer = container.exec_run(list(service.healthy))
        except APIError:  # it is not running at the moment
            return False
        return bool(answer.exit_code == 0) and (service.name != "jobs" or self._deployed_since())

    def _deployed_since(self) -> bool:
        """Whether the jobs were deployed in the life of this TaskManager: a JobManager believes in a dead one."""
        task_manager = self._container("taskmanager")
        task_manager.reload()
        life = datetime.fromisoformat(task_manager.attrs["State"]["StartedAt"][:26] + "+00:00").timestamp() * 1000
        record = self._container("jobs").exec_run(["cat", JOB_RECORD])
        if record.exit_code != 0 or not record.output:  # none yet, or a busy engine lost what was said
            return False
        rest = Rest(self.settings().flink.rest)
        try:
            jobs = [rest.job(ids[-1]) for ids in json.loads(record.output).values()]
        except FlinkUnreachable:
            return False
        return all(job.healthy and job.deployed_ms >= life for job in jobs)

    def _container(self, part: str) -> docker.models.containers.Container:
        return self._containers[part].get_wrapped_container()

    def _volume(self, name: str) -> str:
        return f"{self._name}-{name}"


def free_ports(count: int) -> list[int]:
    """Loopback ports that nobody listens on at the moment of asking, all different."""
    found: set[int] = set()
    while len(found) < count:
        port = ports.candidate()
        if ports.is_free(port):
            found.add(port)
    return sorted(found)
