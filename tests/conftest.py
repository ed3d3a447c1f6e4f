"""Fixtures that every folder may use.

Kernels run in Triton's interpreter, which is chosen here because Triton decides when it is imported. On a machine with
a CUDA device they run there instead, and so do the tests that are marked `cuda`; PENSTOCK_TEST_CUDA=0 or 1 says it.

The end-to-end scenarios run on one of two installations, named by PENSTOCK_TEST_FIXTURE: `embedded`, what `penstock up`
starts, or `containers`, what the compose file starts. `make test` runs them on one after the other.
"""

import os
import socket
import sys
from pathlib import Path

import pytest
import redis
import structlog
from hypothesis import HealthCheck, settings
from redis_server import RedisServer

# Shared machines stall: an example that takes long says nothing about the code.
settings.register_profile(
    "penstock", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
settings.load_profile("penstock")

# What a test logs is read when it fails. By default a traceback is drawn with every variable in it: that takes seconds.
structlog.configure(
    processors=[
        *structlog.get_config()["processors"][:-1],
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
    ]
)

ON_CUDA = os.environ.get("PENSTOCK_TEST_CUDA", "1" if Path("/dev/nvidiactl").exists() else "0") == "1"
if not ON_CUDA:
    os.environ["TRITON_INTERPRET"] = "1"

FIXTURES = ("embedded", "containers")
FIXTURE = os.environ.get("PENSTOCK_TEST_FIXTURE", FIXTURES[0])
NO_CONTAINERS = pytest.StashKey[str]()


def pytest_configure(config):
    if FIXTURE not in FIXTURES:
        raise pytest.UsageError(f"PENSTOCK_TEST_FIXTURE is {FIXTURE!r}: expected one of {', '.join(FIXTURES)}")
    config.addinivalue_line("markers", "installation(name): runs on this installation alone")
    config.addinivalue_line("markers", "cuda: needs a CUDA device; skipped, with the reason, where there is none")
    config.addinivalue_line("markers", "interpreter: runs Triton's interpreter in this process; skipped on CUDA")


def pytest_collection_modifyitems(config, items):
    """Leave out what belongs to the other installation; on containers, also what needs none, for it has run before."""

    def belongs(item):
        mark = item.get_closest_marker("installation")
        if mark is not None:
            return mark.args[0] == FIXTURE
        return FIXTURES[0] == FIXTURE or "machinery" in item.fixturenames

    left_out = [item for item in items if not belongs(item)]
    for item in items:
        if not ON_CUDA and item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        elif ON_CUDA and item.get_closest_marker("interpreter"):
            item.add_marker(pytest.mark.skip(reason="the interpreter needs a process of its own"))
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if belongs(item)]


def pytest_terminal_summary(terminalreporter, config):
    why = config.stash.get(NO_CONTAINERS, "")
    if why:
        terminalreporter.section("THE CONTAINER SCENARIOS DID NOT RUN", red=True, bold=True)
        terminalreporter.line(why)


@pytest.fixture
def free_port():
    """A function that gives a loopback port nobody listens on at the moment of asking."""

    def choose() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
            return port

    return choose


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


def say(line: str) -> None:
    print(line, file=sys.stderr)


@pytest.fixture(scope="session", params=[FIXTURE])
def machinery(request, tmp_path_factory):
    """A whole Penstock, for the scenarios of a session; PENSTOCK_TEST_STACK names an embedded one already up."""
    if request.param == "containers":
        yield from _containers(request.config, tmp_path_factory.mktemp("containers"))
        return
    from embedded import EmbeddedStack

    given = os.environ.get("PENSTOCK_TEST_STACK")
    machinery = EmbeddedStack(Path(given) if given else tmp_path_factory.mktemp("stack"))
    machinery.stack.up(say)
    yield machinery
    if not given:
        machinery.stack.down()


def _containers(config, data_dir):
    from containers import ContainerStack, NoEngine
    from standins import CannotBuild

    try:
        stack = ContainerStack(data_dir, say)
        images = stack.images()
    except (NoEngine, CannotBuild) as error:
        config.stash[NO_CONTAINERS] = str(error)
        pytest.skip(f"no containers on this machine: {error}")
    try:
        stack.up(images)
        yield stack
    finally:
        stack.down()


@pytest.fixture(scope="session")
def system(machinery):
    from system import System

    running = System(machinery)
    yield running
    running.close()
