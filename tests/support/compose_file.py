"""The compose file as the container fixture reads it: variables filled in, one profile, services in plain values.

Only what our file uses is understood, and anything else is an error, so that a line nobody honours cannot creep in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

COMPOSE_FILE = Path(__file__).resolve().parents[2] / "infra" / "compose" / "compose.yaml"
_VARIABLE = re.compile(r"\$\{([A-Z0-9_]+):-([^}]*)\}")
_UNDERSTOOD = frozenset(
    [
        "image",
        "build",
        "profiles",
        "environment",
        "init",
        "restart",
        "stop_grace_period",
        "volumes",
        "command",
        "user",
        "mem_limit",
        "healthcheck",
        "ports",
        "depends_on",
        "networks",
        "deploy",
    ]
)


class ComposeError(Exception):
    """The compose file says something that is not understood: names it."""


@dataclass(frozen=True, slots=True)
class Service:
    name: str
    image: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    user: str | None
    init: bool
    mem_limit: str
    restart: str
    stop_grace_s: int
    ports: Mapping[int, tuple[str, int]]  # in the container -> host address, port
    volumes: Mapping[str, str]  # name -> path in the container
    healthy: tuple[str, ...]  # a command that exits 0 when it is; empty: none
    after: Mapping[str, str]  # service -> condition
    build: Mapping[str, Any] | None
    devices: bool  # wants a GPU


def defaults(path: Path = COMPOSE_FILE) -> dict[str, str]:
    """Variable -> what it is when nobody says."""
    return dict(_VARIABLE.findall(path.read_text(encoding="utf-8")))


def load(profile: str, variables: Mapping[str, str], path: Path = COMPOSE_FILE) -> dict[str, Service]:
    """The services of a profile, by name. Raises ComposeError."""
    text = _VARIABLE.sub(lambda found: variables.get(found[1]) or found[2], path.read_text(encoding="utf-8"))
    if "$" in re.sub(r"^\s*#.*$", "", text, flags=re.MULTILINE):
        raise ComposeError("a variable without a default: write ${NAME:-default}")
    services = yaml.safe_load(text)["services"]
    return {name: _service(name, given) for name, given in services.items() if profile in given["profiles"]}


def waves(services: Mapping[str, Service]) -> list[list[Service]]:
    """Services in the order they start: each waits only for earlier waves. Raises ComposeError on a cycle."""
    left, done, out = dict(services), set[str](), []
    while left:
        wave = [service for service in left.values() if done.issuperset(service.after)]
        if not wave:
            raise ComposeError(f"these wait for each other, or for what is not there: {', '.join(left)}")
        out.append(wave)
        for service in wave:
            done.add(service.name)
            del left[service.name]
    return out


def _service(name: str, given: Mapping[str, Any]) -> Service:
    if unknown := given.keys() - _UNDERSTOOD:
        raise ComposeError(f"{name}: {', '.join(sorted(unknown))} is not understood here")
    check = given.get("healthcheck", {}).get("test", ["CMD"])
    if check[0] != "CMD":
        raise ComposeError(f"{name}: a health check is [CMD, ...], got {check[0]}")
    return Service(
        name=name,
        image=given["image"],
        command=tuple(str(word) for word in given.get("command", ())),
        # A variable that is empty was filled in before YAML was read, which makes it null.
        environment={key: "" if value is None else str(value) for key, value in given.get("environment", {}).items()},
        user=given.get("user"),
        init=given.get("init", False),
        mem_limit=given["mem_limit"],
        restart=given["restart"],
        stop_grace_s=int(given.get("stop_grace_period", "10s").removesuffix("s")),
        ports=dict(_port(name, text) for text in given.get("ports", ())),
        volumes=dict(text.removesuffix(":ro").split(":") for text in given.get("volumes", ())),
        healthy=tuple(check[1:]),
        after={other: how["condition"] for other, how in given.get("depends_on", {}).items()},
        build=given.get("build"),
        devices="deploy" in given,
    )


def _port(name: str, text: str) -> tuple[int, tuple[str, int]]:
    address, _, inside = text.rpartition(":")
    host, _, outside = address.rpartition(":")
    if host != "127.0.0.1":
        raise ComposeError(f"{name}: a port is published on the host's loopback, got {text}")
    return int(inside), (host, int(outside))
