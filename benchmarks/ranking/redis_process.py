"""A Redis of one's own, configured as the local stack configures its own, for as long as a block lasts."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from benchmarks.processes import free_port
from penstock.infra.local import config, programs
from penstock.infra.local.layout import Layout

START_S = 20.0


@contextmanager
def shipped_redis(folder: Path) -> Iterator[str]:
    """Its URL. It keeps its files below `folder` and is empty at the start."""
    layout = Layout(folder)
    layout.redis.mkdir(parents=True)
    port = free_port()
    conf = layout.redis / "redis.conf"
    conf.write_text(config.redis_conf(layout, {"redis": port}, None), encoding="utf-8")
    process = subprocess.Popen([programs.redis_server(), str(conf)], stdout=subprocess.DEVNULL)
    url = f"redis://127.0.0.1:{port}/0"
    try:
        _await(url, process)
        yield url
    finally:
        process.kill()
        process.wait()


def _await(url: str, process: subprocess.Popen[bytes]) -> None:
    give_up = time.monotonic() + START_S
    with redis.Redis.from_url(url) as client:
        while True:
            try:
                client.ping()
                return
            except redis.ConnectionError:
                if process.poll() is not None or time.monotonic() > give_up:
                    raise
                time.sleep(0.02)
