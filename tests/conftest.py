"""Fixtures that every folder may use."""

import os
import socket
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Shared machines stall: an example that takes long says nothing about the code.
settings.register_profile(
    "penstock", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
settings.load_profile("penstock")


@pytest.fixture
def free_port():
    """A function that gives a loopback port nobody listens on at the moment of asking."""

    def choose() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
            return port

    return choose


@pytest.fixture(scope="session")
def machinery(tmp_path_factory):
    """A whole Penstock on this machine, for the scenarios of a session; PENSTOCK_TEST_STACK names one already up."""
    from embedded import EmbeddedStack

    given = os.environ.get("PENSTOCK_TEST_STACK")
    machinery = EmbeddedStack(Path(given) if given else tmp_path_factory.mktemp("stack"))
    machinery.stack.up(lambda line: print(line, file=sys.stderr))
    yield machinery
    if not given:
        machinery.stack.down()


@pytest.fixture(scope="session")
def system(machinery):
    from system import System

    running = System(machinery)
    yield running
    running.close()
