"""A real Redis on a free socket, ended when the session ends."""

import time

import pytest
import redis
from redis_server import RedisServer


@pytest.fixture(scope="session")
def _shared_redis(tmp_path_factory):
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def redis_url(_shared_redis):
    """An empty Redis."""
    with redis.Redis.from_url(_shared_redis.url) as client:
        client.flushall()
    return _shared_redis.url


@pytest.fixture
def redis_server(tmp_path):
    """A Redis of one's own, to stop and start."""
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def until():
    """Waits for a condition with a deadline and returns its value."""

    def wait(condition, seconds=20.0):
        give_up = time.monotonic() + seconds
        while not (value := condition()):
            if time.monotonic() > give_up:
                raise AssertionError(f"not within {seconds} s: {condition}")
            time.sleep(0.005)
        return value

    return wait
