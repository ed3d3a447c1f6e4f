"""What runs in the Flink image: `python -m penstock.infra.compose.flink jobmanager | taskmanager | jobs`.

The configuration is that of the embedded stack, with a network's addresses in place of loopback's: the JobManager is
found where settings' `flink.rest` says, a TaskManager under its container's host name. Checkpoints, and the record of
job ids, are in `<data dir>/flink/checkpoints`, which is one volume in all three; the rest is each container's own.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from penstock.infra import settings as settings_module
from penstock.infra.local import config, programs
from penstock.infra.local.layout import Layout
from penstock.infra.settings import Settings

RPC_PORT = 6123
PROCESSES = ("jobmanager", "taskmanager")
WHAT = (*PROCESSES, "jobs")


def addresses(settings: Settings, host: str) -> dict[str, Any]:
    """What differs from a cluster on loopback. `host`: this container's name in the network."""
    job_manager, _, rest_port = settings.flink.rest.rpartition(":")
    return {
        "jobmanager.rpc.address": job_manager,
        "jobmanager.bind-host": "0.0.0.0",
        "rest.address": job_manager,
        "rest.port": int(rest_port),
        "rest.bind-address": "0.0.0.0",
        "rest.bind-port": rest_port,
        "taskmanager.host": host,
        "taskmanager.bind-host": "0.0.0.0",
        # A killed container started again keeps its name: the successor replaces the dead one at once.
        "taskmanager.resource-id": host,
    }


def cluster_config(layout: Layout, settings: Settings, host: str) -> str:
    """config.yaml."""
    ports = {"flink_rpc": RPC_PORT, "flink_rest": int(settings.flink.rest.rpartition(":")[2])}
    embedded = config.flink_config(layout, ports, settings, sys.executable, programs.opened_modules())
    return merged(embedded, addresses(settings, host))


def merged(text: str, changes: Mapping[str, Any]) -> str:
    """A configuration of `key: JSON` lines with some values replaced. Raises KeyError for a key it does not have."""
    values = {key: json.loads(value) for key, _, value in (line.partition(": ") for line in text.splitlines())}
    if unknown := changes.keys() - values.keys():
        raise KeyError(f"the embedded stack's configuration has no {', '.join(sorted(unknown))}")
    return "".join(f"{key}: {json.dumps(value)}\n" for key, value in {**values, **changes}.items())


def prepare(settings: Settings) -> tuple[Layout, dict[str, str]]:
    """Write the container's configuration; its folders, and the environment of what runs in it."""
    layout = Layout.at(settings.data_dir)
    layout.make()
    config.write(layout.flink_conf / "config.yaml", cluster_config(layout, settings, socket.gethostname()))
    for name in ("log4j.properties", "log4j-cli.properties"):
        config.write(layout.flink_conf / name, config.flink_log4j())
    start = layout.run / "python" / "sitecustomize.py"
    start.parent.mkdir(exist_ok=True)
    config.write(start, config.python_start(programs.site_folders()))
    programs.link_flink_lib(layout)
    return layout, {**programs.environment(layout), **programs.flink_environment(layout, programs.java())}


def main(arguments: list[str]) -> None:
    if len(arguments) != 1 or arguments[0] not in WHAT:
        sys.exit(f"expected one of {', '.join(WHAT)}, got {' '.join(arguments) or 'nothing'}")
    settings = settings_module.load()
    layout, environment = prepare(settings)
    if arguments[0] in PROCESSES:
        command = programs.commands(layout, programs.java())[arguments[0]]
        os.execve(command[0], command, environment)
    from penstock.infra.compose.jobs import keep

    keep(layout, settings, environment, Path("/tmp/jobs-run"))


if __name__ == "__main__":
    main(sys.argv[1:])
