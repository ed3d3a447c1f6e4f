"""What tests of the jobs share."""

import pytest
import redis
from redis_server import RedisServer


class Counted:
    """A metrics group that keeps its numbers, as Flink's does behind its gateway; also the context that has it."""

    def __init__(self):
        self.read = {}

    def get_metrics_group(self):
        return self

    def add_group(self, name, value=None):
        return self

    def gauge(self, name, read):
        self.read[name] = read

    def __getitem__(self, name):
        return self.read[name]()


@pytest.fixture
def counted():
    return Counted()


@pytest.fixture
def redis_server(tmp_path):
    """A Redis of one's own, to stop and start."""
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.stop()


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
