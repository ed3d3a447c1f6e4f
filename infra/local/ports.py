"""Ports of a local stack: those that settings name, and free ones chosen for the rest.

A chosen port is kept across restarts while it is free. Free means bindable on loopback now; ports are taken from
below the kernel's range for outgoing connections, where no client of ours can occupy one while its server restarts.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from penstock.infra.local.errors import PortTaken, StackError
from penstock.infra.settings import Settings

# Listener -> (section, key) of the setting that names it; the rest are internal to the stack.
SETTINGS: dict[str, tuple[str, str]] = {
    "kafka": ("kafka", "bootstrap_servers"),
    "redis": ("redis", "url"),
    "flink_rest": ("flink", "rest"),
    "models": ("models", "listen"),
    "enrich": ("enrich", "listen"),
    "retrieval": ("retrieval", "listen"),
    "ranker": ("ranker", "listen"),
    "gateway": ("gateway", "listen"),
}
# Settings that are a bare port, 0 for none: where Prometheus scrapes the roles.
METRICS = {f"metrics_{role}": ("metrics", role) for role in ("models", "retrieval", "ranker", "enrich", "gateway")}
SETTINGS |= METRICS
INTERNAL = ("kafka_controller", "flink_rpc")
LISTENERS = (*SETTINGS, *INTERNAL)
_LOOPBACK = ("127.0.0.1", "localhost")


def port_of(setting: str, address: str) -> int:
    """The port of a loopback address ("127.0.0.1:9092", "redis://127.0.0.1:6379/0"). Raises StackError."""
    split = urlsplit(address if "://" in address else f"//{address}")
    try:
        host, port = split.hostname, split.port
    except ValueError:
        host, port = None, None
    if host not in _LOOPBACK or port is None:
        raise StackError(
            f"{setting} is {address!r}: the local stack starts its own on loopback, so it takes 127.0.0.1:PORT here;"
            " to use another system's, run the roles by `penstock serve` instead of `penstock up`"
        )
    return port


def address_of(listener: str, port: int) -> str | int:
    """The setting's value for a port."""
    if listener in METRICS:
        return port
    return f"redis://127.0.0.1:{port}/0" if listener == "redis" else f"127.0.0.1:{port}"


def configured(settings: Settings, chosen: Mapping[str, int]) -> dict[str, int]:
    """Ports that the user names: set in a file or the environment, and not what an earlier `up` chose."""
    out: dict[str, int] = {}
    for listener, (section, key) in SETTINGS.items():
        values = getattr(settings, section)
        if section not in settings.model_fields_set or key not in values.model_fields_set:
            continue
        value = getattr(values, key)
        port = value if isinstance(value, int) else port_of(f"{section}.{key}", value)
        if chosen.get(listener) != port:
            out[listener] = port
    return out


def choose(
    wanted: Mapping[str, int],
    previous: Mapping[str, int],
    is_free: Callable[[int], bool],
    candidate: Callable[[], int],
) -> dict[str, int]:
    """A port for every listener: the wanted one, else the previous one while free, else a free candidate."""
    out = dict(wanted)
    for listener in LISTENERS:
        if listener in out:
            continue
        port = previous.get(listener)
        while port is None or port in out.values() or not is_free(port):
            port = candidate()
        out[listener] = port
    return out


def is_free(port: int) -> bool:
    """Whether a server could listen on this loopback port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that linger do not matter
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def candidate() -> int:
    """A port to try, from below the range of outgoing connections."""
    try:
        lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        lowest = 32_768
    if lowest > 12_000:
        return random.randrange(10_000, lowest)
    with socket.socket() as probe:  # no room below: ask the kernel
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def holder(port: int) -> str:
    """Who listens there, for people; empty when the system does not tell."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                process = psutil.Process(connection.pid)
                return f"{process.name()} (process {process.pid})"
    except psutil.Error:
        return ""
    return ""


def require_free(listener: str, port: int) -> None:
    """Raises PortTaken, naming the setting and the holder."""
    if is_free(port):
        return
    by = holder(port)
    section_key = ".".join(SETTINGS[listener]) if listener in SETTINGS else f"the stack's {listener} port"
    raise PortTaken(
        f"port {port} ({section_key}) is in use{f' by {by}' if by else ''}: stop that program, or set another port"
        f" (unset, a free one is chosen)"
    )
