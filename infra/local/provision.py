"""Everything a stack needs on disk before its first process: ports, settings, configuration, Kafka's storage."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from penstock.infra.local import config, ports, processes, programs
from penstock.infra.local.errors import StackError
from penstock.infra.local.layout import Layout
from penstock.infra.local.parts import PARTS, Kind
from penstock.infra.settings import Settings

_HEADER = """\
# `penstock up` writes the addresses it chooses, and the scorer that `penstock up --scorer` names, here.
# Your own settings, addresses too, are kept: yours win.

"""


@dataclass(frozen=True, slots=True)
class Ports:
    """Listener -> port: those that `up` chose, and those that settings name."""

    chosen: dict[str, int] = field(default_factory=dict)
    configured: dict[str, int] = field(default_factory=dict)

    @property
    def all(self) -> dict[str, int]:
        return {**self.chosen, **self.configured}


def read_ports(layout: Layout) -> Ports:
    """As the last `up` recorded them; none before the first."""
    try:
        return Ports(**json.loads(layout.ports.read_text()))
    except FileNotFoundError:
        return Ports()


def choose_ports(layout: Layout, settings: Settings) -> Ports:
    """Fix every port, record them, and write the chosen addresses to penstock.toml. Raises PortTaken."""
    previous = read_ports(layout)
    wanted = ports.configured(settings, previous.chosen)
    for listener, port in wanted.items():
        ports.require_free(listener, port)
    everything = ports.choose(wanted, previous.chosen, ports.is_free, ports.candidate)
    fixed = Ports({name: port for name, port in everything.items() if name not in wanted}, wanted)
    tree = read_settings(layout)
    for listener, (section, key) in ports.SETTINGS.items():
        if listener in fixed.chosen:
            tree.setdefault(section, {})[key] = ports.address_of(listener, fixed.chosen[listener])
    write_settings(layout, tree)
    config.write(layout.ports, json.dumps(asdict(fixed), indent=2))
    return fixed


def unchanged_ports(layout: Layout, settings: Settings) -> dict[str, int]:
    """The ports of a running stack. Raises StackError when settings now name others."""
    recorded = read_ports(layout)
    moved = [
        ".".join(ports.SETTINGS[listener])
        for listener, port in ports.configured(settings, recorded.chosen).items()
        if recorded.all.get(listener) != port
    ]
    if moved:
        raise StackError(f"{', '.join(moved)} changed while the stack runs: `penstock down` first, then `penstock up`")
    return recorded.all


def read_settings(layout: Layout) -> dict[str, Any]:
    """What penstock.toml says; nothing before the first `up`."""
    if not layout.settings.is_file():
        return {}
    return tomllib.loads(layout.settings.read_text(encoding="utf-8"))


def write_settings(layout: Layout, tree: Mapping[str, Any]) -> None:
    config.write(layout.settings, _HEADER + config.toml(tree))


def write_files(layout: Layout, settings: Settings, chosen: dict[str, int], java_path: str) -> None:
    """Every generated file of the parts and of supervisord."""
    programs.link_flink_lib(layout)
    password = settings.redis.password
    secret = None if password is None else password.get_secret_value()
    config.write(layout.kafka / "server.properties", config.kafka_properties(layout, chosen))
    config.write(layout.kafka / "log4j2.properties", config.kafka_log4j())
    config.write(layout.redis / "redis.conf", config.redis_conf(layout, chosen, secret))
    cluster = config.flink_config(layout, chosen, settings, sys.executable, programs.opened_modules())
    config.write(layout.flink_conf / "config.yaml", cluster)
    for name in ("log4j.properties", "log4j-cli.properties"):
        config.write(layout.flink_conf / name, config.flink_log4j())
    config.write(layout.flink_python / "sitecustomize.py", config.python_start(programs.site_folders()))
    flink_variables = programs.flink_environment(layout, java_path)
    for part, argv in programs.commands(layout, java_path).items():
        variables = programs.variables(part, flink_variables)
        plan = {
            "part": part,
            "stack": str(layout.root),
            "argv": argv,
            "env": variables,
            "has_children": part == "taskmanager",
        }
        config.write(layout.launch / f"{part}.json", json.dumps(plan, indent=2))
    kept = [part for part in PARTS if part.kind is Kind.PROCESS]
    launchers = {part.name: programs.launcher(layout, part.name) for part in kept}
    config.write(layout.supervisor_conf, config.supervisord_conf(layout, kept, launchers))


def format_kafka(layout: Layout, java_path: str) -> None:
    """Give a new broker's storage its identity, once. Raises StackError."""
    if (layout.kafka / "data" / "meta.properties").is_file():
        return
    cluster = uuid.uuid4().hex[:22]
    command = programs.kafka_command(
        layout,
        java_path,
        "kafka.tools.StorageTool",
        *("format", "-t", cluster, "-c", str(layout.kafka / "server.properties"), "--ignore-formatted"),
    )
    environment = {**programs.environment(layout), processes.PART: "kafka"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    if done.returncode != 0:
        said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-5:])
        raise StackError(f"Kafka's storage in {layout.kafka / 'data'} could not be formatted:\n{said}")
